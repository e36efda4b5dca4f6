//! What an endpoint has said of its load, and what that is worth by now.

use crate::LoadReport;

/// A report is as good as new for as long as an answer usually lasts, and at least so long. Where answers of language
/// models last ten seconds, p99 of fifty gateways that probe is 2.0 of the oracle's, and 2.2 where reports are as good
/// as new for a second.
const FRESH: f64 = 1e9;
/// And no better than none after so many times as long.
const STALE: f64 = 5.0;
/// What one says of its errors is as good as new for no longer than this: it is forgotten when penalties are, after ten
/// seconds, however long answers last. Who is not asked because of it may say nothing more.
const ERRORS_FRESH: f64 = 2e9;
/// However much more it says that it has to do than its peers, it is only so many times as dear, before that is halved.
const MOST: f64 = 4.0;
/// And however much less.
const LEAST: f64 = 0.5;
/// This part of what reports say is believed: what endpoints have to do is in their latencies, too.
const BELIEVED: f64 = 0.5;
/// Above this part after their beginning, answers stream.
const STREAMS: f64 = 0.5;
/// An endpoint that is as good as full.
const FULL: f64 = 0.99;

/// The last report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    report: LoadReport,
    at: u64,
    /// For how long it is as good as new.
    fresh: f64,
    /// Requests that were under way there from here when it came.
    own: u32,
    /// Requests that went there since.
    sent: u32,
}

/// What is usual among those that report, as far as anybody says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usually {
    /// Requests of others under way.
    pub(crate) others: Option<f64>,
    pub(crate) utilization: Option<f64>,
    /// Nanoseconds.
    pub(crate) latency: Option<f64>,
    /// The part of answers that were errors, of the one that has the fewest: what all have speaks against nobody.
    pub(crate) errors: Option<f64>,
}

impl Usually {
    /// Where this part of an answer comes after it has begun. Endpoints speak of whole answers, and where most of that
    /// is no waiting it says nothing of when they begin.
    pub(crate) fn where_streams(self, part: f64) -> Self {
        Self {
            latency: self.latency.filter(|_| part <= STREAMS),
            ..self
        }
    }
}

impl Told {
    /// Where `own` requests are under way from here, and answers last so many nanoseconds.
    pub(crate) fn new(report: LoadReport, own: u32, lasts: f64, now: u64) -> Self {
        Self {
            report: report.sane(),
            at: now,
            fresh: lasts.max(FRESH),
            own,
            sent: 0,
        }
    }

    /// As it was heard.
    pub(crate) fn report(&self) -> LoadReport {
        self.report
    }

    pub(crate) fn sent(&mut self) {
        self.sent = self.sent.saturating_add(1);
    }

    /// From 1, new, to 0, as good as none.
    pub(crate) fn worth(&self, now: u64) -> f64 {
        self.fades(self.fresh, now)
    }

    fn fades(&self, fresh: f64, now: u64) -> f64 {
        let age = now.saturating_sub(self.at) as f64 / fresh;
        ((STALE - age) / (STALE - 1.0)).clamp(0.0, 1.0)
    }

    /// The requests under way there that are not from here.
    pub(crate) fn others(&self) -> Option<f64> {
        Some(f64::from(self.report.in_flight?.saturating_sub(self.own)))
    }

    pub(crate) fn utilization(&self) -> Option<f64> {
        self.report.utilization
    }

    /// How long answers took there, in nanoseconds.
    pub(crate) fn latency(&self) -> Option<f64> {
        Some(self.report.latency?.as_nanos() as f64)
    }

    /// The part of its answers that were errors; who speaks and does not say that has had none.
    pub(crate) fn errors(&self) -> f64 {
        self.report.errors.unwrap_or(0.0)
    }

    /// Requests there, those sent since counted, and how long they take; if it is new and was not used too often.
    pub(crate) fn probed(&self, uses: u32, fresh: u64, now: u64) -> Option<Probed> {
        let usable = self.sent < uses && now.saturating_sub(self.at) <= fresh;
        let said = self.report.in_flight.filter(|_| usable)?;
        Some(Probed {
            in_flight: said.saturating_add(self.sent),
            latency: self.latency(),
        })
    }
}

/// What a probe has found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Probed {
    pub(crate) in_flight: u32,
    /// Nanoseconds.
    pub(crate) latency: Option<f64>,
}

