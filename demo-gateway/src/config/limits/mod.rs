//! Who may ask how often, and for how much.

mod amount;
mod check;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::amount::Amount;
pub(crate) use self::check::told;
use super::duration;

/// Who may ask how often.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The name in headers, answers and metrics.
    pub name: String,
    /// What it counts by.
    pub identifier: Identifier,
    /// How they are counted.
    #[serde(default)]
    pub strategy: LimitStrategy,
    /// What is counted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unit: Unit,
    /// How much passes within `window`: requests, tokens, or money in the currency of the prices; of `in_flight`, at a
    /// time.
    pub max_requests: Amount,
    /// The time that `max_requests` is for; `in_flight` needs none.
    #[serde(
        default,
        with = "duration::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub window: Option<Duration>,
    /// How much passes at once; only for `token_bucket`, which takes `max_requests` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// How much is reserved for an answer whose length nobody knows yet; only for tokens and money.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// Whether streams take more while they run, and end where there is no more; only for tokens and money.
    #[serde(default, skip_serializing_if = "is_default")]
    pub growing: bool,
    /// Whether it refuses, or only counts what it would refuse.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Mode,
    /// For how long after the start less passes: a third at first.
    #[serde(
        default,
        with = "duration::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub warm_up: Option<Duration>,
    /// Whether nothing is left when backends answer that they are overloaded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub drain_on_overload: bool,
    /// What it does while the store cannot be asked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_store_error: OnStoreError,
    /// How much is taken from the store at once, so that most requests do not ask it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u32>,
    /// Whether leases never exceed the limit, which makes it a little smaller.
    #[serde(default, skip_serializing_if = "is_default")]
    pub strict: bool,
    /// Whether each gateway counts for itself though there is a store.
    #[serde(default, skip_serializing_if = "is_default")]
    pub local: bool,
    /// How many callers are counted apart in this process [default: 100000].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<usize>,
    /// How the limit of `strategy = "adaptive"` moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
    /// Other numbers for keys of a tier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<TierQuota>,
    /// Other numbers for single callers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceptions: Vec<Exception>,
}

impl Rule {
    /// So many requests in each window, with the defaults for the rest.
    ///
    /// ```
    /// use std::time::Duration;
    /// use demo_gateway::config::{Identifier, Rule};
    ///
    /// let rule = Rule::new("per_user", Identifier::User, 100, Duration::from_secs(60));
    /// assert_eq!(rule.strategy.name(), "sliding_window");
    /// ```
    pub fn new(
        name: impl Into<String>,
        identifier: Identifier,
        max_requests: impl Into<Amount>,
        window: Duration,
    ) -> Self {
        Self {
            name: name.into(),
            identifier,
            strategy: LimitStrategy::default(),
            unit: Unit::default(),
            max_requests: max_requests.into(),
            window: Some(window),
            burst: None,
            estimate: None,
            growing: false,
            mode: Mode::default(),
            warm_up: None,
            drain_on_overload: false,
            on_store_error: OnStoreError::default(),
            lease: None,
            strict: false,
            local: false,
            capacity: None,
            adaptive: None,
            tiers: Vec::new(),
            exceptions: Vec::new(),
        }
    }

    pub(super) fn defaults() -> Vec<Self> {
        use Identifier::{Global, Ip, Premium, User};

        let minute = Duration::from_secs(60);
        [
            ("global", Global, 1000),
            ("per_user", User, 100),
            ("per_ip", Ip, 200),
            ("premium_user", Premium, 500),
        ]
        .map(|(name, identifier, max_requests)| Self::new(name, identifier, max_requests, minute))
        .into()
    }

    /// Whether it has numbers of its own for premium callers, who else have rules of their own.
    pub(crate) fn knows_premium(&self) -> bool {
        self.tiers.iter().any(|tier| tier.name == PREMIUM)
    }
}

/// The tier of a key that names none.
pub(crate) const BASIC: &str = "basic";

/// The tier that rules with `identifier = "premium"` are for.
pub(crate) const PREMIUM: &str = "premium";

/// What a rule counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Identifier {
    /// All requests together.
    Global,
    /// The key or the user; keys of the tier `premium` only if the rule has a tier of that name.
    User,
    /// The key or the user behind it, if the key is of the tier `premium`.
    Premium,
    /// The key, also for all the users that it speaks for.
    Key,
    /// The address, whoever asks from there.
    Ip,
    /// The model that is asked.
    Model,
}

impl Identifier {
    /// Whether it tells callers apart that a key table can put into tiers.
    pub(crate) fn has_tiers(self) -> bool {
        matches!(self, Self::User | Self::Key)
    }
}

