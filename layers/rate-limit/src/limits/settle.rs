//! What becomes of what a request took, when it has ended.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::{classify::Verdict, head::RequestHead, reject::Rejected, settle::End, time};
use tokio::time::Instant;

use super::{Limit, Limits, Order, Refusal, order::Share};
use crate::{
    adaptive::{Adaptive, AdaptiveError, State as AdaptiveState},
    central::{Ask, Change, Course, Ends, Plan},
    cost::{Account, Tokens},
    meter::Full,
    numbers::Following,
    rule::Strategy,
    store::Payer,
};

/// The longest that a bucket is kept empty because a service said so.
const LONGEST_DRAIN: Duration = Duration::from_secs(300);

/// How often the ends of requests are reported to the store.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// A limit that follows how requests end.
#[derive(Debug)]
pub(super) struct Adapting {
    course: Course,
    state: Mutex<AdaptiveState>,
    /// For all processes.
    limit: Arc<AtomicU64>,
    /// What this process may use of it without the store.
    share: Arc<AtomicU64>,
    processes: AtomicU64,
    /// Since the last report.
    good: AtomicU64,
    bad: AtomicU64,
    reported: AtomicU64,
}

impl Adapting {
    pub(super) fn new(adaptive: &Adaptive, base: u64) -> Result<Self, AdaptiveError> {
        let course = adaptive.course(base)?;
        Ok(Self {
            course,
            state: Mutex::new(AdaptiveState::new(&course, 0)),
            limit: Arc::new(AtomicU64::new(course.base)),
            share: Arc::new(AtomicU64::new(course.base)),
            processes: AtomicU64::new(1),
            good: AtomicU64::new(0),
            bad: AtomicU64::new(0),
            reported: AtomicU64::new(0),
        })
    }

