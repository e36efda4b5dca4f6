//! Who shares which quota, and how it is counted.

mod error;

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use palisade_core::{
    head::RequestHead,
    key::{ExtractKey, Key},
};

pub use self::error::RuleError;
use crate::{
    adaptive::Adaptive,
    cost::{Estimate, Prices, Unit},
    quota::Quota,
    warm_up::WarmUp,
};

/// How a quota is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// Refills evenly and saves up a burst: any time `x` admits at most `burst + x * limit / window`. The
    /// generic cell rate algorithm of `governor`, with the time per request rounded up to whole nanoseconds.
    #[default]
    TokenBucket,
    /// Counts in windows that all keys turn together: at the turn, twice the limit can pass at once.
    FixedWindow,
    /// Counts this window and, of the one before, the share that still lies within one window's length of now. A
    /// window that begins at a turn admits at most the limit; one that does not, less than twice the limit.
    SlidingWindow,
    /// Remembers when each request came, so that no window admits more than the limit, wherever it begins. 16 bytes
    /// for each, and so for limits of at most 10 000.
    SlidingLog,
    /// A sliding window whose limit follows how requests end: see [`Adaptive`].
    Adaptive,
    /// Counts requests from when they come until their answer has ended.
    InFlight,
}

impl Strategy {
    /// The name in configuration and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::TokenBucket => "token_bucket",
            Self::FixedWindow => "fixed_window",
            Self::SlidingWindow => "sliding_window",
            Self::SlidingLog => "sliding_log",
            Self::Adaptive => "adaptive",
            Self::InFlight => "in_flight",
        }
    }
}

/// What a rule does with a request that has no key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MissingKey {
    /// All such requests share one quota.
    #[default]
    Shared,
    /// The rule does not apply.
    Skip,
    /// The request is refused with [`KeyMissing`](crate::KeyMissing).
    Deny,
}

/// What becomes of requests that a rule has no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// They are refused.
    #[default]
    Enforce,
    /// They pass and are counted, in [`RuleSnapshot::shadowed`](crate::RuleSnapshot::shadowed) and in metrics: to try
    /// a rule on live traffic.
    Shadow,
}

/// What a rule does when the store that it is shared through cannot be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnStoreError {
    /// Each process keeps to its share: the quota divided by the number of processes that shared it last.
    #[default]
    LocalShare,
    /// The rule lets all requests pass.
    Allow,
    /// The rule refuses all requests, with [`Reason::StoreUnavailable`](palisade_core::reject::Reason).
    Deny,
}

impl OnStoreError {
    /// The name in configuration and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::LocalShare => "local_share",
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Where a rule is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In this process.
    Here,
    /// In the store, if there is one.
    Store,
    /// In the store, from which so many are taken at once.
    Leased { batch: u32, strict: bool },
}

/// Requests that the logs of a rule remember in all, in 16 bytes each.
const MOST_REMEMBERED: usize = 4_000_000;