/// How a rule counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitStrategy {
    /// In the trailing window, estimated from two counters.
    #[default]
    SlidingWindow,
    /// In windows that follow each other.
    FixedWindow,
    /// As a steady rate with a burst.
    TokenBucket,
    /// In the trailing window, each request by itself.
    SlidingLog,
    /// In the trailing window, with a limit that follows how requests end.
    Adaptive,
    /// At a time, each request until its answer has ended.
    InFlight,
}

impl LimitStrategy {
    /// The name in files and answers.
    pub fn name(self) -> &'static str {
        palisade::rate_limit::Strategy::from(self).name()
    }

    /// Whether what was reserved can be corrected: only counters of windows can give back.
    pub(crate) fn settles(self) -> bool {
        matches!(
            self,
            Self::SlidingWindow | Self::FixedWindow | Self::Adaptive
        )
    }

    pub(crate) fn can_lease(self) -> bool {
        matches!(
            self,
            Self::SlidingWindow | Self::FixedWindow | Self::TokenBucket
        )
    }
}

impl From<LimitStrategy> for palisade::rate_limit::Strategy {
    fn from(strategy: LimitStrategy) -> Self {
        match strategy {
            LimitStrategy::SlidingWindow => Self::SlidingWindow,
            LimitStrategy::FixedWindow => Self::FixedWindow,
            LimitStrategy::TokenBucket => Self::TokenBucket,
            LimitStrategy::SlidingLog => Self::SlidingLog,
            LimitStrategy::Adaptive => Self::Adaptive,
            LimitStrategy::InFlight => Self::InFlight,
        }
    }
}

/// What a rule counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Each request as one.
    #[default]
    Requests,
    /// Tokens read and written: reserved when a request comes, corrected when its answer has ended.
    Tokens,
    /// What the tokens cost by `prices`.
    Money,
}

impl Unit {
    /// Whether costs are reserved, and corrected at the end.
    pub(crate) fn settles(self) -> bool {
        self != Self::Requests
    }
}

/// How much is reserved for an answer whose length nobody knows yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimate {
    /// The most that the request allows.
    #[default]
    Most,
    /// What 95 of 100 answers to this caller by this model stay below.
    Learned,
}

/// Whether a rule refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It does.
    #[default]
    Enforce,
    /// It only counts what it would refuse.
    Shadow,
}

impl From<Mode> for palisade::rate_limit::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Enforce => Self::Enforce,
            Mode::Shadow => Self::Shadow,
        }
    }
}

/// What a rule does while the store that it is shared through cannot be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnStoreError {
    /// Each gateway keeps to its share: the limit divided by how many shared it last.
    #[default]
    LocalShare,
    /// All requests pass.
    Allow,
    /// All requests are refused.
    Deny,
}

impl From<OnStoreError> for palisade::rate_limit::OnStoreError {
    fn from(policy: OnStoreError) -> Self {
        match policy {
            OnStoreError::LocalShare => Self::LocalShare,
            OnStoreError::Allow => Self::Allow,
            OnStoreError::Deny => Self::Deny,
        }
    }
}

/// How the limit of an adaptive rule moves. It starts at `max_requests`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adaptive {
    /// The lowest [default: a tenth].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least: Option<u64>,
    /// The highest [default: ten times as much].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most: Option<u64>,
    /// By which factor it goes up.
    pub grow: f64,
    /// By which factor it goes down.
    pub shrink: f64,
    /// The share of good answers from which it goes up.
    pub threshold: f64,
    /// How often it moves.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// After how many answers at least.
    pub samples: u64,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self {
            least: None,
            most: None,
            grow: 1.2,
            shrink: 0.8,
            threshold: 0.95,
            interval: Duration::from_secs(300),
            samples: 20,
        }
    }
}

/// The numbers of a rule for keys of a tier.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TierQuota {
    /// As in `identity.keys`.
    pub name: String,
    /// Instead of the rule's.
    pub max_requests: Amount,
    /// Instead of the rule's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// The numbers of a rule for a single caller.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    /// Who, as in `/rate-limits/{identifier}`: `user:NAME`, `api_key:ID`, `ip:ADDRESS` or `model:NAME`.
    pub identifier: String,
    /// Instead of the rule's.
    pub max_requests: Amount,
    /// Instead of the rule's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// What a model takes for its tokens, in some currency.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// For a million that it reads.
    pub prompt: f64,
    /// For a million that it writes.
    pub completion: f64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests;
