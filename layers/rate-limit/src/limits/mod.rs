//! Several rules for one request: all have room and are taken from, or none is.

mod adapting;
mod alone;
mod away;
mod growth;
mod lease;
mod limit;
mod order;
mod peek;
mod settle;
mod tiers;
mod wait;

use std::{
    cmp::Reverse,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::{gate::Admit, head::RequestHead, key::Key, reject::Rejected};
use tokio::time::Instant;

use self::order::Share;
pub(crate) use self::{limit::Limit, order::Order};
use crate::{
    central::Central,
    error::KeyMissing,
    gate::Reservation,
    headers::{Headers, Writer},
    meter::{Full, Standing},
    pace::Pacer,
    quota::Quota,
    rule::{MissingKey, Rule, RuleError, check},
    store::Payer,
};

/// What users decide about a limit.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) rules: Vec<Rule>,
    pub(crate) headers: Headers,
    pub(crate) name: Arc<str>,
    /// How long requests wait instead of being refused, and how many.
    pub(crate) pacing: Option<(Duration, usize)>,
    pub(crate) central: Option<Arc<dyn Central>>,
}

/// What clones, guards and handles of one limit share.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) limits: Box<[Limit]>,
    pub(crate) headers: Headers,
    name: Arc<str>,
    writer: Writer,
    hasher: RandomState,
    needed_by_guards: bool,
    /// Whether anything can change when a request has its verdict.
    settles: bool,
    is_alone: bool,
    /// Times are counted from here.
    start: Instant,
    /// Counts up when counts are forgotten, so that nothing is given back to the ones that follow.
    epoch: AtomicU64,
    /// Held while quotas are changed.
    changing: Mutex<()>,
    pub(crate) pacer: Option<Pacer>,
    pub(crate) central: Option<Arc<dyn Central>>,
}

/// A rule has no room.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    /// The rule with the longest wait.
    index: usize,
    full: Full,
}

/// What comes next for a request.
#[derive(Debug)]
enum Step {
    /// It has all that it needs.
    Taken,
    Refused(Refusal),
    /// Others wait for the same.
    Line(Refusal),
    /// The store has to be asked for leases.
    Dry(Refusal),
    /// The store has to be asked.
    Ask,
}

