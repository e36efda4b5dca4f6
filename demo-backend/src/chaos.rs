//! Which fault strikes whom, and when.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    fault::{Fault, Kind, Target},
    rng::{Rng, mix},
};

/// The faults that are set, and since when.
#[derive(Debug)]
pub(crate) struct Chaos {
    faults: Vec<Fault>,
    since: Instant,
    seed: u64,
}

/// What happens to one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Strike {
    /// Of all latencies that strike, together.
    pub(crate) delay: Duration,
    /// The first of the others that strikes.
    pub(crate) kind: Option<Kind>,
}

/// Connections have draws of their own, so that one more of them moves no request's fate.
const CONNECTIONS: u64 = 1 << 63;
const HEALTH: u64 = 1 << 62;

impl Chaos {
    pub(crate) fn new(faults: Vec<Fault>, since: Instant, seed: u64) -> Self {
        Self {
            faults,
            since,
            seed,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    pub(crate) fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// What happens to the `nth` request to this target, which is not [`Target::All`].
    pub(crate) fn strike(&self, target: Target, nth: u64, now: Instant) -> Strike {
        let mut strike = Strike::default();
        let nth = match target {
            Target::Health => nth | HEALTH,
            _ => nth,
        };
        for (index, fault) in self.open(now) {
            let mine = fault.on == Target::All || fault.on == target;
            if !mine || fault.kind == Kind::Refuse {
                continue;
            }
            let mut rng = self.draw(index, nth);
            if rng.unit() >= fault.share {
                continue;
            }
            match &fault.kind {
                Kind::Latency(latency) => {
                    strike.delay = strike.delay.saturating_add(latency.draw(&mut rng));
                }
                kind if strike.kind.is_none() => strike.kind = Some(kind.clone()),
                _ => {}
            }
        }
        strike
    }

    /// Whether the `nth` connection, or the `nth` request on a kept one, is reset.
    pub(crate) fn refuses(&self, nth: u64, now: Instant) -> bool {
        self.open(now)
            .filter(|(_, fault)| fault.kind == Kind::Refuse)
            .any(|(index, fault)| self.draw(index, nth | CONNECTIONS).unit() < fault.share)
    }

    /// When the program ends whether requests come or not.
    pub(crate) fn crash_at(&self) -> Option<Instant> {
        self.faults
            .iter()
            .filter(|fault| fault.kind == Kind::Crash && fault.share >= 1.0)
            .filter_map(|fault| self.since.checked_add(fault.from))
            .min()
    }

    fn open(&self, now: Instant) -> impl Iterator<Item = (usize, &Fault)> {
        let age = now.saturating_duration_since(self.since);
        self.faults.iter().enumerate().filter(move |(_, fault)| {
            age.checked_sub(fault.from)
                .is_some_and(|into| fault.lasting.is_none_or(|lasting| into < lasting))
        })
    }

    fn draw(&self, index: usize, nth: u64) -> Rng {
        Rng::of(self.seed ^ mix(index as u64 + 1), nth)
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::time;

    use super::*;

    fn chaos(lines: &[&str]) -> (Chaos, Instant) {
        let faults = lines.iter().map(|line| line.parse().unwrap()).collect();
        let now = time::now();
        (Chaos::new(faults, now, 7), now)
    }

    #[test]
    fn a_window_opens_and_closes_to_the_nanosecond() {
        let (chaos, start) = chaos(&["hang,from=10s,for=5s"]);
        let nano = Duration::from_nanos(1);
        let hangs = |after: Duration| {
            chaos
                .strike(Target::Requests, 0, start + after)
                .kind
                .is_some()
        };
        assert!(!hangs(Duration::from_secs(10) - nano));
        assert!(hangs(Duration::from_secs(10)));
        assert!(hangs(Duration::from_secs(15) - nano));
        assert!(!hangs(Duration::from_secs(15)));
    }

    #[test]
    fn a_share_strikes_about_that_many_and_always_the_same() {
        let (chaos, now) = chaos(&["error,share=0.3"]);
        let struck = |nth| chaos.strike(Target::Requests, nth, now).kind.is_some();
        let first: Vec<_> = (0..10_000).map(struck).collect();
        let count = first.iter().filter(|struck| **struck).count();
        assert!((2_850..3_150).contains(&count), "{count}");
        assert!(
            (0..10_000)
                .rev()
                .all(|nth| struck(nth) == first[nth as usize])
        );
    }

    #[test]
    fn latencies_add_up_and_the_first_other_fault_wins() {
        let (chaos, now) = chaos(&["latency,delay=1s", "hang", "latency,delay=2s", "error"]);
        let strike = chaos.strike(Target::Requests, 0, now);
        assert_eq!(strike.delay, Duration::from_secs(3));
        assert_eq!(strike.kind, Some(Kind::Hang));
    }

    #[test]
    fn targets_are_told_apart() {
        let (chaos, now) = chaos(&["hang,on=health", "latency,delay=1s,on=all"]);
        let strike = |target| chaos.strike(target, 0, now);
        assert_eq!(strike(Target::Requests).kind, None);
        assert_eq!(strike(Target::Health).kind, Some(Kind::Hang));
        assert_eq!(strike(Target::Requests).delay, Duration::from_secs(1));
    }

    #[test]
    fn only_a_certain_crash_comes_by_itself() {
        let (chaos, now) = chaos(&["crash,share=0.5", "crash,from=9s", "crash,from=4s"]);
        assert_eq!(chaos.crash_at(), Some(now + Duration::from_secs(4)));
        assert!(!chaos.refuses(0, now));
    }

    #[test]
    fn a_share_of_the_connections_is_refused_and_no_request_is() {
        let (chaos, now) = chaos(&["refuse,share=0.5"]);
        let refused = (0..1000).filter(|nth| chaos.refuses(*nth, now)).count();
        assert!((440..560).contains(&refused), "{refused}");
        assert_eq!(chaos.strike(Target::Requests, 0, now), Strike::default());
    }
}
