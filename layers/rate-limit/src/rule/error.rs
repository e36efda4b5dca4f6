//! What is wrong with rules, in words.

use std::{error::Error, fmt, sync::Arc};

use super::{Rule, Strategy};
use crate::{adaptive::AdaptiveError, quota::QuotaError};

/// Why rules cannot be kept.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RuleError {
    /// The name is not 1 to 64 visible ASCII characters without `"` and `\`.
    Name(Arc<str>),
    /// Two rules have this name.
    Duplicate(Arc<str>),
    /// This many rules are more than [`Rule::MOST`].
    TooMany(usize),
    /// The rule has more tiers and exceptions than [`Rule::MOST_TIERS`].
    TooManyTiers(Arc<str>),
    /// The quota of this rule cannot be kept.
    Quota(Arc<str>, QuotaError),
    /// What was reserved cannot be corrected with this strategy: only windows can give back.
    CannotSettle(Arc<str>, Strategy),
    /// Only costs that are corrected can grow: those of tokens and money.
    CannotGrow(Arc<str>),
    /// An adaptive rule has one limit, which moves by itself.
    CannotTier(Arc<str>),
    /// A quota whose costs are corrected cannot be warmed up.
    CannotWarmUp(Arc<str>),
    /// Only token buckets and windows that count requests can be leased, and only if they do not drain.
    CannotLease(Arc<str>),
    /// A lease of none.
    EmptyLease(Arc<str>),
    /// The limits of an adaptive rule are out of order.
    Adaptive(Arc<str>, AdaptiveError),
    /// There is no such rule.
    NoSuchRule(Arc<str>),
    /// The rule has no such tier.
    NoSuchTier(Arc<str>),
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
            Self::TooManyTiers(name) => write!(
                f,
                "rule {name} has more than {} tiers and exceptions",
                Rule::MOST_TIERS
            ),
            Self::Quota(name, _) => write!(f, "the quota of rule {name} cannot be kept"),
            Self::CannotSettle(name, strategy) => write!(
                f,
                "rule {name} corrects costs at their end, which {} cannot: use sliding_window or fixed_window",
                strategy.name()
            ),
            Self::CannotGrow(name) => {
                write!(
                    f,
                    "rule {name} counts no tokens and no money that could grow"
                )
            }
            Self::CannotTier(name) => write!(
                f,
                "rule {name} adapts one limit by itself: it has no tiers, no exceptions and no updates"
            ),
            Self::CannotWarmUp(name) => {
                write!(f, "rule {name} corrects costs, and cannot be warmed up")
            }
            Self::CannotLease(name) => write!(
                f,
                "rule {name} cannot be leased: only token buckets and windows that count requests can, without drain"
            ),
            Self::Adaptive(name, _) => write!(f, "the limits of rule {name} are out of order"),
            Self::EmptyLease(name) => write!(f, "rule {name} leases none at once"),
            Self::NoSuchRule(name) => write!(f, "there is no rule {name}"),
            Self::NoSuchTier(name) => write!(f, "there is no tier {name}"),
        }
    }
}

impl Error for RuleError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Quota(_, error) => Some(error),
            Self::Adaptive(_, error) => Some(error),
            _ => None,
        }
    }
}
