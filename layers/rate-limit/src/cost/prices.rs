//! What tokens cost, by model.

use std::{collections::HashMap, error::Error, fmt, sync::Arc};

/// Tokens that a price is for.
const MILLION: u128 = 1_000_000;

/// What a model takes for a million tokens read and a million written, in some currency.
///
/// Kept in whole millionths of the currency.
///
/// ```
/// use palisade_rate_limit::Price;
///
/// let price = Price::per_million(2.5, 10.0)?;
/// assert!(Price::per_million(-2.5, 10.0).is_err());
/// # let _ = price;
/// # Ok::<(), palisade_rate_limit::PriceError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    prompt: u64,
    completion: u64,
}

impl Price {
    /// What so much costs at most, in the currency: what a double counts in whole millionths.
    pub const MOST: f64 = 9e9;

    /// A price for a million tokens of prompts, and one for a million tokens of completions.
    ///
    /// Rounded to the nearest millionth of the currency, but not to nothing.
    ///
    /// # Errors
    ///
    /// If one is negative, no number, or above [`MOST`](Self::MOST).
    pub fn per_million(prompt: f64, completion: f64) -> Result<Self, PriceError> {
        Ok(Self {
            prompt: micros(prompt)?,
            completion: micros(completion)?,
        })
    }

    /// The dearer of both, for prompts and completions apart.
    fn max(self, other: Self) -> Self {
        Self {
            prompt: self.prompt.max(other.prompt),
            completion: self.completion.max(other.completion),
        }
    }

    /// In millionths, rounded up.
    fn cost(self, prompt: u64, completion: u64) -> u64 {
        // Prices are below 2^53, so that the sum is below 2^118.
        let prompt = u128::from(self.prompt) * u128::from(prompt);
        let completion = u128::from(self.completion) * u128::from(completion);
        u64::try_from((prompt + completion).div_ceil(MILLION)).unwrap_or(u64::MAX)
    }
}

fn micros(price: f64) -> Result<u64, PriceError> {
    if !(0.0..=Price::MOST).contains(&price) {
        return Err(PriceError::Price(price));
    }
    let micros = (price * 1e6).round() as u64;
    Ok(if price > 0.0 { micros.max(1) } else { micros })
}

/// What each model takes for its tokens.
///
/// A quota of money counts in millionths of the currency: `Quota::per_day(5_000_000)` is 5.
///
/// ```
/// use palisade_rate_limit::{Price, Prices};
///
/// // Others than these two cost as the dearer one.
/// let known = Prices::of([
///     ("gpt-4o", Price::per_million(2.5, 10.0)?),
///     ("gpt-4o-mini", Price::per_million(0.15, 0.6)?),
/// ])?;
/// assert_eq!(known.cost("gpt-4o-mini", 1000, 100), 210);
/// assert_eq!(known.cost("o9", 1000, 100), known.cost("gpt-4o", 1000, 100));
///
/// // All cost the same, but one.
/// let own = Prices::all(Price::per_million(1.0, 1.0)?).model("small", Price::per_million(0.5, 0.5)?);
/// assert_eq!((own.cost("large", 10, 10), own.cost("small", 10, 10)), (20, 10));
/// # Ok::<(), palisade_rate_limit::PriceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prices {
    models: HashMap<Arc<str>, Price>,
    others: Others,
}

/// What models cost that have no price of their own: never nothing for being unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    At(Price),
    /// As the dearest that there is.
    Dearest(Price),
}

impl Prices {
    /// One price for all models but those [told apart](Self::model).
    pub fn all(price: Price) -> Self {
        Self {
            models: HashMap::new(),
            others: Others::At(price),
        }
    }

    /// A price for each of these models. Others cost as much as the dearest of them, for prompts and for completions.
    ///
    /// # Errors
    ///
    /// If there is no model.
    pub fn of<M: Into<Arc<str>>>(
        models: impl IntoIterator<Item = (M, Price)>,
    ) -> Result<Self, PriceError> {
        let models: HashMap<Arc<str>, Price> = models
            .into_iter()
            .map(|(model, price)| (model.into(), price))
            .collect();
        let dearest = models.values().copied().reduce(Price::max);
        Ok(Self {
            others: Others::Dearest(dearest.ok_or(PriceError::NoModel)?),
            models,
        })
    }

