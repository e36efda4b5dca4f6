//! One quota, as the answers have told of it.
//!
//! Takes times and numbers, and knows nothing of clocks, locks and headers.

use std::{sync::Arc, time::Duration};

use super::told::Told;

/// Nanoseconds since the mirror was made.
pub(super) type At = i64;

pub(super) const SECOND: At = 1_000_000_000;

/// The longest time that a service is believed to mean, after which one request goes anyway: a day. It is what
/// section 6.8 of the draft asks of clients, so that no answer silences them for good.
pub(super) const LONGEST: At = 24 * 60 * 60 * SECOND;

/// Services round to seconds, up or down.
const ROUNDING: At = SECOND;

/// With less than one in so many left, a quota is spent evenly.
const SCARCE: u64 = 5;

/// As many requests are taken to have cost what they were thought to, before any was seen.
const PRIOR: u64 = 4;

/// After so many, the older ones count half.
const MEMORY: u64 = 64;

/// What services count by whose quotas come back evenly, until they have told.
const MINUTE: At = 60 * SECOND;

pub(super) fn nanos(duration: Duration) -> At {
    At::try_from(duration.as_nanos()).map_or(LONGEST, |nanos| nanos.min(LONGEST))
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuotaUnit {
    /// Requests, or what the service makes of them.
    Requests,
    /// Tokens of a language model.
    Tokens,
}

/// How a quota comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refill {
    /// At its reset there is more, and only the next answer says how much.
    AtReset,
    /// All the time, until at its reset there is all.
    Evenly,
}

/// A quota, what was told to remain of it, and what becomes of that.
///
/// Counts in `taken`: all that the requests for this key have ever taken. An answer then says how far that may go
/// before the reset, and requests that are on their way are counted whether or not the service had seen them when it
/// wrote the answer.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) policy: Arc<str>,
    pub(super) partition: Option<Arc<str>>,
    pub(super) unit: QuotaUnit,
    refill: Refill,
    /// As told, or else the most that was ever told to remain; never zero.
    limit: u64,
    /// In this time the limit comes back: as told, or else the longest reset that was.
    window: At,
    /// How far `taken` may go until the reset.
    ceiling: u64,
    /// How far it had gone with the request whose answer said so.
    mark: u64,
    until: At,
    /// When that was learned.
    learned: At,
    /// When the request was sent whose answer told of this window first.
    since: At,
    /// How much later than the reset the first request goes.
    jitter: At,
    /// When the refill was at zero: of a quota that comes back at its reset, such that there is one then at least.
    empty: At,
    /// When the last request went.
    last: At,
    spent: Spent,
}

/// What was taken from the quota by whomever, and what of that was ours.
#[derive(Debug, Default)]
struct Spent {
    all: u64,
    ours: u64,
    /// What remained after the latest of our requests that was told of, and its mark.
    last: (u64, u64),
}

impl Spent {
    fn begin(&mut self, remaining: u64, mark: u64) {
        self.last = (remaining, mark);
    }

    fn add(&mut self, remaining: u64, mark: u64) {
        let (before, last) = self.last;
        if mark <= last {
            return;
        }
        self.all = self.all.saturating_add(before.saturating_sub(remaining));
        self.ours = self.ours.saturating_add(mark - last);
        self.last = (remaining, mark);
        while self.ours > MEMORY {
            self.all /= 2;
            self.ours /= 2;
        }
    }

    /// `amount`, times what the quota loses for each of ours.
    fn price(&self, amount: i128) -> i128 {
        let all = i128::from(self.all.max(self.ours)) + i128::from(PRIOR);
        amount.saturating_mul(all) / (i128::from(self.ours) + i128::from(PRIOR))
    }
}

/// An answer, as it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    /// How far `taken` had gone with the request, and how far it has now.
    pub(super) mark: u64,
    pub(super) taken: u64,
    pub(super) sent: At,
    pub(super) now: At,
    /// How much later than the reset the first request goes.
    pub(super) jitter: At,
}

impl Known {
    pub(super) fn new(told: &Told<'_>, heard: Heard) -> Self {
        let now = heard.now;
        let mut known = Self {
            policy: told.policy.keep(),
            partition: told.partition.map(Into::into),
            unit: told.unit,
            refill: told.refill,
            limit: 1,
            window: 1,
            ceiling: 0,
            mark: 0,
            until: now,
            learned: now,
            since: now,
            jitter: 0,
            empty: now,
            last: At::MIN,
            spent: Spent::default(),
        };
        known.size(told);
        known.replace(told, heard);
        known.spent.begin(told.remaining, heard.mark);
        known
    }

    pub(super) fn is_told_by(&self, told: &Told<'_>) -> bool {
        self.partition.as_deref() == told.partition && told.policy.is(&self.policy)
    }

