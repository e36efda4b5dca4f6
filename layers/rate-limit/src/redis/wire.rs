//! What is sent to the scripts and what they answer: numbers that a double keeps exactly.

use redis::Value;

use crate::{
    central::{Answer, Ask, Change, Course, Ends, Plan, Subject},
    meter::{Full, Standing},
};

/// The largest number that scripts are given.
const MOST: u64 = 1 << 53;

/// Bytes of an ask.
pub(super) const ASK: usize = 50;

/// Numbers that answer an ask.
pub(super) fn width(plan: &Plan) -> usize {
    match plan {
        Plan::TokenBucket { .. } | Plan::InFlight { .. } => 2,
        Plan::FixedWindow { .. } => 3,
        Plan::SlidingWindow { .. } => 4,
        Plan::SlidingLog { .. } => 5,
    }
}

/// What comes before the asks: whether they take, among how many a shortage is shared, and the time, which is the
/// server's unless a test sets it, in microseconds.
pub(super) fn head(takes: bool, replicas: u64, now: Option<u64>) -> Vec<u8> {
    let mut head = Vec::with_capacity(128);
    head.push(takes.into());
    push(&mut head, replicas.max(1));
    push_now(&mut head, now);
    head
}

pub(super) fn push_now(plans: &mut Vec<u8>, now: Option<u64>) {
    match now {
        Some(now) => push(plans, now),
        None => plans.extend((-1.0f64).to_le_bytes()),
    }
}

/// An ask, the last of a group or not, and how much it wants if it is for a lease.
pub(super) fn push_ask(plans: &mut Vec<u8>, ask: &Ask, last: bool, want: u64) {
    let Numbers {
        kind,
        limit,
        window,
        tick,
    } = Numbers::of(&ask.plan);
    plans.extend([kind, last.into()]);
    for number in [limit, window, tick, ask.cost, want] {
        push(plans, number);
    }
    plans.extend(ask.ticket.to_be_bytes());
}

pub(super) fn push_change(plans: &mut Vec<u8>, change: &Change) {
    let Numbers {
        kind,
        limit,
        window,
        tick,
    } = Numbers::of(&change.plan);
    plans.extend([kind, change.drain.into()]);
    let at = change.at / 1000;
    for number in [limit, window, tick, change.reserved, change.used, at] {
        push(plans, number);
    }
    plans.extend(change.ticket.to_be_bytes());
}

pub(super) fn course(ends: Ends, course: &Course, now: Option<u64>) -> Vec<u8> {
    let mut numbers = Vec::with_capacity(96);
    for number in [ends.good, ends.bad, course.base, course.least, course.most] {
        push(&mut numbers, number);
    }
    for number in [course.grow, course.shrink, course.threshold, course.alpha] {
        numbers.extend(number.to_le_bytes());
    }
    push(&mut numbers, course.samples);
    push(&mut numbers, course.interval.div_ceil(1000));
    push_now(&mut numbers, now);
    numbers
}