impl Limits {
    pub(crate) fn new(config: Config, start: Instant) -> Result<Self, RuleError> {
        check(&config.rules)?;
        let central = config.central.as_ref();
        let limits = config.rules.into_iter().enumerate();
        let limits = limits.map(|(index, rule)| Limit::new(index, rule, &config.name, central));
        let limits: Box<[Limit]> = limits.collect::<Result<_, _>>()?;
        let settles = limits.iter().any(Limit::needs_guard);
        Ok(Self {
            writer: Writer::new(&limits),
            hasher: RandomState::new(),
            needed_by_guards: config.headers != Headers::Off || settles,
            settles,
            is_alone: central.is_none()
                && config.pacing.is_none()
                && matches!(&*limits, [limit] if !limit.rule.settles()),
            epoch: AtomicU64::new(0),
            changing: Mutex::new(()),
            limits,
            headers: config.headers,
            name: config.name,
            start,
            pacer: config
                .pacing
                .map(|(longest, most)| Pacer::new(longest, most)),
            central: config.central,
        })
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            rules: self.limits.iter().map(|limit| limit.rule.clone()).collect(),
            headers: self.headers,
            name: self.name.clone(),
            pacing: self.pacer.as_ref().map(|pacer| (pacer.longest, pacer.most)),
            central: self.central.clone(),
        }
    }

    /// Takes from all rules, or from none: at once where that can be known here and now.
    #[inline]
    pub(crate) fn admit(
        self: &Arc<Self>,
        head: &RequestHead<'_>,
        now: Instant,
    ) -> Admit<Reservation> {
        if let Some(limit) = self.alone() {
            return self.admit_to(limit, head, now);
        }
        let mut order = Order::default();
        if let Err(NoKey(limit)) = self.share(head, now, &mut order) {
            return Admit::Now(Err(self.refuse_without_key(limit)));
        }
        self.decide(&mut order, head, now)
    }

    /// Takes what the order says.
    fn decide(
        self: &Arc<Self>,
        order: &mut Order,
        head: &RequestHead<'_>,
        now: Instant,
    ) -> Admit<Reservation> {
        if let Err(rejected) = self.route(order, now) {
            return Admit::Now(Err(self.refuse_without_store(rejected)));
        }
        self.fell_back(order);
        match self.step(order) {
            Step::Taken => {
                let Some(keeper) = self.keeper() else {
                    return Admit::Now(Ok(Reservation::done()));
                };
                // Before users' code is asked for keys again, which may panic.
                let mut reservation = Reservation::new(keeper, std::mem::take(order));
                if let Some(order) = reservation.order() {
                    self.refill_early(head, order, now);
                }
                Admit::Now(Ok(reservation))
            }
            Step::Refused(refusal) if !self.waits(&refusal, order) => {
                Admit::Now(Err(self.refuse(&refusal, order, now)))
            }
            step => {
                let order = std::mem::take(order);
                Admit::Later(self.wait_for(step, order, head, now))
            }
        }
    }

    /// Refuses who has nothing left and would not wait, by what is known in this process. Takes nothing.
    pub(crate) fn preview(&self, head: &RequestHead<'_>, now: Instant) -> Result<(), Rejected> {
        let mut order = Order::default();
        if let Err(NoKey(limit)) = self.share(head, now, &mut order) {
            return Err(self.refuse_without_key(limit));
        }
        let routed = self.route(&mut order, now);
        routed.map_err(|none| self.refuse_without_store(none))?;
        if let Some(refusal) = self.denied(&order)
            && !self.waits(&refusal, &order)
        {
            self.fell_back(&order);
            self.count_refused(&mut order, refusal.index);
            return Err(self.refuse(&refusal, &order, now));
        }
        for (limit, share) in order.applying(&self.limits) {
            if limit.is_shadow() || order.here & limit.bit() == 0 {
                continue;
            }
            let standing = limit.standing_here(share.payer, self.nanos(now));
            if standing.remaining == 0 {
                let full = Full::For(standing.retry_after.max(1));
                let index = limit.index;
                let refusal = Refusal { index, full };
                if !self.waits(&refusal, &order) {
                    // It goes no further, and so is decided here.
                    self.fell_back(&order);
                    limit.store.count(share.payer, false);
                    return Err(self.refuse(&refusal, &order, now));
                }
            }
        }
        Ok(())
    }

    /// Writes how the rules stand that such a request would take from. Takes nothing.
    pub(crate) fn describe(
        &self,
        head: &RequestHead<'_>,
        headers: &mut http::HeaderMap,
        now: Instant,
    ) {
        let mut order = Order::default();
        if self.headers == Headers::Standard
            && self.share(head, now, &mut order).is_ok()
            && self.route(&mut order, now).is_ok()
        {
            self.write(&order, None, headers, now);
        }
    }

    #[inline]
    pub(crate) fn settles(&self) -> bool {
        self.settles
    }

    /// Whether a guard will ever ask: for headers, to give back, or to settle.
    #[inline]
    fn keeper(self: &Arc<Self>) -> Option<Arc<Self>> {
        self.needed_by_guards.then(|| self.clone())
    }

    /// All that asks users' code, before anything is locked.
    #[inline]
    fn share(
        &self,
        head: &RequestHead<'_>,
        now: Instant,
        order: &mut Order,
    ) -> Result<(), NoKey<'_>> {
        order.at = self.nanos(now);
        for limit in &self.limits {
            let Some((payer, key_hash)) = self.payer(limit, head)? else {
                continue;
            };
            let cost = limit.cost(head, payer, key_hash, order);
            if cost > 0 {
                order.add(limit, Share { payer, cost });
            }
        }
        Ok(())
    }

    /// Who pays, and the hash of its key alone. `None` if the rule does not apply.
    #[inline]
    fn payer<'a>(
        &self,
        limit: &'a Limit,
        head: &RequestHead<'_>,
    ) -> Result<Option<(Payer, u64)>, NoKey<'a>> {
        let Some(extract) = &limit.rule.key else {
            return Ok(Some((Payer::SHARED, 0)));
        };
        match (extract.key(head), limit.rule.missing_key) {
            (Some(key), _) => {
                let hash = self.hasher.hash_one(&key);
                let payer = Payer::hashed(hash, limit.tiers.of(&key));
                Ok(Some((payer, hash)))
            }
            (None, MissingKey::Shared) => Ok(Some((Payer::SHARED, 0))),
            (None, MissingKey::Skip) => Ok(None),
            (None, MissingKey::Deny) => Err(NoKey(limit)),
        }
    }

    /// Who pays for this key.
    pub(crate) fn paid_by(&self, limit: &Limit, key: &Key<'_>) -> Payer {
        if limit.rule.key.is_some() {
            Payer::hashed(self.hasher.hash_one(key), limit.tiers.of(key))
        } else {
            Payer::SHARED
        }
    }

    /// Takes what is to be taken here, all or nothing.
    #[inline]
    fn step(&self, order: &mut Order) -> Step {
        if let Some(refusal) = self.line(order, &[]) {
            return Step::Line(refusal);
        }
        self.try_at(order, order.at)
    }

    #[inline]
    fn try_step(&self, order: &mut Order, now: Instant) -> Step {
        let earlier = order.at;
        order.at = self.nanos(now);
        self.try_at(order, earlier)
    }

    /// At the time of the order; what was taken before was so at an earlier one.
    #[inline]
    fn try_at(&self, order: &mut Order, earlier: u64) -> Step {
        if let Some(refusal) = self.denied(order) {
            self.count_refused(order, refusal.index);
            return Step::Refused(refusal);
        }
        match self.take(order, 0, true) {
            Ok(epoch) => {
                // What was taken before, with a store that has not answered since, is of an earlier time and may be of
                // an earlier epoch: too little is given back then, never too much.
                (order.at, order.epoch) = if order.taken == 0 {
                    (order.at, epoch)
                } else {
                    (order.at.min(earlier), order.epoch.min(epoch))
                };
                order.taken |= (order.here | order.pools) & !order.passed;
                if order.away == 0 {
                    self.admitted(order);
                    Step::Taken
                } else {
                    Step::Ask
                }
            }
            Err((refusal, true)) => Step::Dry(refusal),
            Err((refusal, false)) => Step::Refused(refusal),
        }
    }

    /// Takes its share of every limit from this one on if all have room, and says in which epoch. If not, says also
    /// whether leases are all that is missing.
    ///
    /// Each is tried on a copy, under its lock, and all locks are held until the last has been asked: so nobody sees
    /// a part of it. They are taken in the order of the rules, by everyone, so that nobody waits in a circle.
    fn take(&self, order: &mut Order, index: usize, room: bool) -> Result<u64, (Refusal, bool)> {
        let Some(limit) = self.limits.get(index) else {
            return Ok(self.epoch.load(Relaxed));
        };
        let bit = limit.bit();
        if (order.here | order.pools) & !order.taken & !order.passed & bit == 0 {
            return self.take(order, index + 1, room);
        }
        let (at, cost) = (order.at, order.shares[index].cost);
        let is_pool = order.pools & bit != 0;
        let store = limit.counts(is_pool);
        let mut payer = order.shares[index].payer;
        let locked = store.lock(&mut payer, at);
        if order.away & bit != 0 && payer != order.shares[index].payer {
            // The store knows what it has used, and what others have used without a seat is not that.
            drop(locked);
            order.here &= !bit;
            return self.take(order, index + 1, room);
        }
        order.shares[index].payer = payer;
        match locked.try_take(cost, at) {
            Ok(next) => {
                let others = self.take(order, index + 1, room);
                if room && others.is_ok() {
                    locked.admit(next, at);
                }
                others
            }
            Err(_) if limit.is_shadow() => {
                order.passed |= bit;
                drop(locked);
                self.take(order, index + 1, room)
            }
            Err(full) => {
                let others = self.take(order, index + 1, false);
                let is_dry = is_pool && full == Full::For(0);
                if is_dry {
                    order.dry |= bit;
                } else if order.refused & bit == 0 {
                    // Once for a request, however often it tries.
                    order.refused |= bit;
                    locked.refuse();
                }
                let mine = Refusal { index, full };
                Err(match others {
                    Err((other, all_dry)) => (self.longer(other, mine), all_dry && is_dry),
                    Ok(_) => (mine, is_dry),
                })
            }
        }
    }

    /// By name where waits are equal, so that the order of rules changes nothing.
    fn longer(&self, a: Refusal, b: Refusal) -> Refusal {
        let by = |refusal: &Refusal| {
            let name = &self.limits[refusal.index].rule.name;
            (refusal.full, Reverse(name))
        };
        if by(&a) > by(&b) { a } else { b }
    }

    fn admitted(&self, order: &Order) {
        if cfg!(feature = "metrics") {
            for (limit, _) in order.taken(&self.limits) {
                limit.metrics.admitted(limit.held());
            }
        }
        if order.passed > 0 {
            for limit in &self.limits {
                if order.passed & limit.bit() != 0 {
                    limit.shadowed();
                }
            }
        }
    }

    fn refuse_without_key(&self, limit: &Limit) -> Rejected {
        let rule = limit.rule.name.clone();
        let mut rejected = Rejected::from(KeyMissing { rule });
        limit.metrics.refused(rejected.reason());
        if self.headers == Headers::Standard {
            self.writer.write_policy(rejected.headers_mut());
        }
        rejected
    }

    fn refuse(&self, refusal: &Refusal, order: &Order, now: Instant) -> Rejected {
        let limit = &self.limits[refusal.index];
        let share = order.shares[refusal.index];
        let standing = self.standing(limit, share, order, self.nanos(now));
        let mut rejected = limit.reject(refusal.full, share, standing);
        limit.metrics.refused(rejected.reason());
        if self.headers == Headers::Standard {
            let delay = rejected.delay();
            self.write(order, delay, rejected.headers_mut(), now);
        }
        rejected
    }

    /// Writes how the rules stand that the request takes from.
    pub(crate) fn write(
        &self,
        order: &Order,
        delay: Option<Duration>,
        headers: &mut http::HeaderMap,
        now: Instant,
    ) {
        let at = self.nanos(now);
        let standings = order.applying(&self.limits).map(|(limit, share)| {
            let standing = self.standing(limit, *share, order, at);
            (limit, limit.quota(share.payer.tier()), standing)
        });
        let has_tiers = order
            .applying(&self.limits)
            .any(|(_, share)| share.payer.tier() > 0);
        let tier = |limit: &Limit| order.shares[limit.index].payer.tier();
        let policy: Option<&dyn Fn(&Limit) -> Quota> = if has_tiers {
            Some(&|limit: &Limit| limit.quota(tier(limit)))
        } else {
            None
        };
        self.writer
            .write(&self.limits, standings, policy, delay, headers);
    }

    fn standing(&self, limit: &Limit, share: Share, order: &Order, at: u64) -> Standing {
        match order.answer(limit.index) {
            Some(answer) => answer.standing,
            None if order.pools & limit.bit() != 0 => limit.standing_leased(share.payer, at),
            None if order.away & limit.bit() != 0 => self
                .standing_denied(limit, share, at)
                .unwrap_or_else(|| limit.standing_here(share.payer, at)),
            None => limit.standing_here(share.payer, at),
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.start);
        since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
    }
}

/// The request has no key for this rule, which wants one.
struct NoKey<'a>(&'a Limit);

#[cfg(test)]
mod tests;
