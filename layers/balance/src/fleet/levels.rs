//! Near endpoints before far ones, and those of a lower priority only for what the others cannot carry.
//!
//! The rule is that of Envoy's priority levels: a level has as much of the traffic as the part of it that may be
//! picked, times 1.4, and the next levels have what is left.

use std::ops::Range;

use crate::slot::{Duty, Slot, Standing};

/// A level carries everything until less than this part of one is able: 71 %.
const OVERPROVISIONED: f64 = 1.4;
/// The golden ratio: draws are spread evenly, however few.
const STEP: f64 = 0.618_033_988_749_894_9;

/// Which endpoints are on which level, and how the levels do. Nothing is kept where all are on one.
#[derive(Debug)]
pub(super) struct Levels {
    /// Whether endpoints have come, gone or moved since they were sorted.
    pub(super) stale: bool,
    /// The slots of all levels, level by level.
    order: Vec<u32>,
    all: Vec<Level>,
    drawn: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Level {
    start: usize,
    len: usize,
    /// The weights of all, and of those that are able.
    weight: f64,
    able: f64,
    due: u32,
    /// The part of all traffic that it takes, if those before it leave that much.
    most: f64,
}

/// Slots that go round, and how many of them to look at from where on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    start: usize,
    pub(super) len: usize,
    sorted: bool,
    pub(super) first: usize,
    pub(super) number: usize,
}

impl Levels {
    pub(super) fn new(first: f64) -> Self {
        Self {
            stale: false,
            order: Vec::new(),
            all: Vec::new(),
            drawn: first,
        }
    }

    /// Makes room for so many endpoints, so that sorting them never allocates.
    pub(super) fn reserve(&mut self, endpoints: usize) {
        self.stale = true;
        self.order.clear();
        self.order.reserve(endpoints);
        self.all.clear();
        self.all.reserve(endpoints);
    }

    pub(super) fn is_single(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn number(&self) -> usize {
        self.all.len()
    }

    /// Sorts the slots, as seen from this zone.
    pub(super) fn sort<T>(&mut self, slots: &mut [Option<Slot<T>>], zone: Option<&str>) {
        self.stale = false;
        self.order.clear();
        self.all.clear();
        let key = |slot: &Slot<T>| {
            let far = match (zone, slot.zone.as_deref()) {
                (Some(own), Some(other)) => own != other,
                _ => false,
            };
            (slot.priority, far)
        };
        let stays = |slot: &Slot<T>| slot.duty != Duty::Leaving;
        let staying = |slots: &[Option<Slot<T>>], at: u32| {
            slots[at as usize]
                .as_ref()
                .filter(|slot| stays(slot))
                .map(key)
        };
        let all = 0..slots.len() as u32;
        self.order
            .extend(all.filter(|&at| staying(slots, at).is_some()));
        self.order
            .sort_unstable_by_key(|&at| (staying(slots, at), at));
        let mut before = None;
        for (position, &at) in self.order.iter().enumerate() {
            let Some(slot) = &mut slots[at as usize] else {
                continue;
            };
            let now = key(slot);
            if before != Some(now) {
                before = Some(now);
                self.all.push(Level {
                    start: position,
                    ..Level::default()
                });
            }
            slot.level = self.all.len() as u32 - 1;
            if let Some(level) = self.all.last_mut() {
                level.len += 1;
            }
        }
        if self.all.len() < 2 {
            self.order.clear();
            self.all.clear();
        }
    }

    pub(super) fn begin_count(&mut self) {
        for level in &mut self.all {
            (level.weight, level.able, level.due) = (0.0, 0.0, 0);
        }
    }

    /// Ignores those that leave.
    pub(super) fn count<T>(&mut self, slot: &Slot<T>, standing: Standing) {
        let level = self.all.get_mut(slot.level as usize);
        let Some(level) = level.filter(|_| slot.duty != Duty::Leaving) else {
            return;
        };
        level.weight += slot.weight;
        match standing {
            Standing::Able => level.able += slot.weight,
            Standing::Due => level.due += 1,
            Standing::Out { .. } | Standing::Barred => {}
        }
    }

    pub(super) fn end_count(&mut self) {
        let health = |level: &Level| {
            let part = level.able / level.weight;
            // An empty level is 0 of 0.
            if part > 0.0 {
                (part * OVERPROVISIONED).min(1.0)
            } else {
                0.0
            }
        };
        let sum: f64 = self.all.iter().map(health).sum();
        let scale = if sum > 0.0 && sum < 1.0 {
            1.0 / sum
        } else {
            1.0
        };
        for level in &mut self.all {
            level.most = health(level) * scale;
        }
    }

    /// The level of the next request, or of this point between 0 and 1.
    pub(super) fn draw(&mut self, point: Option<f64>) -> usize {
        let point = point.unwrap_or_else(|| {
            self.drawn = (self.drawn + STEP).fract();
            self.drawn
        });
        let mut sum = 0.0;
        let reached = self.all.iter().position(|level| {
            sum += level.most;
            point < sum
        });
        // Rounding, or nobody is able: the last that takes any, or the first of all.
        reached.unwrap_or_else(|| {
            let last = self.all.iter().rposition(|level| level.most > 0.0);
            last.unwrap_or(0)
        })
    }

    pub(super) fn has_due(&self, level: usize) -> bool {
        self.all[level].due > 0
    }

    pub(super) fn ring(&self, level: usize) -> Ring {
        let Level { start, len, .. } = self.all[level];
        Ring {
            start,
            len,
            sorted: true,
            first: 0,
            number: len,
        }
    }

    /// The slots of the first of these places in a ring, as many as lie side by side.
    #[inline]
    pub(super) fn stretch(&self, ring: Ring, places: Range<usize>) -> Range<usize> {
        let first = if places.start < ring.len {
            places.start
        } else {
            places.start - ring.len
        };
        if ring.sorted {
            let at = self.slot(ring, first);
            return at..at + 1;
        }
        first..ring.len.min(first + places.len())
    }

    #[inline]
    pub(super) fn slot(&self, ring: Ring, at: usize) -> usize {
        if ring.sorted {
            self.order[ring.start + at] as usize
        } else {
            at
        }
    }
}

impl Ring {
    pub(super) fn of_all(len: usize) -> Self {
        Self {
            start: 0,
            len,
            sorted: false,
            first: 0,
            number: len,
        }
    }

    /// So many of them, and from there on.
    pub(super) fn from(self, first: usize, number: usize) -> Self {
        Self {
            first,
            number,
            ..self
        }
    }
}
