//! How long answers of one endpoint take, and what is under way there. Times are nanoseconds since the set began.

use crate::outstanding::Outstanding;

/// How long a latency is remembered.
const TAU: f64 = 10e9;
/// An idle endpoint is as good as its peers after this long, so that one that was priced out is tried again.
///
/// With 10 s eight gateways overrun an endpoint at a tenth of the speed: p99 1.33 of the oracle's, with 30 s 1.18.
const FORGET: f64 = 30e9;
/// Penalties of an idle endpoint are forgotten after this long: failing passes sooner than being slow.
const FORGIVE: f64 = 10e9;
/// An endpoint is no faster than the oldest unanswered attempt says: this part of its age.
///
/// The oldest of several has waited longer than they all will on average. Simulated at load 0.9, p99 is 1.11 to 1.17
/// of the oracle's with the whole age, 1.02 to 1.06 with half of it; less finds a hung endpoint later.
const AGE: f64 = 0.5;
/// A failure weighs at least this much, however soon it follows the last sample.
const FAILURE_WEIGHT: f64 = 0.25;

#[derive(Debug)]
pub(crate) struct Load {
    estimate: Option<f64>,
    /// The same without penalties.
    typical: Option<f64>,
    sampled: u64,
    in_flight: u32,
    idle_since: u64,
    /// `u64::MAX` when nobody is waited for; kept here so that a scan stays in one cache line.
    oldest: u64,
    outstanding: Outstanding,
}

impl Load {
    pub(crate) fn new(now: u64) -> Self {
        Self {
            estimate: None,
            typical: None,
            sampled: now,
            in_flight: 0,
            idle_since: now,
            oldest: u64::MAX,
            outstanding: Outstanding::default(),
        }
    }

    pub(crate) fn estimate(&self) -> Option<f64> {
        self.estimate
    }

