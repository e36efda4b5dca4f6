//! Several rules for one request: all have room and are taken from, or none is.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use palisade_core::{
    head::RequestHead,
    key::Key,
    reject::{Reason, Rejected},
};
use tokio::time::Instant;

use crate::{
    error::{CostExceedsQuota, KeyMissing, RateLimited},
    handle::State,
    headers::{Headers, Writer},
    meter::{Count, Full, Meter, Standing},
    metrics::Metrics,
    rule::{MissingKey, Rule, RuleError, Strategy, check_names},
    store::{Payer, Store},
};

/// What users decide about a limit.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) rules: Vec<Rule>,
    pub(crate) headers: Headers,
    pub(crate) name: Arc<str>,
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
}

/// A rule and what was used of it.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) rule: Rule,
    pub(crate) store: Store,
    meter: Meter,
    metrics: Metrics,
}

/// What a request takes from each rule, by place; nothing from those that do not apply.
pub(crate) type Shares = [Share; Rule::MOST];

/// What a request takes from one rule.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Share {
    payer: Payer,
    /// Zero: the rule does not apply.
    cost: u64,
}

/// What one request took, and when.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    shares: Shares,
    at: u64,
    epoch: u64,
}

/// One or more rules have no room.
#[derive(Debug)]
struct Refusal<'a> {
    /// With the longest wait.
    limit: &'a Limit,
    share: Share,
    full: Full,
}

impl Limits {
    pub(crate) fn new(config: Config, start: Instant) -> Result<Self, RuleError> {
        check_names(&config.rules)?;
        let limits = config
            .rules
            .into_iter()
            .map(|rule| Limit::new(rule, &config.name));
        let limits: Box<[Limit]> = limits.collect::<Result<_, _>>()?;
        Ok(Self {
            writer: Writer::new(&limits),
            hasher: RandomState::new(),
            needed_by_guards: config.headers != Headers::Off
                || limits.iter().any(|limit| limit.meter.gives_back()),
            epoch: AtomicU64::new(0),
            limits,
            headers: config.headers,
            name: config.name,
            start,
        })
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            rules: self.limits.iter().map(|limit| limit.rule.clone()).collect(),
            headers: self.headers,
            name: self.name.clone(),
        }
    }

    /// Takes from all rules, or from none. Writes it down in place, as it is too large to be handed around.
    #[inline]
    pub(crate) fn take(
        &self,
        head: &RequestHead<'_>,
        now: Instant,
        taken: &mut Taken,
    ) -> Result<(), Rejected> {
        if let Err(NoKey(limit)) = self.share(head, &mut taken.shares) {
            return Err(self.refuse_without_key(limit));
        }
        taken.at = self.nanos(now);
        match take(&self.limits, &mut taken.shares, taken.at, &self.epoch, true) {
            Ok(epoch) => taken.epoch = epoch,
            Err(refusal) => return Err(self.refuse(&refusal, &taken.shares, now)),
        }
        for (limit, _) in applying(&self.limits, &taken.shares) {
            limit.metrics.admitted(limit.store.held());
        }
        Ok(())
    }

    /// Whether a guard will ever ask: for headers, or to give back.
    #[inline]
    pub(crate) fn needed_by_guards(&self) -> bool {
        self.needed_by_guards
    }

    /// Gives back what can be: the request was never worked on.
    pub(crate) fn give_back(&self, taken: &Taken) {
        for (limit, share) in applying(&self.limits, &taken.shares) {
            if !limit.meter.gives_back() {
                continue;
            }
            limit.store.change(share.payer, |count| {
                if self.epoch.load(Relaxed) == taken.epoch {
                    *count = limit.meter.give_back(count, share.cost, taken.at);
                }
            });
        }
    }

    /// Writes how the rules stand that the request took from.
    pub(crate) fn decorate(&self, taken: &Taken, headers: &mut http::HeaderMap, now: Instant) {
        let at = self.nanos(now);
        let standings = applying(&self.limits, &taken.shares)
            .map(|(limit, share)| (limit, limit.standing(share.payer, at)));
        self.writer.write(standings, None, headers);
    }

    /// How the rules stand that such a request has a key for, or that need none.
    pub(crate) fn peek(&self, head: &RequestHead<'_>, now: Instant) -> Vec<State> {
        let at = self.nanos(now);
        let payers = self
            .limits
            .iter()
            .map(|limit| (limit, self.payer(limit, head)));
        payers
            .filter_map(|(limit, payer)| Some(limit.state(payer.ok()??, at)))
            .collect()
    }

    pub(crate) fn peek_key(&self, limit: &Limit, key: &Key<'_>, now: Instant) -> State {
        limit.state(self.paid_by(limit, key), self.nanos(now))
    }

    pub(crate) fn forget(&self, limit: &Limit, payer: Payer) -> bool {
        limit.store.forget(payer, || {
            self.epoch.fetch_add(1, Relaxed);
        })
    }

    /// Who pays for this key.
    pub(crate) fn paid_by(&self, limit: &Limit, key: &Key<'_>) -> Payer {
        if limit.store.is_keyed() {
            Payer::hashed(self.hasher.hash_one(key))
        } else {
            Payer::SHARED
        }
    }

    /// All that asks users' code, before anything is locked.
    #[inline]
    fn share(&self, head: &RequestHead<'_>, shares: &mut Shares) -> Result<(), NoKey<'_>> {
        for (limit, share) in self.limits.iter().zip(shares) {
            let cost = limit.rule.cost.as_ref().map_or(1, |cost| cost(head));
            if cost > 0
                && let Some(payer) = self.payer(limit, head)?
            {
                *share = Share { payer, cost };
            }
        }
        Ok(())
    }

    /// `None` if the rule does not apply.
    #[inline]
    fn payer<'a>(
        &self,
        limit: &'a Limit,
        head: &RequestHead<'_>,
    ) -> Result<Option<Payer>, NoKey<'a>> {
        let Some(extract) = &limit.rule.key else {
            return Ok(Some(Payer::SHARED));
        };
        match (extract.key(head), limit.rule.missing_key) {
            (Some(key), _) => Ok(Some(Payer::hashed(self.hasher.hash_one(&key)))),
            (None, MissingKey::Shared) => Ok(Some(Payer::SHARED)),
            (None, MissingKey::Skip) => Ok(None),
            (None, MissingKey::Deny) => Err(NoKey(limit)),
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

    fn refuse(&self, refusal: &Refusal<'_>, shares: &Shares, now: Instant) -> Rejected {
        let mut rejected = refusal.reject();
        refusal.limit.metrics.refused(rejected.reason());
        if self.headers == Headers::Standard {
            let at = self.nanos(now);
            let standings = applying(&self.limits, shares)
                .map(|(limit, share)| (limit, limit.standing(share.payer, at)));
            let delay = rejected.delay();
            self.writer.write(standings, delay, rejected.headers_mut());
        }
        rejected
    }

    fn nanos(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.start);
        since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
    }
}

