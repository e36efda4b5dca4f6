//! The dumbest counters that can be right: lists of what was admitted, added up anew for each question.
//!
//! Times are microseconds.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bucket { interval: u64 },
    Fixed { window: u64 },
    Sliding { window: u64, tick: u64 },
    Log { window: u64 },
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) kind: Kind,
    pub(crate) limit: u64,
    entries: Vec<(u64, u64)>,
    /// Of a bucket, which forgets: nanoseconds until it is full, and when that was so.
    level: (i128, u64),
    drained: u64,
}

impl Model {
    pub(crate) fn new(kind: Kind, limit: u64) -> Self {
        Self {
            kind,
            limit,
            entries: Vec::new(),
            level: (0, 0),
            drained: 0,
        }
    }

    pub(crate) fn would(&self, cost: u64, now: u64) -> bool {
        if cost > self.limit {
            return false;
        }
        match self.kind {
            Kind::Bucket { interval } => {
                let capacity = i128::from(self.limit) * i128::from(interval);
                self.level(now) + i128::from(cost) * i128::from(interval) <= capacity
            }
            Kind::Fixed { window } => self.within(window, now / window) + cost <= self.limit,
            Kind::Sliding { window, tick } => {
                let number = now / window;
                let ticks = window / tick;
                let into = (now - number * window) / tick;
                let before = match number.checked_sub(1) {
                    Some(number) => self.within(window, number),
                    None => 0,
                };
                let weighed = u128::from(before) * u128::from(ticks - into);
                let taken = u128::from(self.within(window, number) + cost) * u128::from(ticks);
                weighed + taken <= u128::from(self.limit) * u128::from(ticks)
            }
            Kind::Log { window } => self.since(window, now) + cost <= self.limit,
        }
    }

    pub(crate) fn take(&mut self, cost: u64, now: u64) {
        if cost == 0 {
            return;
        }
        if let Kind::Bucket { interval } = self.kind {
            let level = self.level(now) + i128::from(cost) * i128::from(interval);
            self.level = (level, now);
            return;
        }
        match self.entries.last_mut() {
            Some((at, taken)) if *at == now => *taken += cost,
            _ => self.entries.push((now, cost)),
        }
    }

    /// The most that would be admitted.
    pub(crate) fn remaining(&self, now: u64) -> u64 {
        (1..=self.limit)
            .take_while(|&cost| self.would(cost, now))
            .count() as u64
    }

    pub(crate) fn settle(&mut self, reserved: u64, used: u64, at: u64, now: u64) {
        if used == reserved {
            return;
        }
        let (less, more) = (reserved.saturating_sub(used), used.saturating_sub(reserved));
        match self.kind {
            Kind::Bucket { interval } => {
                let back = i128::from(less) * i128::from(interval);
                let back = match at > self.drained {
                    true => (back - i128::from(now - at) * 1000).max(0),
                    false => 0,
                };
                let capacity = i128::from(self.limit) * i128::from(interval);
                let level = self.level(now) - back + i128::from(more) * i128::from(interval);
                self.level = (level.clamp(0, capacity), now);
            }
            Kind::Log { .. } => {
                self.change(at, |cost| cost - less);
                if more > 0 {
                    self.take(more, now);
                }
            }
            Kind::Fixed { window } | Kind::Sliding { window, .. } => {
                let age = now / window - at / window;
                let reach = u64::from(matches!(self.kind, Kind::Sliding { .. }));
                if age <= reach {
                    self.change(at, |cost| cost + more - less);
                } else if more > 0 {
                    self.take(more, now);
                }
            }
        }
    }

    pub(crate) fn drain(&mut self, now: u64) {
        if let Kind::Bucket { interval } = self.kind {
            self.level = (i128::from(self.limit) * i128::from(interval), now);
            self.drained = now;
            return;
        }
        self.take(self.remaining(now), now);
    }

    fn change(&mut self, at: u64, change: impl Fn(u64) -> u64) {
        let mut entries = self.entries.iter_mut();
        let (_, cost) = entries.find(|entry| entry.0 == at).expect("was taken then");
        *cost = change(*cost);
    }

    fn level(&self, now: u64) -> i128 {
        let Kind::Bucket { interval } = self.kind else {
            unreachable!("asked of buckets only");
        };
        // What is above after the limit has fallen is cut.
        let capacity = i128::from(self.limit) * i128::from(interval);
        let (level, at) = self.level;
        (level.min(capacity) - i128::from(now - at) * 1000).max(0)
    }

    fn within(&self, window: u64, number: u64) -> u64 {
        let entries = self.entries.iter().filter(|(at, _)| at / window == number);
        entries.map(|entry| entry.1).sum()
    }

    fn since(&self, window: u64, now: u64) -> u64 {
        let entries = self.entries.iter().filter(|(at, _)| at + window > now);
        entries.map(|entry| entry.1).sum()
    }
}