/// How much dearer an endpoint is for what it says.
///
/// Who says nothing is as usual, and old reports tend to that. A factor and no sum: among many gateways each has few
/// requests in flight anywhere, and what keeps it from sending two to the same endpoint must not drown in what others
/// send, as it would in the larger of both counts, or in their sum.
pub(crate) fn strain(told: &Told, usually: &Usually, now: u64) -> f64 {
    let others = told.others().zip(usually.others);
    let others = others.map(|(others, usual)| (others + 1.0) / (usual + 1.0));
    // By the room that is left, as waiting grows in queues: half full or a tenth full is nearly the same.
    let room = || {
        let (full, usual) = told.utilization().zip(usually.utilization)?;
        Some((1.0 - usual.min(FULL)) / (1.0 - full.min(FULL)))
    };
    let Some(strain) = others.or_else(room) else {
        return 1.0;
    };
    1.0 + BELIEVED * told.worth(now) * (strain.clamp(LEAST, MOST) - 1.0)
}

/// How many times as long as of its peers an endpoint's answers take by what it says; at least once.
///
/// What a gateway of many knows of a slow endpoint is forgotten before it hears of it again, and it would then be taken
/// for its peers: each gateway would find out anew. A quotient, since an endpoint does not see all the time that passes
/// here. And nobody is faster than its peers for saying so: that all gateways would believe at once.
pub(crate) fn slowness(told: &Told, usually: &Usually, now: u64) -> f64 {
    let Some((latency, usual)) = told.latency().zip(usually.latency) else {
        return 1.0;
    };
    let times = (latency / usual.max(1.0)).clamp(1.0, MOST);
    1.0 + told.worth(now) * (times - 1.0)
}

