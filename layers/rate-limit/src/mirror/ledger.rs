//! All quotas that the answers for one key have told of, and the requests that are on their way.

use std::sync::Arc;

use super::{
    known::{At, Heard, Known, QuotaUnit, SECOND},
    told::{MOST, Reading},
};

/// After a service has asked to be left alone, one request goes each so often until there is an answer.
const PROBE_EVERY: At = SECOND;

/// What a request takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) requests: u64,
    pub(super) tokens: u64,
}

impl Cost {
    pub(super) fn of(self, unit: QuotaUnit) -> u64 {
        match unit {
            QuotaUnit::Requests => self.requests,
            QuotaUnit::Tokens => self.tokens,
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            tokens: self.tokens.saturating_add(other.tokens),
        }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            tokens: self.tokens.saturating_sub(other.tokens),
        }
    }
}

/// Why a request cannot go, and when it can.
#[derive(Clone, Debug)]
pub(super) struct Shut<'a> {
    pub(super) at: At,
    /// `None` if it is the service's `Retry-After`.
    pub(super) policy: Option<&'a Arc<str>>,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    known: Vec<Known>,
    /// By all requests ever.
    taken: Cost,
    in_flight: u64,
    held: Option<Held>,
}

/// The service wants to be left alone.
#[derive(Clone, Copy, Debug)]
struct Held {
    until: At,
    /// When one may go to see how it is.
    next: At,
}

impl Ledger {
    /// What a request of this cost waits for longest, if nothing is heard before; `None` if it may go now.
    pub(super) fn shut(&self, cost: Cost, now: At) -> Option<Shut<'_>> {
        let held = self.held.map(|held| held.next);
        self.longest(held, now, |known, cost_of, taken| {
            known.opens(cost_of(cost), taken, now)
        })
    }

    /// What a request of this cost that lets `ahead` go first will wait for, even if all goes well; `None` if for
    /// nothing.
    pub(super) fn hopes(&self, cost: Cost, ahead: Cost, now: At) -> Option<Shut<'_>> {
        let awaited = self.in_flight > 0 || ahead != Cost::default();
        let held = self.held.map(|held| match held {
            Held { until, .. } if now >= until && awaited => now,
            Held { next, .. } => next,
        });
        self.longest(held, now, |known, cost_of, taken| {
            known.hopes(cost_of(cost), cost_of(ahead), awaited, taken, now)
        })
    }

    fn longest(
        &self,
        held: Option<At>,
        now: At,
        when: impl Fn(&Known, &dyn Fn(Cost) -> u64, u64) -> At,
    ) -> Option<Shut<'_>> {
        let when = |known: &Known| {
            let unit = known.unit;
            when(known, &|cost| cost.of(unit), self.taken.of(unit))
        };
        let mut longest = held.map(|at| Shut { at, policy: None });
        for (index, known) in self.known.iter().enumerate() {
            let is_same = |other: &&Known| other.policy == known.policy;
            if self.known[..index].iter().any(|other| is_same(&other)) {
                continue;
            }
            // Which partition a request will be counted in only the service knows: the one with the most room.
            let partitions = self.known[index..].iter().filter(is_same);
            let at = partitions.map(when).min().unwrap_or(now);
            if longest.as_ref().is_none_or(|longest| longest.at < at) {
                let policy = Some(&known.policy);
                longest = Some(Shut { at, policy });
            }
        }
        longest.filter(|shut| shut.at > now)
    }

    /// Counts a request that goes now. What was taken with it is its mark.
    pub(super) fn take(&mut self, cost: Cost, now: At) -> Cost {
        for known in &mut self.known {
            known.take(cost.of(known.unit), self.taken.of(known.unit), now);
        }
        self.taken = self.taken.plus(cost);
        self.in_flight += 1;
        if let Some(held) = &mut self.held {
            held.next = now + PROBE_EVERY;
        }
        self.taken
    }

    /// Hears what the answer to the request of this mark has told. `jitter` is how much later than a reset the first
    /// request goes.
    pub(super) fn learn(
        &mut self,
        reading: &Reading<'_>,
        mark: Cost,
        sent: At,
        now: At,
        jitter: At,
    ) {
        let taken = self.taken;
        let heard = |unit| Heard {
            mark: mark.of(unit),
            taken: taken.of(unit),
            sent,
            now,
            jitter,
        };
        for told in reading.quotas() {
            let mut known = self.known.iter_mut();
            if let Some(known) = known.find(|known| known.is_told_by(told)) {
                // What it counts need not be told each time.
                known.learn(told, heard(known.unit));
            } else if self.known.len() < MOST {
                self.known.push(Known::new(told, heard(told.unit)));
            } else if let Some(idle) = self.known.iter_mut().find(|known| known.is_idle(now)) {
                *idle = Known::new(told, heard(told.unit));
            }
        }
    }

    /// Hears that a request is no longer on its way.
    pub(super) fn landed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Hears that the service wants to be left alone for so long. `reading` is what it told with that.
    pub(super) fn hold(&mut self, reading: Option<&Reading<'_>>, delay: At, now: At, jitter: At) {
        let until = now + delay;
        for told in reading.into_iter().flat_map(Reading::quotas) {
            let mut known = self.known.iter_mut();
            if let Some(known) = known.find(|known| known.is_told_by(told)) {
                known.retry_at(until, self.taken.of(known.unit));
            }
        }
        let until = until.max(self.held.map_or(until, |held| held.until));
        let next = until + jitter;
        self.held = Some(Held { until, next });
    }

    /// Hears that the service has answered, and not asked to be left alone.
    pub(super) fn unhold(&mut self, sent: At) {
        self.held = self.held.filter(|held| sent < held.until);
    }

    /// Hears that an answer has told of nothing.
    pub(super) fn silence(&mut self, sent: At) {
        self.known.retain(|known| !known.is_over(sent));
    }

    /// Counts a request that the service has never seen as not sent.
    pub(super) fn give_back(&mut self, cost: Cost, mark: Cost, sent: At) {
        for known in &mut self.known {
            known.give_back(cost.of(known.unit), mark.of(known.unit), sent);
        }
        if let Some(held) = &mut self.held
            && sent >= held.until
        {
            // The next one goes to see how it is.
            held.next = sent;
        }
    }

    pub(super) fn forget(&mut self) -> bool {
        let any = !self.known.is_empty() || self.held.is_some();
        self.known.clear();
        self.held = None;
        any
    }

    /// Whether knowing it changes nothing any more.
    pub(super) fn is_idle(&self, now: At) -> bool {
        self.in_flight == 0
            && self.held.is_none_or(|held| now >= held.until)
            && self.known.iter().all(|known| known.is_idle(now))
    }

    pub(super) fn known(&self) -> &[Known] {
        &self.known
    }

    /// What may go by this quota.
    pub(super) fn room(&self, known: &Known, now: At) -> u64 {
        known.room(self.taken.of(known.unit), now)
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(super) fn held_until(&self) -> Option<At> {
        self.held.map(|held| held.until)
    }

    /// The smallest share that is left of any quota.
    pub(super) fn share_left(&self, now: At) -> Option<f64> {
        let shares = self.known.iter().map(|known| {
            let room = self.room(known, now);
            room as f64 / known.limit() as f64
        });
        shares.min_by(f64::total_cmp)
    }
}

#[cfg(test)]
mod tests;