/// The name of a key: the hash of the subject is in braces, which no prefix has, so that a cluster keeps the rules of
/// a subject together; what follows the last colon has none itself, so that no two rules share a key.
pub(super) fn key(prefix: &str, subject: Subject, rule: &str, plan: &Plan) -> Vec<u8> {
    let mut key = Vec::with_capacity(prefix.len() + rule.len() + 56);
    key.extend(prefix.as_bytes());
    key.extend(b":{");
    for byte in subject.0 {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        key.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    key.extend(b"}:");
    key.extend(rule.as_bytes());
    key.push(b':');
    let (letter, window) = match plan {
        Plan::TokenBucket { .. } => (b't', None),
        Plan::FixedWindow { window, .. } => (b'f', Some(window)),
        Plan::SlidingWindow { window, .. } => (b's', Some(window)),
        Plan::SlidingLog { window, .. } => (b'l', Some(window)),
        Plan::InFlight { .. } => (b'c', None),
    };
    key.push(letter);
    if let Some(window) = window {
        key.extend((window / 1000).to_string().into_bytes());
    }
    key
}

/// The integers of a reply.
pub(super) fn integers(value: Value) -> Option<Vec<u64>> {
    let Value::Array(values) = value else {
        return None;
    };
    values.iter().map(integer).collect()
}

pub(super) fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// Reads how the rules answered, one after the other.
pub(super) struct Replies {
    now: u64,
    numbers: std::vec::IntoIter<u64>,
}

impl Replies {
    pub(super) fn new(numbers: Vec<u64>) -> Option<Self> {
        let mut numbers = numbers.into_iter();
        let now = numbers.next()?;
        Some(Self { now, numbers })
    }

    /// After an answer to an ask for a lease.
    pub(super) fn granted(&mut self) -> Option<u64> {
        self.numbers.next()
    }

    pub(super) fn answer(&mut self, ask: &Ask) -> Option<Answer> {
        let (refused, used) = (self.numbers.next()?, self.numbers.next()?);
        let (wait, standing) = match ask.plan {
            Plan::TokenBucket { interval, burst } => bucket(interval, burst, ask.cost, used),
            Plan::FixedWindow { limit, window } => {
                let ends = self.numbers.next()? + window / 1000;
                fixed(limit, used, ends.checked_sub(self.now)? * 1000)
            }
            Plan::SlidingWindow {
                limit,
                window,
                tick,
            } => {
                let (before, start) = (self.numbers.next()?, self.numbers.next()?);
                let sliding = Sliding {
                    limit,
                    window,
                    tick,
                    used,
                    before,
                    into: self.now.checked_sub(start)? * 1000,
                };
                (sliding.wait(ask.cost), sliding.standing())
            }
            Plan::SlidingLog { limit, .. } => {
                let wait = self.numbers.next()? * 1000;
                let standing = Standing {
                    remaining: limit.saturating_sub(used),
                    retry_after: self.numbers.next()? * 1000,
                    reset_after: self.numbers.next()? * 1000,
                };
                (wait, standing)
            }
            Plan::InFlight { limit } => in_flight(limit, used),
        };
        Some(Answer {
            full: match refused {
                0 => None,
                1 => Some(Full::For(wait)),
                _ => Some(Full::Forever),
            },
            standing,
            at: self.now * 1000,
        })
    }
}

/// How long a place in flight is waited for, which nobody can know.
const A_WHILE: u64 = 1_000_000_000;

fn bucket(interval: u64, burst: u64, cost: u64, until_full: u64) -> (u64, Standing) {
    let room = burst.saturating_mul(interval).saturating_sub(until_full);
    let standing = Standing {
        remaining: room / interval.max(1),
        retry_after: interval.saturating_sub(room),
        reset_after: until_full,
    };
    (cost.saturating_mul(interval).saturating_sub(room), standing)
}

fn fixed(limit: u64, used: u64, left: u64) -> (u64, Standing) {
    let remaining = limit.saturating_sub(used);
    let standing = Standing {
        remaining,
        retry_after: if remaining == 0 { left } else { 0 },
        reset_after: if used == 0 { 0 } else { left },
    };
    (left, standing)
}

fn in_flight(limit: u64, used: u64) -> (u64, Standing) {
    let remaining = limit.saturating_sub(used);
    let standing = Standing {
        remaining,
        retry_after: if remaining == 0 { A_WHILE } else { 0 },
        reset_after: if used == 0 { 0 } else { A_WHILE },
    };
    (A_WHILE, standing)
}

/// Times are nanoseconds.
struct Sliding {
    limit: u64,
    window: u64,
    tick: u64,
    used: u64,
    before: u64,
    into: u64,
}

impl Sliding {
    fn standing(&self) -> Standing {
        let weighed = product(self.before, self.ticks() - self.into / self.tick);
        let room = product(self.limit, self.ticks())
            .saturating_sub(weighed)
            .saturating_sub(product(self.used, self.ticks()));
        let remaining = (room / u128::from(self.ticks())) as u64;
        Standing {
            remaining,
            retry_after: if remaining == 0 { self.wait(1) } else { 0 },
            reset_after: match self {
                Self { used: 1.., .. } => 2 * self.window - self.into,
                Self { before: 1.., .. } => self.window - self.into,
                _ => 0,
            },
        }
    }

    /// Until `cost` passes, which it does not now.
    fn wait(&self, cost: u64) -> u64 {
        let Some(left) = self.limit.checked_sub(cost) else {
            return 0;
        };
        let at = if self.used <= left {
            self.released(left - self.used, self.before)
        } else {
            // In the next window, this one is the one before.
            self.window + self.released(left, self.used)
        };
        at.saturating_sub(self.into)
    }

    /// How far into a window no more than `room` is left of `before`.
    fn released(&self, room: u64, before: u64) -> u64 {
        let share = product(room, self.ticks()) / u128::from(before.max(1));
        self.ticks()
            .saturating_sub(u64::try_from(share).unwrap_or(u64::MAX))
            * self.tick
    }

    fn ticks(&self) -> u64 {
        self.window / self.tick
    }
}

struct Numbers {
    kind: u8,
    limit: u64,
    /// Microseconds, or the nanoseconds that one token takes.
    window: u64,
    tick: u64,
}

impl Numbers {
    fn of(plan: &Plan) -> Self {
        let (kind, limit, window, tick) = match *plan {
            Plan::TokenBucket { interval, burst } => (1, burst, interval, 1),
            Plan::FixedWindow { limit, window } => (2, limit, window / 1000, 1),
            Plan::SlidingWindow {
                limit,
                window,
                tick,
            } => (3, limit, window / 1000, tick / 1000),
            Plan::SlidingLog { limit, window } => (4, limit, window / 1000, 1),
            Plan::InFlight { limit } => (5, limit, 1, 1),
        };
        Self {
            kind,
            limit,
            window,
            tick,
        }
    }
}

fn push(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend((number.min(MOST) as f64).to_le_bytes());
}

fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}