    pub(super) fn following(&self) -> Following<'_> {
        let (course, limit) = (&self.course, &self.limit);
        Following { course, limit }
    }

    /// For what this process may use without the store.
    pub(super) fn following_share(&self) -> Following<'_> {
        let (course, limit) = (&self.course, &self.share);
        Following { course, limit }
    }

    /// It may get there.
    pub(super) fn most(&self) -> u64 {
        self.course.most
    }

    pub(super) fn now(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    pub(super) fn divide_by(&self, processes: u64) {
        let _state = self.lock();
        self.processes.store(processes, Relaxed);
        self.set(self.now());
    }

    /// The store has moved it.
    fn follow(&self, limit: u64) {
        let _state = self.lock();
        self.set(limit);
    }

    fn lock(&self) -> MutexGuard<'_, AdaptiveState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the lock, or a limit could be set that another has just moved.
    fn set(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
        let share = limit / self.processes.load(Relaxed).max(1);
        self.share.store(share.max(1), Relaxed);
    }

    /// Hears how a request has ended.
    ///
    /// Says whether the limit has moved.
    fn heard(&self, ends: Ends, at: u64) -> bool {
        let mut state = self.lock();
        // Where the store has left it, if there is one.
        state.limit = self.now();
        let now = state.ends(&self.course, ends, at);
        let moved = now != self.now();
        if moved {
            self.set(now);
        }
        moved
    }

    /// What is to be reported to the store, once in a while.
    fn report(&self, ends: Ends, at: u64) -> Option<Ends> {
        self.good.fetch_add(ends.good, Relaxed);
        self.bad.fetch_add(ends.bad, Relaxed);
        let last = self.reported.load(Relaxed);
        let every = REPORT_EVERY.as_nanos() as u64;
        let is_due = at.saturating_sub(last) >= every
            && self
                .reported
                .compare_exchange(last, at, Relaxed, Relaxed)
                .is_ok();
        is_due.then(|| Ends {
            good: self.good.swap(0, Relaxed),
            bad: self.bad.swap(0, Relaxed),
        })
    }
}

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
    /// Settles what can be settled when the verdict is known.
    pub(crate) fn settle(self: &Arc<Self>, order: &mut Order, end: &End, now: Instant) {
        let at = self.nanos(now);
        let unworked = matches!(end.verdict, Verdict::Refused(_) | Verdict::Unsent);
        let overloaded = match end.verdict {
            Verdict::Overload { retry_after } => Some(retry_after),
            _ => None,
        };
        let mut changes = Vec::new();
        for index in 0..self.limits.len() {
            let limit = &self.limits[index];
            let bit = limit.bit();
            if (order.taken | order.taken_away) & bit == 0 {
                continue;
            }
            limit.follow(self, end, at);
            self.grow_late(order, index, at);
            let share = order.shares[index];
            let drain = overloaded.filter(|_| limit.rule.drains);
            let used = limit.used(order, end, unworked);
            if used == share.cost && drain.is_none() {
                continue;
            }
            if order.taken & bit != 0 {
                let (grown, since) = order.grown(index);
                let store = limit.counts(order.pools & bit != 0);
                store.change(share.payer, order.epoch, |meter, count, is_in| {
                    if !is_in {
                        // Nothing goes back to a count that began after a reset.
                    } else if limit.rule.settles() {
                        // Each window gets back no more than was taken from it.
                        let first = share.cost - grown;
                        meter.settle(count, first, used.min(first), order.at, at);
                        meter.settle(count, grown, used.saturating_sub(first), since, at);
                    } else {
                        meter.give_back(count, share.cost - used.min(share.cost), order.at, at);
                    }
                    if let Some(retry_after) = drain {
                        let retry_after = retry_after.map(|delay| delay.min(LONGEST_DRAIN));
                        meter.drain(count, retry_after.map(nanos), at);
                    }
                });
                if used < share.cost {
                    self.stir(limit, share.payer);
                }
            }
            if order.taken_away & bit != 0
                && let Some(change) = limit.change(share, order, used)
            {
                changes.push(Change {
                    drain: drain.is_some(),
                    ..change
                });
            }
        }
        self.tell(changes);
    }

    /// Gives back what is held until the very end.
    pub(crate) fn end(&self, order: &Order) {
        if !self.limits.iter().any(Limit::is_in_flight) {
            return;
        }
        let at = self.nanos(time::now());
        let mut changes = Vec::new();
        for (limit, share) in order.taken(&self.limits) {
            if !limit.is_in_flight() {
                continue;
            }
            if order.taken & limit.bit() != 0 {
                self.give_back_here(limit, share, order, at);
            }
            if order.taken_away & limit.bit() != 0 {
                changes.extend(limit.change(*share, order, 0));
            }
        }
        self.tell(changes);
    }

    /// Gives back all: the request goes no further. What the store has counted, or may have, stands; but a place that
    /// nobody would give back later.
    pub(crate) fn cancel(&self, order: &Order) {
        self.cancel_here(order);
        self.release_places(order);
    }

    /// Gives back what was taken in this process.
    pub(crate) fn cancel_here(&self, order: &Order) {
        let at = self.nanos(time::now());
        for (limit, share) in order.applying(&self.limits) {
            if order.taken & limit.bit() != 0 {
                self.give_back_here(limit, share, order, at);
                let is_pool = order.pools & limit.bit() != 0;
                limit.counts(is_pool).uncount(share.payer);
            }
        }
    }

    fn give_back_here(&self, limit: &Limit, share: &Share, order: &Order, at: u64) {
        limit.counts(order.pools & limit.bit() != 0).change(
            share.payer,
            order.epoch,
            |meter, count, is_in| {
                if is_in {
                    meter.give_back(count, share.cost, order.at, at);
                }
            },
        );
        self.stir(limit, share.payer);
    }

    /// Leaves changes to the store's upkeep.
    pub(super) fn tell(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        if let Some(central) = &self.central {
            // Begun here, so that the store hears of it also if there is no room for the job.
            let settled = central.settle(changes);
            // Not settled, what was reserved stands: too much is counted, never too little.
            let _ = central.run(Box::pin(async move {
                let _ = settled.await;
            }));
        }
    }

    /// A limit that follows how requests end has moved.
    fn moved(&self, limit: &Limit) {
        // Or who wrote earlier could be heard later.
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.writer.renew(&self.limits);
        drop(changing);
        self.stir_all(limit);
    }

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
    fn grow_late(&self, order: &mut Order, index: usize, at: u64) {
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

impl Limit {
    /// What a request costs, and its account if that is settled at its end.
    #[inline]
    pub(super) fn cost(
        &self,
        head: &RequestHead<'_>,
        payer: Payer,
        key: u64,
        order: &mut Order,
    ) -> u64 {
        let cost = self.rule.cost.as_ref().map_or(1, |cost| cost(head));
        if self.rule.settles() && cost > 0 {
            return self.reserve(head, key, order);
        }
        match &self.rule.warm_up {
            // What fits in the end is not refused for good at the start.
            Some(warm_up) => {
                let most = self.holds(payer.tier()).max(cost);
                warm_up.cost(cost, order.at).min(most)
            }
            None => cost,
        }
    }

    fn reserve(&self, head: &RequestHead<'_>, key: u64, order: &mut Order) -> u64 {
        let tokens = head.extensions.get::<Tokens>();
        let completion = match (tokens, &self.learner) {
            (Some(tokens), Some(learner)) => self.rule.estimate.completion(tokens, key, learner),
            _ => 0,
        };
        let account = Account::new(&self.rule.unit, tokens, completion);
        let cost = account.reserved();
        let extra = order.extra();
        extra.keys[self.index] = key;
        extra.accounts[self.index] = Some(account);
        cost
    }

    /// What was used in the end.
    fn used(&self, order: &mut Order, end: &End, unworked: bool) -> u64 {
        let share = order.shares[self.index];
        if self.is_in_flight() {
            return share.cost;
        }
        let extra = order.get_extra();
        if let Some(extra) = extra
            && let Some(account) = &extra.accounts[self.index]
        {
            if let (Some(learner), Some(model), Some(completion)) =
                (&self.learner, account.model(), account.completion(end))
            {
                learner.learn(extra.keys[self.index], model, completion);
            }
            return account.actual(end);
        }
        // A bucket refills meanwhile.
        let gives_back = unworked && self.rule.strategy != Strategy::TokenBucket;
        if gives_back { 0 } else { share.cost }
    }

    /// Moves a limit that follows how requests end.
    fn follow(&self, limits: &Arc<Limits>, end: &End, at: u64) {
        let Some(adapting) = &self.adapting else {
            return;
        };
        let ends = Ends::of(end.verdict);
        if ends == Ends::default() {
            return;
        }
        let Some(central) = limits.central.as_ref().filter(|_| self.away.is_some()) else {
            if adapting.heard(ends, at) {
                limits.moved(self);
            }
            return;
        };
        let Some(ends) = adapting.report(ends, at) else {
            return;
        };
        if !central.is_up() {
            if adapting.heard(ends, at) {
                limits.moved(self);
            }
            return;
        }
        let (store, rule, course) = (central.clone(), self.rule.name.clone(), adapting.course);
        let (limits, index) = (limits.clone(), self.index);
        let _ = central.run(Box::pin(async move {
            let limit = &limits.limits[index];
            if let Ok(now) = store.adapt(rule, ends, course).await
                && let Some(adapting) = &limit.adapting
                && adapting.now() != now
            {
                adapting.follow(now);
                limits.moved(limit);
            }
        }));
    }

    /// By the plan that it was taken by. `None` if the store was not asked.
    pub(super) fn change(&self, share: Share, order: &Order, used: u64) -> Option<Change> {
        Some(Change {
            rule: self.rule.name.clone(),
            subject: order.subject(self.index),
            plan: order.plan(self.index)?,
            ticket: order.ticket(),
            at: order.answer(self.index).map_or(0, |answer| answer.at),
            reserved: share.cost,
            used,
            drain: false,
        })
    }

    /// How the store counts this rule; `None` if it is closed.
    pub(super) fn plan(&self, tier: u8) -> Option<Plan> {
        self.numbers.load().meter(tier).plan()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
