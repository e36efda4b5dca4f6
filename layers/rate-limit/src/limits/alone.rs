//! One rule for a request, and nothing but its own count to ask.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use palisade_core::{gate::Admit, head::RequestHead};
use tokio::time::Instant;

use super::{Limit, Limits, NoKey, Order, Refusal, order::Share};
use crate::gate::Reservation;

impl Limits {
    /// The one rule there is, if nothing but its own count decides and nothing is found out at the end: then there is
    /// nothing to be put together.
    #[inline]
    pub(super) fn alone(&self) -> Option<&Limit> {
        match &*self.limits {
            [limit] if self.is_alone => Some(limit),
            _ => None,
        }
    }

    /// As for any number of rules, for one [alone](Self::alone).
    #[inline]
    pub(super) fn admit_to(
        self: &Arc<Self>,
        limit: &Limit,
        head: &RequestHead<'_>,
        now: Instant,
    ) -> Admit<Reservation> {
        let at = self.nanos(now);
        let payer = match self.payer(limit, head) {
            Ok(payer) => payer,
            Err(NoKey(limit)) => return Admit::Now(Err(self.refuse_without_key(limit))),
        };
        let mut share = Share::default();
        if let Some((payer, _)) = payer {
            share.payer = payer;
            share.cost = limit.fixed_cost(head, payer, at);
        }
        if share.cost > 0 && !limit.is_shadow() {
            let mut payer = share.payer;
            let locked = limit.store.lock(&mut payer, at);
            let tried = locked.try_take(share.cost, at);
            let epoch = self.epoch.load(Relaxed);
            share.payer = payer;
            let next = match tried {
                Ok(next) => next,
                Err(full) => {
                    locked.refuse();
                    let index = limit.index;
                    let order = Order::of(limit, share, at);
                    return Admit::Now(Err(self.refuse(&Refusal { index, full }, &order, now)));
                }
            };
            locked.admit(next, at);
            if cfg!(feature = "metrics") {
                limit.metrics.admitted(limit.held());
            }
            return Admit::Now(Ok(match self.keeper() {
                None => Reservation::done(),
                Some(keeper) => {
                    Reservation::new(keeper, Order::taken_here(limit, share, at, epoch))
                }
            }));
        }
        let mut order = Order::of(limit, share, at);
        self.decide(&mut order, head, now)
    }
}
