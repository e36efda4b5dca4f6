//! Where a fleet looks for the next endpoint, and what it is told to obey while it does.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    eject::{Ejection, Mode},
    panic::Panic,
    slot::{Clock, Doubtful, Slot},
    strategy::{Reach, Strategy, price::Field},
};

use super::{
    Fleet, Item, Need, SCAN, Want,
    levels::Ring,
    scan::{Belief, Scan, Tally},
};

/// How often a fleet is counted that is too large to be looked at as a whole.
const COUNT_EVERY: u64 = 10_000_000;

/// When looking again may help, and what is chosen.
type Found = (u64, Option<(usize, Doubtful)>);

impl<T: Item> Fleet<T> {
    #[inline(always)]
    pub(super) fn seek(&mut self, clock: &Clock, need: &Need, want: &impl Fn(&T) -> Want) -> Found {
        let mut field = self.field(need, clock);
        self.sort();
        if self.levels.is_single() {
            self.seek_among_all(clock, &mut field, want)
        } else {
            self.seek_by_level(clock, need, &mut field, want)
        }
    }

    /// Not where every choice has to carry it along.
    #[cold]
    #[inline(never)]
    pub(super) fn seek_again(
        &mut self,
        found: Found,
        clock: &Clock,
        need: &Need,
        want: &impl Fn(&T) -> Want,
    ) -> Found {
        if self.spare(clock) {
            return self.seek(clock, need, want);
        }
        found
    }

    /// Where all endpoints are on one level.
    #[inline(always)]
    fn seek_among_all(
        &mut self,
        clock: &Clock,
        field: &mut Field,
        want: &impl Fn(&T) -> Want,
    ) -> Found {
        let len = self.slots.len();
        let ring = Ring::of_all(len);
        self.among(ring, field, clock);
        if self.samples(ring, field) {
            self.count_if_due(clock);
            let belief = self.belief(self.tally);
            let mut found = Scan::default();
            self.sample(&mut found, ring, clock, field, want);
            // Among all there may be one that is not wanted last.
            let best = found.best_wanted(belief);
            if best.is_some() {
                return (found.until, best);
            }
        }
        self.first = if self.first + 1 < len {
            self.first + 1
        } else {
            0
        };
        let mut found = Scan::default();
        self.scan(&mut found, ring.from(self.first, len), clock, field, want);
        let belief = self.belief(found.tally);
        let best = found.best(belief);
        (found.until, best)
    }

    /// Where some are nearer than others, or come before them.
    fn seek_by_level(
        &mut self,
        clock: &Clock,
        need: &Need,
        field: &mut Field,
        want: &impl Fn(&T) -> Want,
    ) -> Found {
        if self.slots.len() <= SCAN {
            self.count(clock);
        } else {
            self.count_if_due(clock);
        }
        let belief = self.belief(self.tally);
        let levels = self.levels.number();
        let drawn = self.levels.draw(self.point(need));
        self.first = self.first.wrapping_add(1);
        let mut found = Scan::default();
        // Nobody else would find out that a nearer endpoint works again.
        for level in 0..drawn {
            if !self.levels.has_due(level) {
                continue;
            }
            let mut probes = Scan::default();
            self.scan_level(&mut probes, level, belief, clock, field, want);
            found.take_due(&probes);
            let best = found.best_wanted(belief);
            if best.is_some() {
                return (found.until, best);
            }
        }
        // Rather one that is farther than none.
        for level in (drawn..levels).chain(0..drawn) {
            self.scan_level(&mut found, level, belief, clock, field, want);
            let best = found.best_wanted(belief);
            if best.is_some() {
                return (found.until, best);
            }
        }
        let best = found.best(belief);
        (found.until, best)
    }

    fn scan_level(
        &mut self,
        found: &mut Scan,
        level: usize,
        belief: Belief,
        clock: &Clock,
        field: &mut Field,
        want: &impl Fn(&T) -> Want,
    ) {
        let ring = self.levels.ring(level);
        self.among(ring, field, clock);
        if self.samples(ring, field) {
            self.sample(found, ring, clock, field, want);
            if found.best_wanted(belief).is_some() {
                return;
            }
        }
        let first = self.first % ring.len;
        self.scan(found, ring.from(first, ring.len), clock, field, want);
    }

