//! What a row of checks amounts to. No clock, no lock, no I/O.

use std::time::Duration;

use super::HealthChecks;
use crate::Health;

/// Checks in a row that disagree with what is believed are this much closer together.
const HURRY: u32 = 4;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    believed: Health,
    /// Checks in a row that have passed, and that have failed: one of them is zero.
    passed: u32,
    failed: u32,
    /// A check has failed since the last time that it was said to be healthy.
    shaken: bool,
    /// It waits for its first check.
    fresh: bool,
}

impl Tally {
    /// An endpoint has come, by itself or in the place of another, and this is what is said of it.
    pub(super) fn meet(&mut self, health: Health) {
        if health == Health::Unhealthy && self.believed == Health::Healthy {
            *self = Self {
                believed: health,
                shaken: true,
                fresh: true,
                ..Self::default()
            };
        }
    }

    pub(crate) fn hear(&mut self, passed: bool, checks: HealthChecks) -> Option<Health> {
        // One check is enough for an endpoint that has not failed any, as Envoy has it.
        let first = std::mem::take(&mut self.fresh);
        if passed {
            self.failed = 0;
            self.passed = self.passed.saturating_add(1);
            let enough = first || self.passed >= checks.rise;
            if !enough || !self.shaken {
                return None;
            }
            self.shaken = false;
            self.believed = Health::Healthy;
        } else {
            self.passed = 0;
            self.failed = self.failed.saturating_add(1);
            self.shaken = true;
            // Said each time: another endpoint may have taken the name meanwhile, or a hand put it back.
            if self.failed < checks.fall {
                return None;
            }
            self.believed = Health::Unhealthy;
        }
        Some(self.believed)
    }

    pub(crate) fn pause(self, checks: HealthChecks) -> Duration {
        let disagrees = match self.believed {
            Health::Healthy => self.shaken,
            Health::Unhealthy => self.passed > 0,
        };
        if disagrees {
            checks.every / HURRY
        } else {
            checks.every
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(1);

    fn heard_by(mut tally: Tally, checks: &str) -> String {
        let settings = HealthChecks::every(EVERY);
        let say = |check| match tally.hear(check == '+', settings) {
            None => '.',
            Some(Health::Healthy) => 'H',
            Some(Health::Unhealthy) => 'U',
        };
        checks.chars().map(say).collect()
    }

    fn heard(checks: &str) -> String {
        heard_by(Tally::default(), checks)
    }

    #[test]
    fn three_failures_take_out_and_two_passes_bring_back() {
        assert_eq!(heard("++---+-++"), "....U...H");
        assert_eq!(heard("-----++"), "..UUU.H");
    }

    #[test]
    fn passing_again_is_said_even_if_it_was_never_taken_out() {
        assert_eq!(heard("+-++++--++"), "...H.....H");
    }

    #[test]
    fn one_check_brings_in_what_waits_for_its_first() {
        let mut waits = Tally::default();
        waits.meet(Health::Unhealthy);
        assert_eq!(heard_by(waits, "+++---++"), "H....U.H");
        assert_eq!(heard_by(waits, "-++"), "..H");
        assert_eq!(heard_by(waits, "---++"), "..U.H");
    }

    #[test]
    fn an_endpoint_in_the_place_of_an_unhealthy_one_has_to_pass_as_often() {
        let settings = HealthChecks::every(EVERY);
        let mut tally = Tally::default();
        for _ in 0..3 {
            tally.hear(false, settings);
        }
        tally.meet(Health::Unhealthy);
        assert_eq!(heard_by(tally, "++"), ".H");
        // One that is said to be healthy has nothing to prove.
        let mut tally = Tally::default();
        tally.meet(Health::Healthy);
        assert_eq!(heard_by(tally, "++"), "..");
    }

    #[test]
    fn checks_hurry_while_they_disagree_with_what_is_believed() {
        let checks = HealthChecks::every(EVERY);
        let mut tally = Tally::default();
        for (passed, pause) in [
            (true, 1000),
            (false, 250),
            (false, 250),
            (false, 1000),
            (true, 250),
            (true, 1000),
        ] {
            tally.hear(passed, checks);
            assert_eq!(tally.pause(checks).as_millis(), pause);
        }
    }
}