    /// Hears of an answer.
    ///
    /// Answers overtake each other. What a request learned that was sent before the newest answer was there may be
    /// older than that: it lowers what remains, and never raises it. A reset lies between `sent` and `now`, plus what
    /// was told, and so tells one window from the next whatever the order of the answers.
    pub(super) fn learn(&mut self, told: &Told<'_>, heard: Heard) {
        let size = (self.limit, self.window);
        self.size(told);
        let Heard {
            mark, sent, now, ..
        } = heard;
        let causal = sent > self.learned;
        if self.refill == Refill::Evenly {
            self.spent.add(told.remaining, mark);
            if causal || self.empty_by(told, heard) > self.empty {
                self.replace(told, heard);
            } else {
                (self.limit, self.window) = size;
            }
            return;
        }
        let (earliest, latest) = (sent + told.reset, now + told.reset);
        let follows = sent >= self.since;
        let ceiling = told.remaining.saturating_add(mark);
        if sent >= self.go() || (earliest > self.until + ROUNDING && follows) {
            self.replace(told, heard);
            self.spent.begin(told.remaining, mark);
        } else if latest + ROUNDING < self.until {
            // A service whose resets come nearer as less remains, or an answer from the window before.
            if causal || (follows && ceiling < self.ceiling) {
                self.replace(told, heard);
                self.spent.add(told.remaining, mark);
            }
        } else if earliest <= self.until + ROUNDING {
            self.spent.add(told.remaining, mark);
            // Whichever way the service rounds, not before its reset; and if more has come back since, the reset is
            // counted from then.
            let raises = causal && ceiling > self.ceiling;
            let until = if raises { latest } else { earliest };
            if causal || ceiling < self.ceiling {
                (self.ceiling, self.mark) = (ceiling, mark);
            }
            self.learned = now;
            if now < self.until {
                self.reset_at(self.until.max(until), heard.taken);
            }
        }
    }

    /// Hears that the service wants to be left alone until then, which goes before what it said of its reset.
    pub(super) fn retry_at(&mut self, at: At, taken: u64) {
        if self.refill == Refill::AtReset && self.ceiling <= taken {
            self.reset_at(at, taken);
        }
    }

    /// When a request of this cost may go, if nothing is heard before: `now` if it may now.
    pub(super) fn opens(&self, cost: u64, taken: u64, now: At) -> At {
        // What is more than all goes when all is there: the service decides about it.
        let cost = cost.min(self.limit);
        let room = self.room(taken, now);
        if cost == 0 {
            return now;
        }
        if room < cost {
            return match self.refill {
                Refill::AtReset if now < self.go() => self.full_to(cost).max(self.go()),
                _ => self.full_to(cost).max(now),
            };
        }
        match self.refill {
            Refill::AtReset if now >= self.go() => now,
            _ if !self.scarce(room) => now,
            Refill::AtReset => self.paced(cost, room).clamp(now, self.go()),
            Refill::Evenly => self.paced(cost, room).clamp(now, self.until.max(now)),
        }
    }

    /// When a request of this cost may go that lets `ahead` go first: no later than this if all goes well. `awaited`
    /// says whether there is an answer to come before.
    pub(super) fn hopes(&self, cost: u64, ahead: u64, awaited: bool, taken: u64, now: At) -> At {
        if cost == 0 {
            return now;
        }
        if self.refill == Refill::AtReset && now >= self.go() && awaited {
            // It may say that there is room for all.
            return now;
        }
        if ahead == 0 {
            return self.opens(cost, taken, now);
        }
        let all = cost.saturating_add(ahead);
        let room = self.room(taken, now);
        match self.refill {
            Refill::AtReset if now >= self.go() => now,
            Refill::AtReset if room < all => {
                let windows = i128::from((all - room - 1) / self.limit);
                later(self.go(), i128::from(self.window) * windows)
            }
            Refill::AtReset if self.scarce(room) => self.paced(all, room).clamp(now, self.go()),
            Refill::AtReset => now,
            Refill::Evenly => self.full_to(all).max(now),
        }
    }

    /// Takes what [`opens`](Self::opens) has let go. `taken` is without it.
    pub(super) fn take(&mut self, cost: u64, taken: u64, now: At) {
        self.last = now;
        if self.refill == Refill::AtReset && now < self.go() {
            self.reset_at(self.until, taken.saturating_add(cost));
        } else {
            let from = self.empty.max(now.saturating_sub(self.window));
            self.empty = from.saturating_add(self.time_for(cost.min(self.limit)));
        }
    }