    /// Whether a choice looks at a part of so many first.
    fn samples(&self, ring: Ring, field: &Field) -> bool {
        match self.strategy.reach(field.belongs) {
            Reach::Two => true,
            Reach::Some => ring.len > SCAN,
            Reach::All => false,
        }
    }

    /// Looks at those that the strategy draws.
    fn sample(
        &mut self,
        found: &mut Scan,
        ring: Ring,
        clock: &Clock,
        field: &Field,
        want: &impl Fn(&T) -> Want,
    ) {
        if self.strategy.reach(field.belongs) == Reach::Two {
            for at in self.draw(ring, clock).into_iter().flatten() {
                self.scan(found, ring.from(at, 1), clock, field, want);
            }
        } else {
            let first = self.coin.below(ring.len);
            self.scan(found, ring.from(first, SCAN), clock, field, want);
        }
    }

    /// What belongs together goes to the same level as long as the levels do as they did.
    fn point(&self, need: &Need) -> Option<f64> {
        let affinity = need.affinity?;
        (self.strategy == Strategy::ConsistentHash)
            .then(|| (affinity >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// Sorts the endpoints by level, if that is to be done.
    pub(super) fn sort(&mut self) {
        if self.levels.stale {
            self.levels.sort(&mut self.slots, self.zone.as_deref());
        }
    }

    fn count_if_due(&mut self, clock: &Clock) {
        if clock.now >= self.count_due {
            self.count_due = clock.now + COUNT_EVERY;
            self.count(clock);
        }
    }

    fn count(&mut self, clock: &Clock) {
        let mut tally = Tally::default();
        self.levels.begin_count();
        for slot in self.slots.iter_mut().flatten() {
            let standing = slot.standing(clock);
            tally.count(slot.duty, standing);
            self.levels.count(slot, standing);
        }
        self.levels.end_count();
        self.tally = tally;
    }

    fn belief(&mut self, tally: Tally) -> Belief {
        self.panics = tally.panics();
        self.belief = tally.belief(&self.rules, self.panic);
        self.belief
    }

    /// Whether the last pick has found too few that may be picked.
    pub(crate) fn panics(&self) -> bool {
        self.panics
    }

    /// Whether requests are refused for that.
    pub(crate) fn refuses(&self) -> bool {
        self.panics && self.panic == Panic::Refuse
    }

    /// Whether too few may be picked now.
    pub(crate) fn panics_now(&mut self, now: Instant) -> bool {
        let clock = self.clock(now);
        self.sort();
        self.count(&clock);
        self.panics = self.tally.panics();
        self.panics
    }

    pub(crate) fn rules(&self) -> Ejection {
        self.rules
    }

    /// Other rules of ejection hold from now on.
    pub(crate) fn obey(&mut self, rules: Ejection, now: Instant) {
        let now = self.clock(now).now;
        self.rules = rules;
        for slot in self.slots.iter_mut().flatten() {
            slot.obey(&rules, now);
        }
    }

    /// Whether what has been ejected is let through all the same.
    pub(crate) fn is_shadow(&self) -> bool {
        self.rules.mode == Mode::Shadow
    }

    /// Endpoints of this zone are near from now on, and all if there is none.
    pub(crate) fn set_zone(&mut self, zone: Option<Arc<str>>) {
        self.zone = zone;
        self.levels.stale = true;
        self.count_due = 0;
    }

    /// Changes what its level depends on. Says whether there is such an endpoint.
    pub(crate) fn place(
        &mut self,
        which: impl Fn(&T) -> bool,
        change: impl FnOnce(&mut Slot<T>),
    ) -> bool {
        let found = self.find(which).map(change).is_some();
        self.levels.stale |= found;
        self.count_due = 0;
        found
    }
}
