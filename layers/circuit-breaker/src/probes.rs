//! The probes of a half-open circuit.

use std::time::Duration;

use tokio::time::Instant;

/// How often the patience with probes doubles at most: from 10 s to over 5 min.
const DOUBLINGS: u32 = 5;

/// With no patience at all every probe would be given up before it is sent.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(1);

/// A year: more, doubled, would not fit into an instant.
const LONGEST_PATIENCE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Which probes are out, and how many must still pass.
///
/// Every one that passes makes room for two, as in TCP's slow start: one, two, four at a time.
#[derive(Debug)]
pub(crate) struct Probes {
    out: u32,
    passed: u32,
    missing: u32,
    patience: Duration,
    lost: u32,
    newest: Instant,
}

impl Probes {
    /// `missing` probes must pass, and are waited for this long.
    pub(crate) fn new(missing: u32, patience: Duration, now: Instant) -> Self {
        Self {
            out: 0,
            passed: 0,
            missing: missing.max(1),
            patience: patience.clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE),
            lost: 0,
            newest: now,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.out < self.missing.min(self.passed.saturating_add(1))
    }

    pub(crate) fn send(&mut self, now: Instant) {
        self.out += 1;
        self.newest = self.newest.max(now);
    }

    /// True when this was the last that had to.
    pub(crate) fn pass(&mut self) -> bool {
        self.out -= 1;
        self.passed += 1;
        self.missing -= 1;
        self.missing == 0
    }

    pub(crate) fn give_back(&mut self) {
        self.out -= 1;
    }

    /// When all that are out are given up, counted from the newest: one instant is enough.
    pub(crate) fn lost_at(&self) -> Instant {
        self.newest + self.patience * (1 << self.lost)
    }

    pub(crate) fn are_lost(&self, now: Instant) -> bool {
        self.out > 0 && now >= self.lost_at()
    }

    /// Waits no longer for those that are out.
    ///
    /// The next get twice the time: a service that takes longer than the patience to answer at all is found to work
    /// in the end, although nobody listens to a probe that was given up.
    pub(crate) fn give_up(&mut self) {
        self.out = 0;
        self.lost = DOUBLINGS.min(self.lost + 1);
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::time::now;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Sends probes until there is no more room.
    fn fill(probes: &mut Probes, now: Instant) -> u32 {
        let mut sent = 0;
        while probes.has_room() {
            probes.send(now);
            sent += 1;
        }
        sent
    }

    #[test]
    fn one_goes_first_then_two_then_four_and_never_more_than_are_missing() {
        let mut probes = Probes::new(10, PATIENCE, now());
        let mut rounds = Vec::new();
        loop {
            let sent = fill(&mut probes, now());
            rounds.push(sent);
            if (0..sent).any(|_| probes.pass()) {
                break;
            }
        }
        assert_eq!(rounds, [1, 2, 4, 3]);
    }

    #[test]
    fn any_patience_will_do() {
        let now = now();
        let lost_at = |patience| Probes::new(1, patience, now).lost_at();
        assert_eq!(lost_at(Duration::ZERO), now + SHORTEST_PATIENCE);
        assert_eq!(lost_at(Duration::MAX), now + LONGEST_PATIENCE);
    }

    #[test]
    fn patience_is_counted_from_the_newest_and_doubles_five_times() {
        let now = now();
        let mut probes = Probes::new(1, PATIENCE, now);
        for doubled in [1, 2, 4, 8, 16, 32, 32, 32] {
            probes.send(now + PATIENCE);
            assert_eq!(probes.lost_at(), now + PATIENCE + PATIENCE * doubled);
            assert!(!probes.has_room());
            probes.give_up();
            assert!(probes.has_room());
        }
    }
}