    pub(crate) fn typical(&self) -> Option<f64> {
        self.typical
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// How long the next answer is expected to take, where `peers` take this long.
    #[inline]
    pub(crate) fn latency(&self, peers: f64, now: u64) -> f64 {
        let estimate = self.estimate.unwrap_or(peers);
        if self.in_flight > 0 {
            // No decay: the longer it lasts, the worse it is.
            return estimate.max(now.saturating_sub(self.oldest) as f64 * AGE);
        }
        let idle = now.saturating_sub(self.idle_since) as f64;
        let typical = self.drifted(peers, idle);
        let penalty = estimate - self.typical.unwrap_or(peers);
        typical + penalty * (1.0 - (idle * (1.0 / FORGIVE)).min(1.0))
    }

    /// The latency without penalties, on its way to that of the peers.
    #[inline]
    fn drifted(&self, peers: f64, idle: f64) -> f64 {
        let typical = self.typical.unwrap_or(peers);
        typical + (peers - typical) * (idle * (1.0 / FORGET)).min(1.0)
    }

    pub(crate) fn start(&mut self, peers: f64, now: u64) -> u32 {
        if self.in_flight == 0 && self.estimate.is_some() {
            self.estimate = Some(self.latency(peers, now));
            let idle = now.saturating_sub(self.idle_since) as f64;
            self.typical = self.typical.map(|_| self.drifted(peers, idle));
        }
        self.in_flight += 1;
        let attempt = self.outstanding.push(now);
        self.oldest = self.outstanding.oldest().unwrap_or(now);
        attempt
    }

    /// Nobody waits for this attempt any more; returns for how long somebody did.
    pub(crate) fn heard(&mut self, attempt: u32, now: u64) -> f64 {
        let start = self.outstanding.remove(attempt);
        self.oldest = self.outstanding.oldest().unwrap_or(u64::MAX);
        now.saturating_sub(start) as f64
    }

    pub(crate) fn end(&mut self, now: u64) {
        self.in_flight -= 1;
        if self.in_flight == 0 {
            self.idle_since = now;
        }
    }

    pub(crate) fn sample(&mut self, latency: f64, now: u64) {
        let share = self.share(now);
        self.typical = Some(blend(self.typical, latency, share));
        self.update(latency, share, now);
    }

    /// An answer that took at least this long, if that says more than is known.
    pub(crate) fn censored(&mut self, latency: f64, now: u64) {
        if self.estimate.is_some_and(|estimate| latency > estimate) {
            self.update(latency, self.share(now), now);
        }
    }

    pub(crate) fn penalise(&mut self, latency: f64, now: u64) {
        let latency = latency.max(self.estimate.unwrap_or(0.0));
        self.update(latency, self.share(now).max(FAILURE_WEIGHT), now);
    }

    /// Forgets penalties.
    pub(crate) fn forgive(&mut self, now: u64) {
        self.estimate = self.typical;
        self.sampled = now;
    }

    fn update(&mut self, latency: f64, share: f64, now: u64) {
        self.estimate = Some(blend(self.estimate, latency, share));
        self.sampled = now;
    }

    /// As `1 - exp(-t / TAU)` for short gaps, without the `exp`.
    fn share(&self, now: u64) -> f64 {
        let elapsed = now.saturating_sub(self.sampled) as f64;
        elapsed / (elapsed + TAU)
    }
}

fn blend(old: Option<f64>, new: f64, share: f64) -> f64 {
    old.map_or(new, |old| old + (new - old) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const PEERS: f64 = 100e6;

    fn answered(load: &mut Load, start: u64, end: u64) {
        let attempt = load.start(PEERS, start);
        let waited = load.heard(attempt, end);
        load.sample(waited, end);
        load.end(end);
    }

    #[test]
    fn an_unknown_endpoint_is_like_its_peers() {
        assert_eq!(Load::new(0).latency(PEERS, 5 * MS), PEERS);
    }

    #[test]
    fn nothing_decays_while_something_is_in_flight() {
        let mut load = Load::new(0);
        answered(&mut load, 0, 500 * MS);
        let attempt = load.start(PEERS, 500 * MS);
        load.heard(attempt, 500 * MS);
        assert_eq!(load.latency(PEERS, 60_000 * MS), 500e6);
        load.end(60_000 * MS);
        assert_eq!(load.latency(PEERS, 60_000 * MS), 500e6);
    }

    #[test]
    fn an_idle_endpoint_drifts_to_its_peers_from_either_side() {
        for latency in [10 * MS, 500 * MS] {
            let mut load = Load::new(0);
            answered(&mut load, 0, latency);
            let half = load.latency(PEERS, latency + 15_000 * MS);
            assert_eq!(half, f64::midpoint(latency as f64, PEERS));
            assert_eq!(load.latency(PEERS, latency + 30_000 * MS), PEERS);
            assert_eq!(load.latency(PEERS, latency + 90_000 * MS), PEERS);
        }
    }

    #[test]
    fn penalties_are_forgotten_sooner_than_latencies() {
        let mut load = Load::new(0);
        answered(&mut load, 0, 100 * MS);
        load.penalise(2100e6, 100 * MS);
        assert_eq!(load.latency(PEERS, 100 * MS), 600e6);
        assert_eq!(load.latency(PEERS, 5_100 * MS), 350e6);
        assert_eq!(load.latency(PEERS, 10_100 * MS), 100e6);
    }

    #[test]
    fn never_better_than_half_the_age_of_the_oldest_that_is_unanswered() {
        let mut load = Load::new(0);
        answered(&mut load, 0, MS);
        let first = load.start(PEERS, 10 * MS);
        load.start(PEERS, 20 * MS);
        assert_eq!(load.latency(PEERS, 200 * MS), 95e6);
        load.heard(first, 200 * MS);
        assert_eq!(load.latency(PEERS, 200 * MS), 90e6);
    }

    #[test]
    fn a_failure_that_comes_at_once_still_weighs() {
        let mut load = Load::new(0);
        answered(&mut load, 0, 100 * MS);
        load.penalise(2e9, 100 * MS);
        assert_eq!(load.estimate(), Some(100e6 + 0.25 * 1900e6));
        load.forgive(100 * MS);
        assert_eq!(load.estimate(), Some(100e6));
    }

    #[test]
    fn who_left_early_says_nothing_and_who_left_late_does() {
        let mut load = Load::new(0);
        answered(&mut load, 0, 100 * MS);
        load.censored(50e6, 20_000 * MS);
        assert_eq!(load.estimate(), Some(100e6));
        load.censored(400e6, 20_000 * MS);
        assert!(load.estimate() > Some(200e6), "{load:?}");
        assert_eq!(
            load.typical(),
            Some(100e6),
            "nobody knows how long it would have taken"
        );
    }
}
