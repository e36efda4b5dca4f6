//! What ended in one second.

use std::{
    cmp::Ordering,
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use palisade::classify::Verdict;

use super::times::Times;
use crate::{identity::Caller, record::Record};

/// Requests of a second that are shown one by one.
pub(super) const LISTED: usize = 3;

/// Endpoints whose answers are timed; those beyond count in the totals only.
const ENDPOINTS: usize = 128;

/// Callers of a second who are looked at for their limits.
const CALLERS: usize = 32;

/// Rules and callers of a second whose refusals are counted apart.
const REFUSALS: usize = 16;

/// What ended in one second. Everything in it is bounded, and kept for the next one.
#[derive(Debug, Default)]
pub(super) struct Second {
    pub(super) ended: u64,
    pub(super) rejected: u64,
    pub(super) failed: u64,
    pub(super) tokens_in: u64,
    pub(super) tokens_out: u64,
    pub(super) attempts: u64,
    /// Those that a backend was asked for.
    pub(super) attempted: u64,
    pub(super) total: Times,
    pub(super) first_token: Times,
    /// What the gateway itself took of them.
    pub(super) own: Times,
    pub(super) endpoints: HashMap<Arc<str>, Times>,
    pub(super) listed: Vec<Record>,
    pub(super) seen: Vec<Seen>,
    pub(super) refused: Vec<Refused>,
}

/// Somebody who asks for a model.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) hash: u64,
    pub(super) caller: Arc<Caller>,
    pub(super) model: Option<Arc<str>>,
    pub(super) count: u32,
}

/// How often a rule refused somebody.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) rule: Arc<str>,
    pub(super) who: Seen,
}

impl Second {
    /// Counts a request; `hasher` when its caller matters.
    pub(super) fn count(&mut self, record: &Record, hasher: Option<&RandomState>) {
        self.ended += 1;
        match record.verdict {
            Verdict::Refused(_) => self.rejected += 1,
            Verdict::Failure | Verdict::Overload { .. } | Verdict::TimedOut | Verdict::Unsent => {
                self.failed += 1;
            }
            _ => {}
        }
        if let Some(usage) = record.usage {
            // Whatever a backend claims.
            self.tokens_in = self.tokens_in.saturating_add(usage.prompt);
            self.tokens_out = self.tokens_out.saturating_add(usage.completion);
        }
        if record.attempts > 0 {
            self.attempts += u64::from(record.attempts);
            self.attempted += 1;
        }
        if let Some(first) = record.first_token {
            self.first_token.record(first);
        }
        if let Some(own) = record.own {
            self.own.record(own);
        }
        if let Some(backend) = &record.backend
            && record.attempts > 0
            && !matches!(record.verdict, Verdict::Canceled | Verdict::Refused(_))
        {
            self.total.record(record.took);
            self.of_endpoint(backend).record(record.took);
        }
        self.list(record, self.ended);
        if let (Some(hasher), Some(caller)) = (hasher, &record.caller) {
            let known = (caller.subject(), caller.key(), caller.address);
            let hash = hasher.hash_one((known, &record.model));
            self.see(hash, caller, record);
        }
    }

    fn of_endpoint(&mut self, name: &Arc<str>) -> &mut Times {
        if self.endpoints.len() >= ENDPOINTS && !self.endpoints.contains_key(name) {
            // Nobody's; cleared with the others.
            return self.endpoints.entry("".into()).or_default();
        }
        self.endpoints.entry(name.clone()).or_default()
    }

    /// Keeps it if it says more than one of those that are kept; of those that say as much, some.
    fn list(&mut self, record: &Record, of: u64) {
        if self.listed.len() < LISTED {
            self.listed.push(record.clone());
            return;
        }
        let Some(least) = self.listed.iter_mut().min_by_key(|kept| weight(kept)) else {
            return;
        };
        let is_drawn = || rand::random_range(0..of.max(1)) < LISTED as u64;
        match weight(record).cmp(&weight(least)) {
            Ordering::Greater => *least = record.clone(),
            Ordering::Equal if is_drawn() => {
                let place = rand::random_range(0..LISTED);
                let kept = &mut self.listed[place];
                if weight(kept) == weight(record) {
                    *kept = record.clone();
                }
            }
            _ => {}
        }
    }

    fn see(&mut self, hash: u64, caller: &Arc<Caller>, record: &Record) {
        let seen = || Seen {
            hash,
            caller: caller.clone(),
            model: record.model.clone(),
            count: 1,
        };
        if let Some(seen) = self.seen.iter_mut().find(|seen| seen.hash == hash) {
            seen.count = seen.count.saturating_add(1);
        } else if self.seen.len() < CALLERS {
            self.seen.push(seen());
        }
        let Some(rule) = record.rule.as_ref() else {
            return;
        };
        let is_same = |it: &&mut Refused| it.who.hash == hash && it.rule == *rule;
        if let Some(refused) = self.refused.iter_mut().find(is_same) {
            refused.who.count = refused.who.count.saturating_add(1);
        } else if self.refused.len() < REFUSALS {
            self.refused.push(Refused {
                rule: rule.clone(),
                who: seen(),
            });
        }
    }

    /// Takes all of the other, which is empty then and keeps its room.
    pub(super) fn take(&mut self, other: &mut Self) {
        for (mine, theirs) in [
            (&mut self.ended, &mut other.ended),
            (&mut self.rejected, &mut other.rejected),
            (&mut self.failed, &mut other.failed),
            (&mut self.tokens_in, &mut other.tokens_in),
            (&mut self.tokens_out, &mut other.tokens_out),
            (&mut self.attempts, &mut other.attempts),
            (&mut self.attempted, &mut other.attempted),
        ] {
            *mine = mine.saturating_add(std::mem::take(theirs));
        }
        for (mine, theirs) in [
            (&mut self.total, &mut other.total),
            (&mut self.first_token, &mut other.first_token),
            (&mut self.own, &mut other.own),
        ] {
            mine.add(theirs);
            theirs.clear();
        }
        for (name, times) in &mut other.endpoints {
            if times.quantile(1.0).is_some() {
                self.of_endpoint(name).add(times);
                times.clear();
            }
        }
        // Endpoints come and go; what no room is left for has to make some.
        if other.endpoints.len() >= ENDPOINTS {
            other.endpoints.clear();
        }
        for record in other.listed.drain(..) {
            // As likely as those of the other threads.
            self.list(&record, 2 * LISTED as u64);
        }
        self.seen.append(&mut other.seen);
        self.refused.append(&mut other.refused);
    }

    /// Forgets all but the room.
    pub(super) fn clear(&mut self) {
        Self::default().take(self);
    }
}

/// How much there is to see in a request.
pub(super) fn weight(record: &Record) -> u8 {
    match record.verdict {
        Verdict::Success => 0,
        Verdict::Canceled | Verdict::CallerFault => 1,
        Verdict::Refused(_) => 2,
        _ => 3,
    }
}