type Cost = dyn Fn(&RequestHead<'_>) -> u64 + Send + Sync;
type Member = dyn Fn(&Key<'_>) -> bool + Send + Sync;

/// A quota with a name, and who shares it.
///
/// ```
/// use palisade_core::key;
/// use palisade_rate_limit::{MissingKey, Quota, RateLimit, Rule, Strategy};
///
/// let limit = RateLimit::rules([
///     Rule::new("global", Quota::per_minute(1000)),
///     Rule::new("per_user", Quota::per_minute(100))
///         .key(key::header("x-user-id"))
///         .missing_key(MissingKey::Skip)
///         .strategy(Strategy::SlidingWindow)
///         .tier("premium", Quota::per_minute(500), |key| *key == "alice".into()),
/// ])?;
/// assert_eq!(limit.handle().peek("per_user", &"alice".into()).unwrap().limit, 500);
/// assert_eq!(limit.handle().peek("per_user", &"bob".into()).unwrap().limit, 100);
/// # Ok::<(), palisade_rate_limit::RuleError>(())
/// ```
#[derive(Clone)]
pub struct Rule {
    pub(crate) name: Arc<str>,
    pub(crate) quota: Quota,
    pub(crate) strategy: Strategy,
    pub(crate) key: Option<Arc<dyn ExtractKey>>,
    pub(crate) missing_key: MissingKey,
    pub(crate) cost: Option<Arc<Cost>>,
    pub(crate) capacity: usize,
    pub(crate) unit: Unit,
    pub(crate) estimate: Estimate,
    pub(crate) grows: bool,
    pub(crate) tiers: Vec<TierRule>,
    pub(crate) exceptions: Vec<(Key<'static>, Quota)>,
    pub(crate) adaptive: Adaptive,
    pub(crate) warm_up: Option<WarmUp>,
    pub(crate) drains: bool,
    pub(crate) mode: Mode,
    pub(crate) place: Place,
    pub(crate) on_store_error: OnStoreError,
}

/// A quota of its own for some keys.
#[derive(Clone)]
pub(crate) struct TierRule {
    pub(crate) name: Arc<str>,
    pub(crate) quota: Quota,
    pub(crate) has: Arc<Member>,
}

impl Rule {
    /// As many rules as one limit can have; a request's share of each travels with it.
    pub const MOST: usize = 8;

    /// As many tiers and exceptions as one rule can have.
    pub const MOST_TIERS: usize = 254;

    /// One quota for all requests, as a token bucket.
    ///
    /// The name stands in headers, errors and metrics: 1 to 64 visible ASCII characters but `"` and `\`.
    pub fn new(name: impl AsRef<str>, quota: Quota) -> Self {
        Self {
            name: name.as_ref().into(),
            quota,
            strategy: Strategy::default(),
            key: None,
            missing_key: MissingKey::default(),
            cost: None,
            capacity: 100_000,
            unit: Unit::Requests,
            estimate: Estimate::Most,
            grows: false,
            tiers: Vec::new(),
            exceptions: Vec::new(),
            adaptive: Adaptive::default(),
            warm_up: None,
            drains: false,
            mode: Mode::default(),
            place: Place::Store,
            on_store_error: OnStoreError::default(),
        }
    }

    /// A quota of tokens that language models read and write, in a sliding window.
    ///
    /// What a request asks for is taken from its [`Tokens`](crate::Tokens) when it comes, and corrected by what was
    /// used when its answer ends, breaks off or is dropped. A request without them takes 1, and all it used at its
    /// end.
    pub fn tokens(name: impl AsRef<str>, quota: Quota) -> Self {
        let mut rule = Self::new(name, quota).strategy(Strategy::SlidingWindow);
        rule.unit = Unit::Tokens;
        rule
    }

    /// A budget in millionths of the currency of the prices, reserved and settled as [`tokens`](Self::tokens) are.
    ///
    /// ```
    /// use palisade_rate_limit::{Price, Prices, Quota, Rule};
    ///
    /// let prices = Prices::of([("small", Price::per_million(0.15, 0.60)?)])?;
    /// // Five dollars a day.
    /// let rule = Rule::money("usd_per_day", Quota::per_day(5_000_000), prices);
    /// # let _ = rule;
    /// # Ok::<(), palisade_rate_limit::PriceError>(())
    /// ```
    pub fn money(name: impl AsRef<str>, quota: Quota, prices: Prices) -> Self {
        let mut rule = Self::new(name, quota).strategy(Strategy::SlidingWindow);
        rule.unit = Unit::Money(Arc::new(prices));
        rule
    }

    /// As many requests at a time, each until its answer has ended.
    pub fn in_flight(name: impl AsRef<str>, requests: u64) -> Self {
        Self::new(name, Quota::per_second(requests)).strategy(Strategy::InFlight)
    }

    /// The rule `global`: 1000 a minute for all together.
    pub fn global() -> Self {
        Self::new("global", Quota::per_minute(1000)).strategy(Strategy::SlidingWindow)
    }

    /// The rule `per_user`: 100 a minute for each key; it does not apply to who has none.
    pub fn per_user(key: impl ExtractKey) -> Self {
        Self::keyed("per_user", 100, key)
    }

    /// The rule `per_ip`: 200 a minute for each address; it does not apply where none is known.
    pub fn per_ip(key: impl ExtractKey) -> Self {
        Self::keyed("per_ip", 200, key)
    }

    /// The rule `premium_user`: 500 a minute for each key; it does not apply to who has none.
    pub fn premium_user(key: impl ExtractKey) -> Self {
        Self::keyed("premium_user", 500, key)
    }

    fn keyed(name: &str, limit: u64, key: impl ExtractKey) -> Self {
        Self::new(name, Quota::per_minute(limit))
            .strategy(Strategy::SlidingWindow)
            .key(key)
            .missing_key(MissingKey::Skip)
    }

    /// Counts in another way.
    #[must_use]
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Counts by [`Strategy::Adaptive`], with these numbers.
    #[must_use]
    pub fn adaptive(mut self, adaptive: Adaptive) -> Self {
        self.strategy = Strategy::Adaptive;
        self.adaptive = adaptive;
        self
    }

    /// Counts each key apart. Only a keyed hash of it is kept.
    #[must_use]
    pub fn key(mut self, key: impl ExtractKey) -> Self {
        self.key = Some(Arc::new(key));
        self
    }

    /// Decides about requests without a key; as it is, they share one quota.
    #[must_use]
    pub fn missing_key(mut self, missing_key: MissingKey) -> Self {
        self.missing_key = missing_key;
        self
    }

    /// Gives some keys a quota of their own. The first tier that has a key counts it.
    #[must_use]
    pub fn tier<F>(mut self, name: impl AsRef<str>, quota: Quota, has: F) -> Self
    where
        F: Fn(&Key<'_>) -> bool + Send + Sync + 'static,
    {
        self.tiers.push(TierRule {
            name: name.as_ref().into(),
            quota,
            has: Arc::new(has),
        });
        self
    }

    /// Gives this key a quota of its own, whatever tier it is in.
    #[must_use]
    pub fn exception(mut self, key: impl Into<Key<'static>>, quota: Quota) -> Self {
        self.exceptions.push((key.into(), quota));
        self
    }

    /// Takes more than one for a request; for 0, the rule does not apply.
    #[must_use]
    pub fn cost<F>(mut self, cost: F) -> Self
    where
        F: Fn(&RequestHead<'_>) -> u64 + Send + Sync + 'static,
    {
        self.cost = Some(Arc::new(cost));
        self
    }

    /// Reserves for an answer whose length nobody knows yet; as it is, [`Estimate::Most`].
    #[must_use]
    pub fn estimate(mut self, estimate: Estimate) -> Self {
        self.estimate = estimate;
        self
    }

    /// Takes 64 tokens more whenever a stream comes near what is reserved for it, and ends it with
    /// [`RateLimited`](crate::RateLimited) where there are none. So no stream uses 64 more than there were.
    #[must_use]
    pub fn growing(mut self) -> Self {
        self.grows = true;
        self
    }

    /// Starts with a third of the quota, and raises it evenly to all of it. Waits named meanwhile are upper bounds.
    #[must_use]
    pub fn warm_up(mut self, period: Duration) -> Self {
        self.warm_up = Some(WarmUp::over(period));
        self
    }

    /// Takes all that remains when the service answers that it is overloaded, such as with 429. A bucket then refills
    /// after as long as its `Retry-After` says, at most five minutes; one that is counted in a store, at once.
    #[must_use]
    pub fn drain_on_overload(mut self) -> Self {
        self.drains = true;
        self
    }

    /// Enforces the rule, or only counts what it would refuse.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Counts in this process alone, though there is a store.
    #[must_use]
    pub fn local(mut self) -> Self {
        self.place = Place::Here;
        self
    }

    /// Takes `batch` at once from the store and spends them here, so that most requests do not ask it.
    ///
    /// `n` processes that share it admit up to `min(n * batch, rate * lease)` more than the quota in any time, and
    /// what a process does not spend within the lease is lost. For token buckets, fixed and sliding windows that
    /// count requests, unless they [drain](Self::drain_on_overload): what other processes hold would be spent all the
    /// same.
    #[must_use]
    pub fn leased(mut self, batch: u32) -> Self {
        self.place = Place::Leased {
            batch,
            strict: false,
        };
        self
    }

    /// Leases from a quota that is smaller by as much as leases may exceed it, so that they never exceed the quota.
    #[must_use]
    pub fn strict(mut self) -> Self {
        if let Place::Leased { strict, .. } = &mut self.place {
            *strict = true;
        }
        self
    }

    /// Decides what happens while the store cannot be asked; as it is, each process keeps to its share.
    #[must_use]
    pub fn on_store_error(mut self, policy: OnStoreError) -> Self {
        self.on_store_error = policy;
        self
    }

    /// Keeps at most this many keys apart, in at most 100 bytes each; as it is, 100 000. A sliding log keeps fewer, so
    /// that they remember at most four million requests.
    ///
    /// A key that has all of its quota again makes room for a new one. When none has, new keys share one quota, with
    /// requests that have no key.
    #[must_use]
    pub fn capacity(mut self, keys: usize) -> Self {
        self.capacity = keys;
        self
    }

    /// Whether what is reserved is corrected at the end.
    pub(crate) fn settles(&self) -> bool {
        !matches!(self.unit, Unit::Requests)
    }

    /// As many keys as are kept apart.
    pub(crate) fn seats(&self) -> usize {
        if self.strategy != Strategy::SlidingLog {
            return self.capacity;
        }
        let each = usize::try_from(self.quota.limit().max(1)).unwrap_or(usize::MAX);
        self.capacity.min((MOST_REMEMBERED / each).max(1))
    }

    fn check(&self) -> Result<(), RuleError> {
        let name = || self.name.clone();
        if !is_name(&self.name) {
            return Err(RuleError::Name(name()));
        }
        if self.tiers.len() + self.exceptions.len() > Self::MOST_TIERS {
            return Err(RuleError::TooManyTiers(name()));
        }
        if let Some(tier) = self.tiers.iter().find(|tier| !is_name(&tier.name)) {
            return Err(RuleError::Name(tier.name.clone()));
        }
        let counts_windows = matches!(
            self.strategy,
            Strategy::FixedWindow | Strategy::SlidingWindow | Strategy::Adaptive
        );
        if self.settles() && !counts_windows {
            return Err(RuleError::CannotSettle(name(), self.strategy));
        }
        if self.settles() && self.warm_up.is_some() {
            return Err(RuleError::CannotWarmUp(name()));
        }
        let has_tiers = !self.tiers.is_empty() || !self.exceptions.is_empty();
        if self.strategy == Strategy::Adaptive && has_tiers {
            return Err(RuleError::CannotTier(name()));
        }
        if self.grows && !self.settles() {
            return Err(RuleError::CannotGrow(name()));
        }
        let can_lease = matches!(
            self.strategy,
            Strategy::TokenBucket | Strategy::FixedWindow | Strategy::SlidingWindow
        );
        match self.place {
            Place::Leased { .. } if self.settles() || self.drains || !can_lease => {
                Err(RuleError::CannotLease(name()))
            }
            Place::Leased { batch: 0, .. } => Err(RuleError::EmptyLease(name())),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("name", &self.name)
            .field("quota", &self.quota)
            .field("strategy", &self.strategy)
            .field("keyed", &self.key.is_some())
            .field("missing_key", &self.missing_key)
            .field("capacity", &self.capacity)
            .field("mode", &self.mode)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

fn is_name(name: &str) -> bool {
    let visible = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    !name.is_empty() && name.len() <= 64 && name.bytes().all(visible)
}

pub(crate) fn check(rules: &[Rule]) -> Result<(), RuleError> {
    if rules.len() > Rule::MOST {
        return Err(RuleError::TooMany(rules.len()));
    }
    let mut names = HashSet::new();
    for rule in rules {
        rule.check()?;
        if !names.insert(&rule.name) {
            return Err(RuleError::Duplicate(rule.name.clone()));
        }
    }
    Ok(())
}
