//! What an endpoint says of itself, in an answer or when it is asked.

use std::time::Duration;

/// What an endpoint says of its own load: by the `endpoint-load-metrics` header of an answer, or when it is probed.
///
/// What it does not say is `None`. A report counts for a few seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Requests that it works on or keeps waiting, from all its clients; no less than this, where it only knows a part.
    pub in_flight: Option<u32>,
    /// How much of what it can do is taken: 1 is full, above 1 is overload.
    pub utilization: Option<f64>,
    /// How long answers that began lately took it, to their end, at about the load that it has now.
    pub latency: Option<Duration>,
    /// The part of its answers that were errors lately, those to other clients counted: 1 is all of them.
    pub errors: Option<f64>,
}

impl LoadReport {
    /// Without what nobody can count with.
    pub(crate) fn sane(self) -> Self {
        let is_share = |share: &f64| share.is_finite() && *share >= 0.0;
        Self {
            utilization: self.utilization.filter(is_share),
            errors: self.errors.filter(is_share).map(|share| share.min(1.0)),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_share_is_dropped() {
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1] {
            let report = LoadReport {
                in_flight: Some(7),
                utilization: Some(odd),
                errors: Some(odd),
                ..LoadReport::default()
            };
            let sane = report.sane();
            assert_eq!((sane.in_flight, sane.utilization), (Some(7), None));
            assert_eq!(sane.errors, None);
        }
        let over = LoadReport {
            utilization: Some(1.7),
            ..LoadReport::default()
        };
        assert_eq!(over.sane(), over);
    }
}
