//! Several rules for one request: all have room and are taken from, or none is.

mod away;
mod lease;
mod order;
mod peek;
mod settle;
mod tiers;

use std::{
    cmp::Reverse,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use palisade_core::{
    deadline::Deadline,
    gate::{Admission, Admit},
    head::RequestHead,
    key::Key,
    reject::{Reason, Rejected},
    time,
};
use tokio::time::{Instant, sleep_until, timeout_at};

pub(crate) use self::order::Order;
use self::{
    away::{Asked, Away},
    lease::Leases,
    order::Share,
    settle::Adapting,
    tiers::Tiers,
};
use crate::{
    central::Central,
    cost::Learner,
    error::{CostExceedsQuota, KeyMissing, RateLimited},
    gate::Reservation,
    headers::{Headers, Writer},
    meter::{Full, Standing},
    metrics::Metrics,
    numbers::Numbers,
    pace::{InLine, Pacer},
    quota::{Quota, QuotaError},
    rule::{MissingKey, Mode, Place, Rule, RuleError, Strategy, check},
    store::{Payer, Store, Totals},
};

/// Who finds that others have taken each lease that came, for so long, is refused.
const LONGEST_REFILL: Duration = Duration::from_secs(1);

/// Longer than any request waits, and not too long to be added to an instant.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

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
    /// Times are counted from here.
    start: Instant,
    /// Counts up when counts are forgotten, so that nothing is given back to the ones that follow.
    epoch: AtomicU64,
    /// Held while quotas are changed.
    changing: Mutex<()>,
    pub(crate) pacer: Option<Pacer>,
    pub(crate) central: Option<Arc<dyn Central>>,
}

