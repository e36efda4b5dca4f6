//! Who shares which quota, and how it is counted.

use std::{collections::HashSet, error::Error, fmt, sync::Arc};

use palisade_core::{head::RequestHead, key::ExtractKey};

use crate::quota::{Quota, QuotaError};

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
}

impl Strategy {
    /// The name in configuration and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::TokenBucket => "token_bucket",
            Self::FixedWindow => "fixed_window",
            Self::SlidingWindow => "sliding_window",
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

type Cost = dyn Fn(&RequestHead<'_>) -> u64 + Send + Sync;

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
///         .strategy(Strategy::SlidingWindow),
/// ])?;
/// assert_eq!(limit.handle().rules().count(), 2);
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
}

impl Rule {
    /// As many rules as one limit can have; a request's share of each travels with it.
    pub const MOST: usize = 8;

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
        }
    }

    /// Counts in another way.
    #[must_use]
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
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

    /// Takes more than one for a request; for 0, the rule does not apply.
    #[must_use]
    pub fn cost<F>(mut self, cost: F) -> Self
    where
        F: Fn(&RequestHead<'_>) -> u64 + Send + Sync + 'static,
    {
        self.cost = Some(Arc::new(cost));
        self
    }

    /// Keeps at most this many keys apart, in at most 80 bytes each; as it is, 100 000.
    ///
    /// A key that has all of its quota again makes room for a new one. When none has, new keys share one quota, with
    /// requests that have no key.
    #[must_use]
    pub fn capacity(mut self, keys: usize) -> Self {
        self.capacity = keys;
        self
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
            .finish_non_exhaustive()
    }
}

pub(crate) fn check_names(rules: &[Rule]) -> Result<(), RuleError> {
    if rules.len() > Rule::MOST {
        return Err(RuleError::TooMany(rules.len()));
    }
    let mut names = HashSet::new();
    for rule in rules {
        let name = &rule.name;
        let visible = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(visible) {
            return Err(RuleError::Name(name.clone()));
        }
        if !names.insert(name) {
            return Err(RuleError::Duplicate(name.clone()));
        }
    }
    Ok(())
}

/// Why rules cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RuleError {
    /// The name is not 1 to 64 visible ASCII characters without `"` and `\`.
    Name(Arc<str>),
    /// Two rules have this name.
    Duplicate(Arc<str>),
    /// This many rules are more than [`Rule::MOST`].
    TooMany(usize),
    /// The quota of this rule cannot be kept.
    Quota(Arc<str>, QuotaError),
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(
                f,
                "{name:?} is not 1 to 64 visible ASCII characters without quotes and backslashes"
            ),
            Self::Duplicate(name) => write!(f, "two rules are named {name}"),
            Self::TooMany(many) => write!(f, "{many} rules are more than {}", Rule::MOST),
            Self::Quota(name, _) => write!(f, "the quota of rule {name} cannot be kept"),
        }
    }
}

impl Error for RuleError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Quota(_, error) => Some(error),
            _ => None,
        }
    }
}
