//! What a choice knows of all endpoints together, as far as its strategy asks.

use crate::{
    load::by_size,
    slot::{Clock, Duty, Slot},
    strategy::{
        Strategy,
        price::{self, Field},
    },
    told::Usually,
};

use super::{Fleet, Item, Need, levels::Ring};

/// So often chance may miss before a choice by two looks at all.
const DRAWS: u32 = 32;

impl<T: Item> Fleet<T> {
    #[inline]
    pub(super) fn field(&mut self, need: &Need, clock: &Clock) -> Field {
        let draw = match self.strategy {
            Strategy::Random => self.coin.toss(),
            _ => need.affinity.unwrap_or(0),
        };
        Field {
            now: clock.now,
            size: by_size(1.0, self.usual.size(need.cost).usual()),
            peers: self.peers.median(),
            penalty: self.peers.penalty(),
            place: self.usual.place(),
            round: self.round,
            usually: self.usually(),
            draw,
            belongs: need.affinity.is_some(),
            wants_all: need.wants_all,
            bound: None,
            hot: None,
        }
    }

    /// What is usual among those that report, as far as it can be compared with what is seen here.
    #[inline]
    fn usually(&self) -> Option<Usually> {
        let usually = self.peers.usually()?;
        // Until an answer has ended here, nobody knows.
        let streams = if self.usual.lasts() > 0.0 {
            self.usual.streams()
        } else {
            1.0
        };
        Some(usually.where_streams(streams))
    }

    /// Adds what matters in a choice among these: what is too much depends on who could take it.
    pub(super) fn among(&mut self, ring: Ring, field: &mut Field, clock: &Clock) {
        match self.strategy {
            Strategy::ConsistentHash if field.belongs => {
                let all = (0..ring.len).filter_map(|at| self.in_play(ring, at));
                let (in_flight, shares) = all.fold((0, 0.0), |(in_flight, shares), slot| {
                    let more = u64::from(slot.load.in_flight());
                    (in_flight + more, shares + 1.0 / slot.stride(clock.now))
                });
                field.bound = Some(price::bound(in_flight, shares));
            }
            Strategy::Prequal => {
                let mut probed = self.peers.take_scratch();
                let all = (0..ring.len).filter_map(|at| self.in_play(ring, at));
                let all = all.filter_map(|slot| price::probed(&slot.load, clock.now));
                probed.extend(all.map(|probed| f64::from(probed.in_flight)));
                field.hot = price::hot(&mut probed);
                self.peers.give_scratch(probed);
            }
            _ => {}
        }
    }

    fn in_play(&self, ring: Ring, at: usize) -> Option<&Slot<T>> {
        let slot = self.slots[self.levels.slot(ring, at)].as_ref()?;
        slot.is_in_play().then_some(slot)
    }

    /// Two endpoints of a ring by weight, if chance finds them soon.
    pub(super) fn draw(&mut self, ring: Ring, clock: &Clock) -> [Option<usize>; 2] {
        let mut drawn = [None; 2];
        for _ in 0..DRAWS {
            let at = self.coin.below(ring.len);
            let Some(Some(slot)) = self.slots.get(self.levels.slot(ring, at)) else {
                continue;
            };
            // Kept as often as it weighs, beside the heaviest.
            let lot = self.coin.share() * slot.stride(clock.now);
            if slot.duty != Duty::Serving || lot > self.peers.shortest() || drawn[0] == Some(at) {
                continue;
            }
            if drawn[0].is_some() {
                drawn[1] = Some(at);
                break;
            }
            drawn[0] = Some(at);
        }
        drawn
    }
}