/// A rule and what was used of it.
#[derive(Debug)]
pub(crate) struct Limit {
    index: usize,
    pub(crate) rule: Rule,
    /// As they are now, for all processes together.
    numbers: ArcSwap<Numbers>,
    tiers: Tiers,
    /// What was used in this process. Of a rule that is counted in the store: what it may use without it.
    pub(crate) store: Store,
    /// Set if the rule is counted in the store.
    away: Option<Away>,
    leases: Option<Leases>,
    adapting: Option<Adapting>,
    learner: Option<Learner>,
    shadow: AtomicBool,
    shadowed: AtomicU64,
    metrics: Metrics,
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
        Ok(Self {
            writer: Writer::new(&limits),
            hasher: RandomState::new(),
            needed_by_guards: config.headers != Headers::Off
                || limits.iter().any(Limit::needs_guard),
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
        // Written down where it stays, as it is too large to be handed around.
        let mut reservation = Reservation::empty();
        let order = reservation.order();
        if let Err(NoKey(limit)) = self.share(head, now, order) {
            return Admit::Now(Err(self.refuse_without_key(limit)));
        }
        if let Err(rejected) = self.route(order, now) {
            return Admit::Now(Err(self.refuse_without_store(rejected)));
        }
        self.fell_back(order);
        match self.step(order) {
            Step::Taken => {
                // Before users' code is asked for keys again, which may panic.
                reservation.keep(self.keeper());
                self.refill_early(head, reservation.order(), now);
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

    /// Apart, so that requests that need not wait do not make room for it.
    #[cold]
    fn wait_for(
        self: &Arc<Self>,
        step: Step,
        order: Order,
        head: &RequestHead<'_>,
        now: Instant,
    ) -> Admission<Reservation> {
        // Holds what was taken, also if it is never polled.
        let mut held = Reservation::held(self.clone(), order);
        self.address(head, held.order());
        let until = self.longest_wait(head, now);
        Box::pin(self.clone().later(held, step, until))
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
                order.shares[limit.index] = Share { payer, cost };
                order.here |= limit.bit();
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

    /// Waits: for others, for time to pass, or for the store. Dropped, it has taken nothing here.
    async fn later(
        self: Arc<Self>,
        held: Reservation,
        mut step: Step,
        until: Instant,
    ) -> Result<Reservation, Rejected> {
        let limits = &self;
        // Kept while it waits, given up with the future.
        let mut lines = Vec::new();
        let mut refills_until = None;
        let (mut order, mut asking) = match step {
            Step::Ask => (Order::default(), Some(held)),
            _ => (held.give_back(), None),
        };
        loop {
            match step {
                Step::Taken => return Ok(Reservation::new(Some(self.clone()), order)),
                Step::Ask => {
                    let holding = asking.take();
                    let holding = holding.unwrap_or_else(|| Reservation::held(self.clone(), order));
                    match limits.ask(holding).await {
                        Asked::Taken(reservation) => return Ok(reservation.decided()),
                        Asked::Rejected(rejected) => return Err(rejected),
                        Asked::Refused(given_back, refusal) => {
                            order = given_back;
                            step = Step::Refused(refusal);
                        }
                    }
                }
                Step::Dry(refusal)
                    if refills_until.is_some_and(|until: Instant| until <= time::now()) =>
                {
                    step = Step::Refused(refusal);
                }
                Step::Dry(_) => {
                    // Others may have been quicker to take what came.
                    refills_until.get_or_insert_with(|| time::now() + LONGEST_REFILL);
                    let failed = limits.refill(&order).await;
                    order.dry = 0;
                    let now = time::now();
                    limits.do_without(failed, &mut order)?;
                    limits.fell_back(&order);
                    step = limits.try_step(&mut order, now);
                    continue;
                }
                Step::Refused(_) | Step::Line(_) => {}
            }
            let (Step::Refused(refusal) | Step::Line(refusal)) = step else {
                continue;
            };
            if let Err(refusal) = limits.wait(refusal, &order, until, &mut lines).await {
                return Err(limits.refuse(&refusal, &order, time::now()));
            }
            refills_until = None;
            order.begin_again();
            let now = time::now();
            if let Err(none) = limits.route(&mut order, now) {
                return Err(limits.refuse_without_store(none));
            }
            limits.fell_back(&order);
            step = match limits.line(&mut order, &lines) {
                Some(refusal) => Step::Line(refusal),
                None => limits.try_step(&mut order, now),
            };
        }
    }

    /// Waits for its turn in a line, and in front of it until there may be room. Refuses who would wait too long.
    async fn wait<'a>(
        &'a self,
        refusal: Refusal,
        order: &Order,
        until: Instant,
        lines: &mut Vec<InLine<'a>>,
    ) -> Result<(), Refusal> {
        let Some(pacer) = self.pacer.as_ref().filter(|_| self.waits(&refusal, order)) else {
            return Err(refusal);
        };
        let limit = &self.limits[refusal.index];
        let share = order.shares[refusal.index];
        let spot = (refusal.index, share.payer);
        let is_here = order.away & limit.bit() == 0 && order.pools & limit.bit() == 0;
        let now = time::now();
        // Of places in flight nobody knows when they come back.
        let too_long = |full: Full| match full {
            Full::For(_) if limit.is_in_flight() => until <= now,
            Full::For(nanos) => now + Duration::from_nanos(nanos) > until,
            Full::Forever => true,
        };
        let wait = |before| match refusal.full {
            _ if is_here => limit.wait_behind(share, before, self.nanos(time::now())),
            Full::For(nanos) => Full::For(nanos.saturating_add(limit.nanos_for(share, before))),
            Full::Forever => Full::Forever,
        };
        let refused = |full| {
            let full = match full {
                Full::For(nanos) => Full::For(nanos.max(1)),
                Full::Forever => full,
            };
            let index = refusal.index;
            Err(Refusal { index, full })
        };
        if let Some(line) = lines.iter().find(|line| line.spot == spot) {
            let Full::For(nanos) = refusal.full else {
                return Err(refusal);
            };
            if too_long(refusal.full) {
                return refused(refusal.full);
            }
            let over = until.min(now + Duration::from_nanos(nanos));
            if line.is_first() {
                // Others give back meanwhile, or somebody changes the limit.
                let _ = timeout_at(over, line.stirred()).await;
            } else {
                sleep_until(over).await;
            }
            return Ok(());
        }
        let further = !lines.is_empty();
        let Some(mut line) = pacer.join(spot, share.cost, further) else {
            return refused(wait(pacer.before(spot)));
        };
        let full = wait(line.before);
        if too_long(full) {
            return refused(full);
        }
        // In the order of the rules, by everyone, so that nobody waits in a circle. Who comes to a line by another way
        // is seen by newcomers, and waits only for the time that was named.
        if lines.iter().all(|held| held.spot.0 < spot.0)
            && timeout_at(until, line.advance()).await.is_err()
        {
            return refused(wait(0));
        }
        lines.push(line);
        Ok(())
    }

    /// Who would go ahead of others that wait for the same. Lines before the last one that it is in have been waited
    /// in, or never will be.
    #[inline]
    fn line(&self, order: &mut Order, lines: &[InLine<'_>]) -> Option<Refusal> {
        let pacer = self.pacer.as_ref()?;
        if pacer.waiting() == 0 {
            return None;
        }
        let last = lines.iter().map(|line| line.spot.0).max();
        let later = last.map_or(0, |last| last + 1);
        for limit in &self.limits[later..] {
            let share = &mut order.shares[limit.index];
            if share.cost == 0 || limit.is_shadow() {
                continue;
            }
            if order.here & limit.bit() != 0 && pacer.has_line((limit.index, Payer::SHARED)) {
                // Who finds no seat stands in line with all others who have none.
                drop(limit.store.lock(&mut share.payer, order.at));
            }
            if pacer.has_line((limit.index, share.payer)) {
                return Some(Refusal {
                    index: limit.index,
                    full: Full::For(0),
                });
            }
        }
        None
    }

    fn waits(&self, refusal: &Refusal, order: &Order) -> bool {
        let Some(pacer) = &self.pacer else {
            return false;
        };
        let limit = &self.limits[refusal.index];
        let is_open = limit.holds(order.shares[refusal.index].payer.tier()) > 0;
        is_open
            && match refusal.full {
                // A guess.
                Full::For(_) if limit.is_in_flight() => true,
                Full::For(nanos) => Duration::from_nanos(nanos) <= pacer.longest,
                Full::Forever => false,
            }
    }

    /// Something has come back to a payer: who waits for it tries again.
    #[inline]
    fn stir(&self, limit: &Limit, payer: Payer) {
        if let Some(pacer) = &self.pacer {
            pacer.stir((limit.index, payer));
        }
    }

    /// A rule has changed for all.
    pub(crate) fn stir_all(&self, limit: &Limit) {
        if let Some(pacer) = &self.pacer {
            pacer.stir_all(limit.index);
        }
    }

    fn longest_wait(&self, head: &RequestHead<'_>, now: Instant) -> Instant {
        let longest = self
            .pacer
            .as_ref()
            .map_or(Duration::ZERO, |pacer| pacer.longest);
        let until = now.checked_add(longest).unwrap_or(now + FOREVER);
        match head.extensions.get() {
            Some(Deadline(deadline)) => until.min(*deadline),
            None => until,
        }
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

impl Limit {
    fn new(
        index: usize,
        rule: Rule,
        layer: &Arc<str>,
        central: Option<&Arc<dyn Central>>,
    ) -> Result<Self, RuleError> {
        let wrong = |error| RuleError::Quota(rule.name.clone(), error);
        let adapting = (rule.strategy == Strategy::Adaptive)
            .then(|| Adapting::new(&rule.adaptive, rule.quota.limit()))
            .transpose()
            .map_err(|error| RuleError::Adaptive(rule.name.clone(), error))?;
        let following = adapting.as_ref().map(Adapting::following);
        let numbers = Arc::new(Numbers::of(&rule, following).map_err(wrong)?);
        let central = central.filter(|_| rule.place != Place::Here);
        let here = match central {
            None => numbers.clone(),
            Some(_) => {
                numbers.check_shared().map_err(wrong)?;
                let share = adapting.as_ref().map(Adapting::following_share);
                Arc::new(Numbers::of(&rule, share).map_err(wrong)?)
            }
        };
        let capacity = rule.seats();
        let store = match rule.key {
            Some(_) => Store::keyed(capacity, &here),
            None => Store::unkeyed(&here),
        };
        let leases = match (rule.place, central) {
            (Place::Leased { batch, strict }, Some(central)) => Some(Leases::new(
                rule.key.is_some().then_some(capacity),
                &numbers,
                batch,
                strict,
                central,
            )),
            _ => None,
        };
        Ok(Self {
            index,
            tiers: Tiers::new(&rule),
            away: central.map(|_| Away::new()),
            leases,
            adapting,
            learner: rule.settles().then(Learner::default),
            shadow: AtomicBool::new(rule.mode == Mode::Shadow),
            shadowed: AtomicU64::new(0),
            metrics: Metrics::new(layer, &rule.name),
            store,
            numbers: ArcSwap::new(numbers),
            rule,
        })
    }

    /// Keys with a count of their own; one with a lease may have another for what it uses without the store.
    pub(crate) fn held(&self) -> usize {
        let leased = self.leases.as_ref().map_or(0, |leases| leases.pools.held());
        self.store.held().max(leased)
    }

    pub(crate) fn bytes(&self) -> usize {
        let leased = self
            .leases
            .as_ref()
            .map_or(0, |leases| leases.pools.bytes());
        self.store.bytes() + leased
    }

    pub(crate) fn totals(&self) -> Totals {
        let leased = self.leases.as_ref().map(|leases| leases.pools.totals());
        self.store.totals() + leased.unwrap_or_default()
    }

    #[inline]
    fn bit(&self) -> u8 {
        1 << self.index
    }

    /// Where is counted what is taken in this process.
    #[inline]
    fn counts(&self, from_pool: bool) -> &Store {
        match &self.leases {
            Some(leases) if from_pool => &leases.pools,
            _ => &self.store,
        }
    }

    fn needs_guard(&self) -> bool {
        self.rule.strategy != Strategy::TokenBucket
            || self.rule.drains
            || self.away.is_some()
            || self.rule.settles()
    }

    fn is_in_flight(&self) -> bool {
        self.rule.strategy == Strategy::InFlight
    }

    pub(crate) fn is_shadow(&self) -> bool {
        self.shadow.load(Relaxed)
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.shadow.store(mode == Mode::Shadow, Relaxed);
    }

    fn shadowed(&self) {
        self.shadowed.fetch_add(1, Relaxed);
        self.metrics.shadowed();
    }

    pub(crate) fn times_shadowed(&self) -> u64 {
        self.shadowed.load(Relaxed)
    }

    pub(crate) fn quota(&self, tier: u8) -> Quota {
        let mut quota = self.numbers.load().tier(tier).quota;
        if let Some(adapting) = &self.adapting {
            quota = quota.with_limit(adapting.now());
        }
        quota
    }

    pub(crate) fn holds(&self, tier: u8) -> u64 {
        self.numbers.load().meter(tier).holds()
    }

    /// The most that such a quota can ever give at once.
    pub(crate) fn held_by(&self, quota: Quota) -> u64 {
        quota.allowed_burst().unwrap_or(quota.limit())
    }

    fn standing_here(&self, payer: Payer, at: u64) -> Standing {
        self.store
            .read(payer, |meter, count| meter.standing(count, at))
    }

    fn standing_leased(&self, payer: Payer, at: u64) -> Standing {
        self.counts(true)
            .read(payer, |meter, count| meter.standing(count, at))
    }

    /// Counts to other quotas from now on, one for each tier.
    fn renew(&self, quotas: &[Quota], at: u64) -> Result<(), QuotaError> {
        let old = self.numbers.load();
        let following = self.adapting.as_ref().map(Adapting::following);
        let strategy = self.rule.strategy;
        let numbers = Arc::new(old.with(strategy, following, quotas.iter().copied())?);
        if let Some(away) = &self.away {
            numbers.check_shared()?;
            let share = self.share_of(&numbers, away.processes())?;
            self.store.renew(&Arc::new(share), at);
        } else {
            self.store.renew(&numbers, at);
        }
        if let Some(leases) = &self.leases {
            leases.renew(&numbers, at);
        }
        self.numbers.store(numbers);
        if let Some(away) = &self.away {
            away.forget_all();
        }
        Ok(())
    }

    /// What this process may use without the store.
    fn share_of(&self, numbers: &Numbers, processes: u64) -> Result<Numbers, QuotaError> {
        let share = self.adapting.as_ref().map(Adapting::following_share);
        let quotas = numbers.tiers().iter();
        let quotas = quotas.map(|tier| tier.quota.divided_by(processes));
        numbers.with(self.rule.strategy, share, quotas)
    }

    /// Nanoseconds that so much takes to come back, evenly.
    fn nanos_for(&self, share: Share, cost: u64) -> u64 {
        let quota = self.quota(share.payer.tier());
        let nanos = u128::from(cost) * u128::from(quota.nanos()) / u128::from(quota.limit().max(1));
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// How long until there is room after those before have taken so much: exactly of a bucket, and at least of windows.
    fn wait_behind(&self, share: Share, before: u64, at: u64) -> Full {
        let full = self.store.read(share.payer, |meter, count| {
            let alone = meter.take(count, share.cost, at);
            if before == 0 || alone == Err(Full::Forever) || self.is_in_flight() {
                return alone;
            }
            if self.rule.strategy == Strategy::TokenBucket {
                let mut count = count.clone();
                meter.charge(&mut count, before, at);
                return meter.take(&count, share.cost, at);
            }
            // What there is goes first, then so many turns of all that it holds, and the last in the one after.
            let (all, holds) = (before.saturating_add(share.cost), meter.holds().max(1));
            let left = meter.standing(count, at).remaining;
            let turns = (all - left.min(all)).div_ceil(holds).saturating_sub(1);
            let last = all - turns * holds;
            let window = self.quota(share.payer.tier()).nanos();
            let first = match meter.take(count, last.min(holds), at) {
                Err(Full::For(wait)) => wait,
                _ => 0,
            };
            match first.saturating_add(turns.saturating_mul(window)) {
                0 => alone,
                wait => Err(Full::For(wait)),
            }
        });
        full.map_or_else(|full| full, |_| Full::For(0))
    }

    fn reject(&self, full: Full, share: Share, standing: Standing) -> Rejected {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);

        let name = &self.rule.name;
        let tier = share.payer.tier();
        let rule = name.clone();
        match full {
            Full::For(nanos) => {
                let quota = self.quota(tier);
                let retry_after = Duration::from_nanos(nanos);
                let reason = if self.rule.strategy != Strategy::TokenBucket && quota.window() >= DAY
                {
                    Reason::QuotaExhausted
                } else {
                    Reason::RateLimited
                };
                let limited = RateLimited {
                    rule,
                    cost: share.cost,
                    limit: quota.limit(),
                    remaining: standing.remaining,
                    retry_after,
                };
                Rejected::new(reason, limited)
                    .retry_after(retry_after)
                    .violates(name.clone())
            }
            Full::Forever => CostExceedsQuota {
                rule,
                cost: share.cost,
                holds: self.holds(tier),
            }
            .into(),
        }
    }
}

#[cfg(test)]
mod tests;