    /// Counts a request that the service has never seen as not sent. `mark` is what [`take`](Self::take) made of
    /// `taken`.
    pub(super) fn give_back(&mut self, cost: u64, mark: u64, sent: At) {
        if mark <= self.mark {
            // Already counted by what was told since.
            return;
        }
        if self.refill == Refill::AtReset {
            self.ceiling = self.ceiling.saturating_add(cost);
        }
        if self.refill == Refill::Evenly || sent >= self.go() {
            let time = self.time_for(cost.min(self.limit));
            self.empty = self.empty.saturating_sub(time);
        }
    }

    /// Whether the service has answered a request that was sent after the reset, and has not told of this quota.
    pub(super) fn is_over(&self, sent: At) -> bool {
        sent >= self.until
    }

    /// Whether knowing it changes nothing any more.
    pub(super) fn is_idle(&self, now: At) -> bool {
        now >= self.full_to(self.limit).max(self.until)
    }

    /// What may go at once, were it not spent evenly; after the reset, before an answer tells.
    pub(super) fn room(&self, taken: u64, now: At) -> u64 {
        if self.refill == Refill::AtReset && now < self.go() {
            return self.ceiling.saturating_sub(taken).min(self.limit);
        }
        let since = i128::from(now.saturating_sub(self.empty).max(0));
        let level = since * i128::from(self.limit) / i128::from(self.window);
        u64::try_from(level).map_or(self.limit, |level| level.min(self.limit))
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn until(&self) -> At {
        self.until
    }

    fn size(&mut self, told: &Told<'_>) {
        let most = self.limit.max(told.remaining);
        self.limit = told.limit.unwrap_or(most).max(told.remaining).max(1);
        let longest = match told.refill {
            Refill::AtReset => self.window.max(told.reset),
            // What is missing comes back in the time told, unless that is so short that it was rounded away.
            Refill::Evenly => match self.limit - told.remaining {
                missing @ 1.. if told.reset >= ROUNDING => {
                    let window = i128::from(told.reset) * i128::from(self.limit);
                    later(0, window / i128::from(missing))
                }
                _ if self.window > 1 => self.window,
                _ => MINUTE,
            },
        };
        self.window = told.window.unwrap_or(longest).clamp(1, LONGEST);
    }

    fn replace(&mut self, told: &Told<'_>, heard: Heard) {
        self.ceiling = told.remaining.saturating_add(heard.mark);
        self.mark = heard.mark;
        self.learned = heard.now;
        self.since = heard.sent;
        match self.refill {
            Refill::AtReset => {
                self.jitter = heard.jitter;
                self.reset_at(heard.now + told.reset, heard.taken);
            }
            Refill::Evenly => {
                self.until = heard.now + told.reset;
                self.empty = self.empty_by(told, heard);
            }
        }
    }

    /// When the refill was at zero, or will be when it has made up for what was taken since.
    fn empty_by(&self, told: &Told<'_>, heard: Heard) -> At {
        let there = self.time_for(told.remaining.min(self.limit));
        let since = self.time_for(heard.taken.saturating_sub(heard.mark).min(self.limit));
        heard.now.saturating_sub(there).saturating_add(since)
    }

    /// What is left then is not lost.
    fn reset_at(&mut self, at: At, taken: u64) {
        self.until = at;
        let spare = self.ceiling.saturating_sub(taken).min(self.limit);
        let there = self.time_for(spare.max(1));
        self.empty = self.go().saturating_sub(there);
    }

    /// The reset, and a little later.
    fn go(&self) -> At {
        self.until.saturating_add(self.jitter)
    }

    fn scarce(&self, room: u64) -> bool {
        room.saturating_mul(SCARCE) <= self.limit
    }

    /// When a request of this cost goes if what is left is spent evenly.
    fn paced(&self, cost: u64, room: u64) -> At {
        if self.last == At::MIN {
            return At::MIN;
        }
        let gap = match self.refill {
            Refill::AtReset => {
                let left = i128::from(self.go().saturating_sub(self.last).max(0));
                // What is left now was so much more when the last one went.
                left * i128::from(cost) / i128::from(room.saturating_add(cost).max(1))
            }
            Refill::Evenly => i128::from(self.time_for(cost)),
        };
        later(self.last, self.spent.price(gap))
    }

    /// When so much has come back.
    fn full_to(&self, level: u64) -> At {
        self.empty.saturating_add(self.time_for(level))
    }

    /// The time in which so much comes back, rounded up.
    fn time_for(&self, amount: u64) -> At {
        let limit = i128::from(self.limit);
        let time = (i128::from(amount) * i128::from(self.window) + limit - 1) / limit;
        later(0, time)
    }
}

/// No later than after the longest time there is.
fn later(at: At, time: i128) -> At {
    let time = At::try_from(time).unwrap_or(LONGEST).min(366 * LONGEST);
    at.saturating_add(time)
}

#[cfg(test)]
mod tests;