/// How probable it is that an endpoint fails where its peers would not, by what it says.
///
/// Others have found out already, and each gateway would else find out for itself.
pub(crate) fn risk(told: &Told, usually: &Usually, now: u64) -> f64 {
    let usual = usually.errors.unwrap_or(1.0);
    told.fades(told.fresh.min(ERRORS_FRESH), now) * (told.errors() - usual).max(0.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const USUALLY: Usually = Usually {
        others: Some(7.0),
        utilization: Some(0.5),
        latency: Some(1e9),
        errors: None,
    };

    fn told(in_flight: Option<u32>, utilization: Option<f64>, own: u32) -> Told {
        let report = LoadReport {
            in_flight,
            utilization,
            ..LoadReport::default()
        };
        Told::new(report, own, 0.0, 0)
    }

    #[test]
    fn a_report_fades_towards_what_is_usual() {
        let told = told(Some(15), None, 0);
        let at = |now| strain(&told, &USUALLY, now);
        assert_eq!(at(0), 1.5);
        assert_eq!(at(SECOND), 1.5);
        assert_eq!(at(3 * SECOND), 1.25);
        assert_eq!(at(5 * SECOND), 1.0);
        assert_eq!(at(u64::MAX), 1.0);
    }

    #[test]
    fn a_report_is_new_for_as_long_as_an_answer_lasts() {
        let report = LoadReport {
            in_flight: Some(15),
            ..LoadReport::default()
        };
        let told = Told::new(report, 0, 10e9, 0);
        let at = |seconds| strain(&told, &USUALLY, seconds * SECOND);
        assert_eq!([10, 30, 50].map(at), [1.5, 1.25, 1.0]);
    }

    #[test]
    fn only_the_requests_of_others_are_news() {
        assert_eq!(strain(&told(Some(11), None, 4), &USUALLY, 0), 1.0);
        assert_eq!(strain(&told(Some(19), None, 4), &USUALLY, 0), 1.5);
        assert_eq!(
            told(Some(3), None, 4).others(),
            Some(0.0),
            "it has changed since"
        );
    }

    #[test]
    fn lies_are_bounded() {
        for in_flight in [None, Some(0), Some(u32::MAX)] {
            for utilization in [None, Some(0.0), Some(1e300), Some(f64::NAN), Some(-1.0)] {
                for others in [0.0, 7.0, 1e9] {
                    for usual in [0.0, 0.5, 1e300] {
                        let usually = Usually {
                            others: Some(others),
                            utilization: Some(usual),
                            ..Usually::default()
                        };
                        let strain = strain(&told(in_flight, utilization, 3), &usually, 0);
                        assert!((0.75..=2.5).contains(&strain), "{strain}");
                    }
                }
            }
        }
    }

    #[test]
    fn utilization_makes_dearer_by_the_room_that_is_left() {
        let at = |utilization| strain(&told(None, Some(utilization), 0), &USUALLY, 0);
        assert_eq!(at(0.5), 1.0);
        assert_eq!(at(0.75), 1.5);
        assert_eq!(at(1.2), 2.5);
        assert_eq!(at(0.0), 0.75);
        assert_eq!(strain(&told(None, None, 0), &USUALLY, 0), 1.0);
    }

    fn takes(latency: Option<Duration>) -> Told {
        let report = LoadReport {
            latency,
            ..LoadReport::default()
        };
        Told::new(report, 0, 0.0, 0)
    }

    #[test]
    fn who_says_that_it_is_slow_is_so_many_times_as_slow_as_its_peers_until_that_is_old() {
        let told = takes(Some(Duration::from_secs(3)));
        let at = |seconds| slowness(&told, &USUALLY, seconds * SECOND);
        assert_eq!([0, 1, 3, 5].map(at), [3.0, 3.0, 2.0, 1.0]);
        let alone = Usually {
            latency: None,
            ..USUALLY
        };
        assert_eq!(slowness(&told, &alone, 0), 1.0);
        assert_eq!(strain(&told, &USUALLY, 0), 1.0, "it is no more busy");
    }

    #[test]
    fn how_long_streams_last_does_not_say_when_they_begin() {
        let told = takes(Some(Duration::from_secs(3)));
        let at = |part| slowness(&told, &USUALLY.where_streams(part), 0);
        assert_eq!([0.0, 0.5, 0.51, 1.0].map(at), [3.0, 3.0, 1.0, 1.0]);
        let rest = USUALLY.where_streams(1.0);
        assert_eq!((rest.others, rest.utilization), (Some(7.0), Some(0.5)));
    }

    #[test]
    fn nobody_is_faster_than_its_peers_for_saying_so_and_nobody_infinitely_slow() {
        for (latency, times) in [
            (None, 1.0),
            (Some(Duration::ZERO), 1.0),
            (Some(Duration::from_millis(10)), 1.0),
            (Some(Duration::MAX), 4.0),
        ] {
            assert_eq!(slowness(&takes(latency), &USUALLY, 0), times);
        }
        let at_once = Usually {
            latency: Some(0.0),
            ..USUALLY
        };
        assert_eq!(slowness(&takes(Some(Duration::ZERO)), &at_once, 0), 1.0);
        assert_eq!(slowness(&takes(Some(Duration::MAX)), &at_once, 0), 4.0);
    }

    #[test]
    fn who_says_that_it_fails_is_a_risk_as_far_as_its_peers_fail_less_until_that_is_old() {
        let fails = |errors| {
            let report = LoadReport {
                errors: Some(errors),
                ..LoadReport::default()
            };
            Told::new(report, 0, 0.0, 0)
        };
        let usually = Usually {
            errors: Some(0.25),
            ..Usually::default()
        };
        let at = |seconds| risk(&fails(1.0), &usually, seconds * SECOND);
        assert_eq!([0, 1, 3, 5].map(at), [0.75, 0.75, 0.375, 0.0]);
        let now = |errors| risk(&fails(errors), &usually, 0);
        assert_eq!([0.0, 0.25, 0.5, 7.0].map(now), [0.0, 0.0, 0.25, 0.75]);
        for odd in [f64::NAN, f64::INFINITY, -1.0] {
            assert_eq!(now(odd), 0.0);
        }
        assert_eq!(risk(&told(Some(1), None, 0), &usually, 0), 0.0);
        assert_eq!(risk(&fails(1.0), &Usually::default(), 0), 0.0);
    }

    #[test]
    fn errors_are_forgotten_after_ten_seconds_however_long_answers_last() {
        let fails = LoadReport {
            errors: Some(1.0),
            ..LoadReport::default()
        };
        let usually = Usually {
            errors: Some(0.0),
            ..Usually::default()
        };
        let at = |lasts, seconds| risk(&Told::new(fails, 0, lasts, 0), &usually, seconds * SECOND);
        for lasts in [2e9, 10e9, 600e9] {
            assert_eq!(
                [0, 2, 6, 10].map(|age| at(lasts, age)),
                [1.0, 1.0, 0.5, 0.0]
            );
        }
    }

    #[test]
    fn a_probe_serves_a_few_requests_and_a_short_time() {
        let mut told = told(Some(3), None, 0);
        told.sent();
        let probed = told.probed(2, SECOND, SECOND).unwrap();
        assert_eq!(probed.in_flight, 4);
        assert_eq!(told.probed(2, SECOND, SECOND + 1), None);
        told.sent();
        assert_eq!(told.probed(2, SECOND, 0), None);
    }
}