/// The request has no key for this rule, which wants one.
struct NoKey<'a>(&'a Limit);

impl Limit {
    fn new(rule: Rule, layer: &Arc<str>) -> Result<Self, RuleError> {
        let meter = Meter::new(rule.strategy, &rule.quota)
            .map_err(|error| RuleError::Quota(rule.name.clone(), error))?;
        let store = match rule.key {
            Some(_) => Store::keyed(rule.capacity),
            None => Store::unkeyed(),
        };
        Ok(Self {
            metrics: Metrics::new(layer, &rule.name),
            store,
            meter,
            rule,
        })
    }

    pub(crate) fn holds(&self) -> u64 {
        self.meter.holds()
    }

    fn standing(&self, payer: Payer, at: u64) -> Standing {
        self.meter.standing(&self.store.read(payer), at)
    }

    fn state(&self, payer: Payer, at: u64) -> State {
        let standing = self.standing(payer, at);
        State {
            rule: self.rule.name.clone(),
            strategy: self.rule.strategy,
            limit: self.rule.quota.limit(),
            window: self.rule.quota.window(),
            holds: self.holds(),
            remaining: standing.remaining,
            retry_after: Duration::from_nanos(standing.retry_after),
            reset_after: Duration::from_nanos(standing.reset_after),
        }
    }
}

/// Takes its share of every limit if all have room, and says in which epoch.
///
/// Each is tried on a copy, under its lock, and all locks are held until the last has been asked: so nobody sees
/// a part of it. They are taken in the order of the rules, by everyone, so that nobody waits in a circle.
fn take<'a>(
    limits: &'a [Limit],
    shares: &mut [Share],
    at: u64,
    epoch: &AtomicU64,
    room: bool,
) -> Result<u64, Refusal<'a>> {
    let (Some((limit, limits)), Some((share, shares))) =
        (limits.split_first(), shares.split_first_mut())
    else {
        return Ok(epoch.load(Relaxed));
    };
    if share.cost == 0 {
        return take(limits, shares, at, epoch, room);
    }
    let meter = &limit.meter;
    let idle = |count: &Count, nanos| meter.is_idle(count, at.saturating_sub(nanos));
    let locked = limit.store.lock(&mut share.payer, idle);
    let tried = meter.take(&locked.count(), share.cost, at);
    match (
        tried,
        take(limits, shares, at, epoch, room && tried.is_ok()),
    ) {
        (Ok(count), Ok(epoch)) => {
            if room {
                locked.admit(count);
            }
            Ok(epoch)
        }
        (Ok(_), Err(refusal)) => Err(refusal),
        (Err(full), others) => {
            locked.refuse();
            let refusal = Refusal {
                limit,
                share: *share,
                full,
            };
            Err(match others {
                Err(other) if other.binds_longer_than(&refusal) => other,
                _ => refusal,
            })
        }
    }
}

impl Refusal<'_> {
    /// By name where waits are equal, so that the order of rules changes nothing.
    fn binds_longer_than(&self, other: &Self) -> bool {
        (self.full, &other.limit.rule.name) > (other.full, &self.limit.rule.name)
    }

    fn reject(&self) -> Rejected {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);

        let Rule {
            name,
            quota,
            strategy,
            ..
        } = &self.limit.rule;
        let rule = name.clone();
        match self.full {
            Full::For(nanos) => {
                let retry_after = Duration::from_nanos(nanos);
                let reason = if *strategy != Strategy::TokenBucket && quota.window() >= DAY {
                    Reason::QuotaExhausted
                } else {
                    Reason::RateLimited
                };
                let limited = RateLimited { rule, retry_after };
                Rejected::new(reason, limited)
                    .retry_after(retry_after)
                    .violates(name.clone())
            }
            Full::Forever => CostExceedsQuota {
                rule,
                cost: self.share.cost,
                holds: self.limit.holds(),
            }
            .into(),
        }
    }
}

/// The rules that the request takes from.
pub(crate) fn applying<'a>(
    limits: &'a [Limit],
    shares: &'a Shares,
) -> impl Iterator<Item = (&'a Limit, &'a Share)> {
    limits
        .iter()
        .zip(shares)
        .filter(|(_, share)| share.cost > 0)
}
