//! The probes of a half-open circuit.

use std::time::Duration;

use palisade_core::ratio::Ratio;
use tokio::time::Instant;

use crate::settings::Settings;

/// How often the patience with probes doubles at most: from 10 s to over 5 min.
const DOUBLINGS: u32 = 5;

/// Which probes are out, and how those before them have ended.
///
/// Every one that passes makes room for two, as in TCP's slow start: one, two, four at a time.
#[derive(Debug)]
pub(crate) struct Probes {
    out: u32,
    passed: u32,
    failed: u32,
    total: u32,
    needed: u32,
    share: Option<Ratio>,
    patience: Duration,
    lost: u32,
    newest: Instant,
    /// When they are decided about at the latest.
    until: Option<Instant>,
}

/// What the probes say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Works,
    Fails,
    /// Not yet known.
    Unsure,
}

impl Probes {
    pub(crate) fn new(settings: &Settings, now: Instant) -> Self {
        let total = settings.probes;
        Self {
            out: 0,
            passed: 0,
            failed: 0,
            total,
            needed: settings.passing.map_or(total, |share| needed(share, total)),
            share: settings.passing,
            patience: settings.probe_timeout,
            lost: 0,
            newest: now,
            until: settings.longest_half_open.map(|longest| now + longest),
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.out < self.permits()
    }

    /// How many may be out.
    pub(crate) fn permits(&self) -> u32 {
        let missing = self.total - self.passed - self.failed;
        missing.min(self.passed.saturating_add(1))
    }

    pub(crate) fn send(&mut self, now: Instant) {
        self.out += 1;
        self.newest = self.newest.max(now);
    }

    pub(crate) fn pass(&mut self) -> Word {
        self.out -= 1;
        self.passed += 1;
        self.word()
    }

    pub(crate) fn fail(&mut self) -> Word {
        self.out -= 1;
        self.failed += 1;
        self.word()
    }

    /// One that had passed has failed after all.
    pub(crate) fn fail_later(&mut self) -> Word {
        self.passed -= 1;
        self.failed += 1;
        self.word()
    }

    pub(crate) fn give_back(&mut self) {
        self.out -= 1;
    }

    /// When all that are out are given up, counted from the newest: one instant is enough.
    fn lost_at(&self) -> Instant {
        self.newest + self.patience * (1 << self.lost)
    }

    pub(crate) fn are_lost(&self, now: Instant) -> bool {
        self.out > 0 && now >= self.lost_at()
    }

    /// When something changes by itself while there is no room.
    pub(crate) fn changes_at(&self) -> Instant {
        let lost_at = self.lost_at();
        self.until.map_or(lost_at, |until| until.min(lost_at))
    }

    pub(crate) fn are_overdue(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until)
    }

    /// What they say together if no more are to come: that nobody has said a word is no good sign.
    pub(crate) fn last_word(&self) -> Word {
        let ended = self.passed + self.failed;
        let enough = self
            .share
            .map_or(self.failed == 0, |share| share.reached(self.passed, ended));
        match self.passed > 0 && enough {
            true => Word::Works,
            false => Word::Fails,
        }
    }

    /// Waits no longer for those that are out.
    ///
    /// The next get twice the time: a service that takes longer than the patience to answer at all is found to work
    /// in the end, although nobody listens to a probe that was given up.
    pub(crate) fn give_up(&mut self) {
        self.out = 0;
        self.lost = DOUBLINGS.min(self.lost + 1);
    }

    fn word(&self) -> Word {
        if self.passed >= self.needed {
            Word::Works
        } else if self.failed > self.total - self.needed {
            Word::Fails
        } else {
            Word::Unsure
        }
    }
}

/// The fewest of `total` that are this share of it.
fn needed(share: Ratio, total: u32) -> u32 {
    let rounded = (share.get() * f64::from(total)).ceil() as u32;
    // 0.55 * 100.0 is above 55.
    match rounded.clamp(1, total) {
        fewer if fewer > 1 && share.reached(fewer - 1, total) => fewer - 1,
        exactly => exactly,
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::time::now;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn settings(probes: u32) -> Settings {
        let mut settings = Settings::consecutive(1, Duration::ZERO);
        settings.probes = probes;
        settings.probe_timeout = PATIENCE;
        settings
    }

    fn passing(probes: u32, share: f64) -> Probes {
        let mut settings = settings(probes);
        settings.passing = Ratio::new(share).ok();
        Probes::new(&settings, now())
    }

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
        let mut probes = Probes::new(&settings(10), now());
        let mut rounds = Vec::new();
        loop {
            let sent = fill(&mut probes, now());
            rounds.push(sent);
            if (0..sent).any(|_| probes.pass() == Word::Works) {
                break;
            }
        }
        assert_eq!(rounds, [1, 2, 4, 3]);
    }

    #[test]
    fn a_share_is_reached_by_the_fewest_that_are_it() {
        for (share, total, fewest) in [
            (0.5, 1, 1),
            (0.5, 3, 2),
            (0.55, 100, 55),
            (0.6, 5, 3),
            (1.0, 7, 7),
            (1e-9, 9, 1),
        ] {
            assert_eq!(
                needed(Ratio::new(share).unwrap(), total),
                fewest,
                "{share} of {total}"
            );
        }
    }

    #[test]
    fn with_a_share_the_word_is_known_as_soon_as_the_others_cannot_change_it() {
        let now = now();
        let mut works = passing(5, 0.6);
        for word in [Word::Unsure, Word::Unsure, Word::Works] {
            works.send(now);
            assert_eq!(works.pass(), word);
        }
        let mut fails = passing(5, 0.6);
        for word in [Word::Unsure, Word::Unsure, Word::Fails] {
            fails.send(now);
            assert_eq!(fails.fail(), word);
        }
        let mut later = passing(2, 0.5);
        later.send(now);
        assert_eq!(later.fail(), Word::Unsure);
        later.send(now);
        assert_eq!(later.pass(), Word::Works);
        assert_eq!(later.fail_later(), Word::Fails);
    }

    #[test]
    fn when_time_is_up_those_that_have_ended_decide_and_none_is_no_good_sign() {
        let mut settings = settings(5);
        settings.longest_half_open = Some(PATIENCE / 2);
        let start = now();
        let mut probes = Probes::new(&settings, start);
        assert_eq!(probes.last_word(), Word::Fails);
        probes.send(start);
        assert_eq!(probes.changes_at(), start + PATIENCE / 2);
        assert!(!probes.are_overdue(start + PATIENCE / 2 - Duration::from_nanos(1)));
        assert!(probes.are_overdue(start + PATIENCE / 2));
        probes.pass();
        assert_eq!(probes.last_word(), Word::Works);
    }

    #[test]
    fn patience_is_counted_from_the_newest_and_doubles_five_times() {
        let now = now();
        let mut probes = Probes::new(&settings(1), now);
        for doubled in [1, 2, 4, 8, 16, 32, 32, 32] {
            probes.send(now + PATIENCE);
            assert_eq!(probes.lost_at(), now + PATIENCE + PATIENCE * doubled);
            assert!(!probes.has_room());
            probes.give_up();
            assert!(probes.has_room());
        }
    }
}