    /// A price of its own for a model, by its exact name.
    #[must_use]
    pub fn model(mut self, model: impl Into<Arc<str>>, price: Price) -> Self {
        self.models.insert(model.into(), price);
        if let Others::Dearest(dearest) = &mut self.others {
            *dearest = self.models.values().copied().fold(price, Price::max);
        }
        self
    }

    /// What so many tokens cost, in millionths of the currency, rounded up; `u64::MAX` if that is not enough.
    pub fn cost(&self, model: &str, prompt: u64, completion: u64) -> u64 {
        let (Others::At(others) | Others::Dearest(others)) = self.others;
        let price = self.models.get(model).copied().unwrap_or(others);
        price.cost(prompt, completion)
    }
}

/// Why a price cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum PriceError {
    /// The price is negative, no number, or above [`Price::MOST`].
    Price(f64),
    /// There is no model that has a price.
    NoModel,
}

impl fmt::Display for PriceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Price(price) => write!(f, "{price} is not a price from 0 to {}", Price::MOST),
            Self::NoModel => f.write_str("no model has a price"),
        }
    }
}

impl Error for PriceError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn price(prompt: f64, completion: f64) -> Price {
        Price::per_million(prompt, completion).unwrap()
    }

    #[test]
    fn a_price_is_kept_to_the_millionth_and_not_lost() {
        for (given, micros) in [
            (0.0, 0),
            (-0.0, 0),
            (1e-9, 1),
            (f64::MIN_POSITIVE, 1),
            (0.15, 150_000),
            (0.075, 75_000),
            (2.5, 2_500_000),
            (Price::MOST, 9_000_000_000_000_000),
        ] {
            assert_eq!(price(given, 0.0).prompt, micros, "{given}");
            assert_eq!(price(0.0, given).completion, micros, "{given}");
        }
    }

    #[test]
    fn what_is_no_price_is_an_error() {
        for wrong in [-1e-9, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 9.1e9] {
            for (prompt, completion) in [(wrong, 0.0), (0.0, wrong)] {
                let error = Price::per_million(prompt, completion).unwrap_err();
                assert!(matches!(error, PriceError::Price(_)), "{error}");
            }
        }
        let none: [(&str, Price); 0] = [];
        assert_eq!(Prices::of(none), Err(PriceError::NoModel));
    }

    #[test]
    fn an_unknown_model_is_never_cheaper_than_a_known_one() {
        let prices = Prices::of([("reads", price(9.0, 1.0)), ("writes", price(1.0, 9.0))]).unwrap();
        assert_eq!(prices.cost("other", 1_000_000, 1_000_000), 18_000_000);
        let prices = prices.model("writes", price(1.0, 20.0));
        assert_eq!(prices.cost("other", 0, 1_000_000), 20_000_000);
        // Made cheaper, it is no longer the dearest.
        let prices = prices.model("writes", price(1.0, 2.0));
        assert_eq!(prices.cost("other", 0, 1_000_000), 2_000_000);
        let prices = Prices::all(price(1.0, 1.0)).model("dear", price(5.0, 5.0));
        assert_eq!(prices.cost("other", 1_000_000, 0), 1_000_000);
    }

    #[test]
    fn a_cost_is_rounded_up_once_and_never_overflows() {
        let prices = Prices::all(price(0.15, 0.6));
        assert_eq!(prices.cost("", 0, 0), 0);
        assert_eq!(prices.cost("", 1, 0), 1);
        assert_eq!(prices.cost("", 1, 1), 1);
        assert_eq!(prices.cost("", 2, 2), 2);
        let dear = Prices::all(price(Price::MOST, Price::MOST));
        assert_eq!(dear.cost("", u64::MAX, u64::MAX), u64::MAX);
    }

    proptest! {
        #[test]
        fn a_cost_is_the_least_that_pays_for_the_tokens(
            read in 0u64..1_000_000_000_000, write in 0u64..1_000_000_000_000,
            prompt in 0u64..100_000_000, completion in 0u64..100_000_000,
        ) {
            let price = Price { prompt: read, completion: write };
            let cost = u128::from(Prices::all(price).cost("m", prompt, completion));
            let owed = u128::from(read) * u128::from(prompt) + u128::from(write) * u128::from(completion);
            prop_assert!(cost * MILLION >= owed);
            prop_assert!(cost == 0 || (cost - 1) * MILLION < owed);
        }
    }
}
