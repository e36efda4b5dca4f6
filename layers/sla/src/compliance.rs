//! A summary against its targets.

use crate::summary::{Errors, Latency, ProcessUsage, Throughput};

/// What a summary is held against. The defaults suit a service that answers with a language model.
///
/// ```
/// use palisade_sla::Targets;
///
/// let targets = Targets { latency_seconds: 0.5, ..Targets::default() };
/// assert_eq!(targets.requests_per_minute, 100.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Targets {
    /// The mean latency is at most this.
    pub latency_seconds: f64,
    /// There are at least as many requests as this.
    pub requests_per_minute: f64,
    /// At most this share of requests is bad.
    pub error_rate: f64,
    /// At most this share of the CPUs is in use.
    pub cpu_usage: f64,
    /// At most this share of the memory is in use.
    pub memory_usage: f64,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            latency_seconds: 2.0,
            requests_per_minute: 100.0,
            error_rate: 0.01,
            cpu_usage: 0.8,
            memory_usage: 0.85,
        }
    }
}

/// Which targets are met.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Compliance {
    /// The mean latency in seconds.
    pub latency: Compared,
    /// Requests per minute.
    pub throughput: Compared,
    /// The share of bad requests.
    pub error_rate: Compared,
    /// The share of the CPUs, where it is known.
    pub cpu_usage: Option<Compared>,
    /// The share of the memory, where it is known.
    pub memory_usage: Option<Compared>,
    /// All that is known together.
    pub overall: Overall,
}

/// What there is and what there should be.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Compared {
    /// Whether the target is met.
    pub compliant: bool,
    /// What there is.
    pub current: f64,
    /// What there should be.
    pub target: f64,
    /// How far the one is above the other, in percent of the target; 0 without a target.
    pub variance_percent: f64,
}

/// All targets together.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Overall {
    /// Whether all are met.
    pub compliant: bool,
    /// The share of them that is.
    pub compliance_score: f64,
}

impl Compliance {
    pub(crate) fn of(
        latency: &Latency,
        throughput: &Throughput,
        errors: &Errors,
        process: &ProcessUsage,
        targets: &Targets,
    ) -> Self {
        let latency = at_most(latency.avg_seconds, targets.latency_seconds);
        let throughput = at_least(throughput.requests_per_minute, targets.requests_per_minute);
        let error_rate = at_most(errors.error_rate_percent / 100.0, targets.error_rate);
        let cpu_usage = process
            .cpu_usage
            .map(|share| at_most(share, targets.cpu_usage));
        let memory_usage = (process.memory_usage).map(|share| at_most(share, targets.memory_usage));
        let required = [latency, throughput, error_rate];
        let all = required.into_iter().chain(cpu_usage).chain(memory_usage);
        let (known, met) = all.fold((0_u8, 0_u8), |(known, met), compared| {
            (known + 1, met + u8::from(compared.compliant))
        });
        Self {
            latency,
            throughput,
            error_rate,
            cpu_usage,
            memory_usage,
            overall: Overall {
                compliant: met == known,
                compliance_score: f64::from(met) / f64::from(known),
            },
        }
    }
}

fn at_most(current: f64, target: f64) -> Compared {
    compared(current <= target, current, target)
}

fn at_least(current: f64, target: f64) -> Compared {
    compared(current >= target, current, target)
}

fn compared(compliant: bool, current: f64, target: f64) -> Compared {
    let variance_percent = if target > 0.0 {
        (current - target) / target * 100.0
    } else {
        0.0
    };
    Compared {
        compliant,
        current,
        target,
        variance_percent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(average: f64, per_minute: f64, percent: f64, process: ProcessUsage) -> Compliance {
        let latency = Latency {
            avg_seconds: average,
            ..Latency::default()
        };
        let throughput = Throughput {
            requests_per_minute: per_minute,
            ..Throughput::default()
        };
        let errors = Errors {
            error_rate_percent: percent,
            ..Errors::default()
        };
        Compliance::of(
            &latency,
            &throughput,
            &errors,
            &process,
            &Targets::default(),
        )
    }

    #[test]
    fn targets_are_met_up_to_the_target_itself() {
        let process = ProcessUsage {
            cpu_usage: Some(0.8),
            memory_usage: Some(0.85),
        };
        let exactly = of(2.0, 100.0, 1.0, process);
        assert!(exactly.overall.compliant);
        assert_eq!(exactly.overall.compliance_score, 1.0);
        assert_eq!(exactly.latency.variance_percent, 0.0);
    }

    #[test]
    fn each_target_that_is_missed_costs_its_share_of_the_score() {
        let process = ProcessUsage {
            cpu_usage: Some(0.9),
            memory_usage: Some(0.5),
        };
        let missed = of(3.0, 50.0, 0.5, process);
        assert_eq!(missed.latency, compared(false, 3.0, 2.0));
        assert_eq!(missed.latency.variance_percent, 50.0);
        assert_eq!(missed.throughput, compared(false, 50.0, 100.0));
        assert_eq!(missed.throughput.variance_percent, -50.0);
        assert!(missed.error_rate.compliant);
        assert_eq!(missed.error_rate.variance_percent, -50.0);
        assert!(missed.cpu_usage.is_some_and(|cpu| !cpu.compliant));
        assert!(missed.memory_usage.is_some_and(|memory| memory.compliant));
        assert!(!missed.overall.compliant);
        assert_eq!(missed.overall.compliance_score, 0.4);
    }

    #[test]
    fn what_is_not_known_does_not_count() {
        let compliance = of(1.0, 10.0, 0.0, ProcessUsage::default());
        assert_eq!(
            (compliance.cpu_usage, compliance.memory_usage),
            (None, None)
        );
        assert_eq!(compliance.overall.compliance_score, 2.0 / 3.0);
    }

    #[test]
    fn without_a_target_there_is_no_variance() {
        assert_eq!(at_least(5.0, 0.0).variance_percent, 0.0);
    }
}
