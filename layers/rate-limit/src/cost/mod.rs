//! What a request costs when not all cost alike: reserved by an estimate, corrected when the answer has ended.

mod account;
mod estimate;
mod learner;
mod prices;
mod tokens;

use std::sync::Arc;

pub(crate) use self::{account::Account, learner::Learner};
pub use self::{
    estimate::Estimate,
    prices::{Price, PriceError, Prices},
    tokens::Tokens,
};

/// What the quota of a rule counts.
#[derive(Clone, Debug)]
pub(crate) enum Unit {
    Requests,
    Tokens,
    /// In millionths of the currency.
    Money(Arc<Prices>),
}

impl Unit {
    /// The name in headers; requests need none.
    pub(crate) fn name(&self) -> Option<&'static str> {
        match self {
            Self::Requests => None,
            Self::Tokens => Some("tokens"),
            Self::Money(_) => Some("money"),
        }
    }

    /// What so many tokens cost.
    pub(crate) fn amount(&self, model: &str, prompt: u64, completion: u64) -> u64 {
        match self {
            Self::Requests => 1,
            Self::Tokens => prompt.saturating_add(completion),
            Self::Money(prices) => prices.cost(model, prompt, completion),
        }
    }
}

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: palisade_core::testing::CountingAllocator =
    palisade_core::testing::CountingAllocator;
