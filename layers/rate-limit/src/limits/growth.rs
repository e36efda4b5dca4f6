//! Streams that take more as they come near what is reserved for them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use palisade_core::reject::Rejected;
use tokio::time::Instant;

use super::{Limits, Order, Refusal};
use crate::{
    central::{Ask, Change},
    meter::Full,
};

/// What a stream has asked the store for, whose answer it hears when it has gone on.
#[derive(Debug)]
pub(crate) struct Growing {
    step: u64,
    /// The time until there is room, or one of these.
    answer: AtomicU64,
}

impl Growing {
    const ASKED: u64 = 0;
    const GRANTED: u64 = u64::MAX;
    /// Nobody knows, so that nothing is counted on.
    const LOST: u64 = u64::MAX - 1;
    /// The stream has ended, and hears nothing any more.
    const ENDED: u64 = u64::MAX - 2;

    fn new(step: u64) -> Self {
        let answer = AtomicU64::new(Self::ASKED);
        Self { step, answer }
    }

    /// Whether the stream will hear it.
    fn hear(&self, answer: u64) -> bool {
        let heard = self
            .answer
            .compare_exchange(Self::ASKED, answer, Relaxed, Relaxed);
        heard.is_ok()
    }

    /// How it was answered by now.
    fn answer(&self) -> Result<Grown, Full> {
        match self.answer.load(Relaxed) {
            Self::ASKED => Ok(Grown::NotYet),
            Self::GRANTED => Ok(Grown::Granted),
            Self::LOST | Self::ENDED => Ok(Grown::Lost),
            wait => Err(Full::For(wait)),
        }
    }

    /// Whether it was granted. An answer that comes later is left to who gets it.
    fn end(&self) -> bool {
        self.answer.swap(Self::ENDED, Relaxed) == Self::GRANTED
    }
}

/// What became of a step.
#[derive(Clone, Copy, Debug)]
enum Grown {
    Granted,
    NotYet,
    /// The stream goes on all the same, and the rest is settled at its end.
    Lost,
}

impl Limits {
    /// Takes more for streams that come near what is reserved for them.
    pub(crate) fn progress(
        self: &Arc<Self>,
        order: &mut Order,
        streamed: u64,
        now: Instant,
    ) -> Result<(), Rejected> {
        for index in 0..self.limits.len() {
            let limit = &self.limits[index];
            let bit = limit.bit();
            if !limit.rule.grows || (order.taken | order.taken_away) & bit == 0 {
                continue;
            }
            let Some(extra) = order.get_extra() else {
                continue;
            };
            let (step, grown) = match &extra.growing[index] {
                Some(growing) => (growing.step, growing.answer()),
                None => {
                    let account = extra.accounts[index].as_mut();
                    let Some(step) = account.and_then(|account| account.progress(streamed)) else {
                        continue;
                    };
                    let grown = if order.taken_away & bit != 0 {
                        Ok(self.grow_away(order, index, step))
                    } else {
                        let grown = self.grow_here(order, index, step, now);
                        grown.map(|()| Grown::Granted)
                    };
                    (step, grown)
                }
            };
            match grown {
                Ok(Grown::Granted) => self.grew(order, index, step, self.nanos(now)),
                Ok(Grown::Lost) => order.extra().growing[index] = None,
                Ok(Grown::NotYet) => {}
                Err(_) if limit.is_shadow() => {
                    // Once for a request, however long it goes on.
                    if order.passed & bit == 0 {
                        order.passed |= bit;
                        limit.shadowed();
                    }
                }
                Err(full) => {
                    // Once more would be refused as well: what was reserved is the end of it.
                    let refusal = Refusal { index, full };
                    return Err(self.refuse(&refusal, order, now));
                }
            }
        }
        Ok(())
    }

    /// Has taken a step more.
    fn grew(&self, order: &mut Order, index: usize, step: u64, at: u64) {
        let limit = &self.limits[index];
        order.shares[index].cost += step;
        if order.taken & order.taken_away & limit.bit() != 0 {
            let payer = order.shares[index].payer;
            limit.store.change(payer, order.epoch, |meter, count, _| {
                meter.charge(count, step, at);
            });
        }
        let extra = order.extra();
        extra.growing[index] = None;
        extra.grown[index] = (extra.grown[index].0 + step, at);
        if let Some(account) = &mut extra.accounts[index] {
            account.grown(step);
        }
    }

    /// Hears at the end what it has not heard before, so that what was taken is settled.
    pub(super) fn grow_late(&self, order: &mut Order, index: usize, at: u64) {
        let extra = order.get_extra();
        if let Some(growing) = extra.and_then(|extra| extra.growing[index].take())
            && growing.end()
        {
            self.grew(order, index, growing.step, at);
        }
    }

    fn grow_here(
        &self,
        order: &mut Order,
        index: usize,
        step: u64,
        now: Instant,
    ) -> Result<(), Full> {
        let at = self.nanos(now);
        let store = &self.limits[index].store;
        let payer = &mut order.shares[index].payer;
        let locked = store.lock(payer, at);
        match locked.try_take(step, at) {
            Ok(next) => locked.grow(next, at),
            // The request itself fits; a step may be more than there ever is.
            Err(Full::Forever) => {
                drop(locked);
                let standing = self.limits[index].standing_here(*payer, at);
                return Err(Full::For(standing.reset_after.max(1)));
            }
            Err(full) => return Err(full),
        }
        Ok(())
    }

    /// Asks the store, and hears its answer when the stream has gone on.
    fn grow_away(&self, order: &mut Order, index: usize, step: u64) -> Grown {
        let limit = &self.limits[index];
        let (Some(central), Some(plan)) = (&self.central, order.plan(index)) else {
            return Grown::Lost;
        };
        let (rule, subject) = (limit.rule.name.clone(), order.subject(index));
        let ask = Ask {
            rule: rule.clone(),
            subject,
            plan,
            cost: step,
            ticket: 0,
        };
        let growing = Arc::new(Growing::new(step));
        let (store, asks) = (central.clone(), growing.clone());
        let asked = central.run(Box::pin(async move {
            // Without the store nobody is cut off.
            let answers = store.take(vec![ask]).await.ok();
            let Some(answer) = answers.and_then(|answers| answers.rules.first().copied()) else {
                asks.hear(Growing::LOST);
                return;
            };
            let heard = asks.hear(match answer.full {
                None => Growing::GRANTED,
                Some(Full::For(wait)) => wait.clamp(1, Growing::ENDED - 1),
                Some(Full::Forever) => Growing::ENDED - 1,
            });
            if !heard && answer.full.is_none() {
                let change = Change {
                    rule,
                    subject,
                    plan,
                    ticket: 0,
                    at: answer.at,
                    reserved: step,
                    used: 0,
                    drain: false,
                };
                let _ = store.settle(vec![change]).await;
            }
        }));
        if !asked {
            return Grown::Lost;
        }
        order.extra().growing[index] = Some(growing);
        Grown::NotYet
    }
}
