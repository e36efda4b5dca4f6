//! Numbers of requests, of tokens, or of some money.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Unit;

/// A number of requests or of tokens, or an amount of money such as 2.5.
///
/// ```
/// use demo_gateway::config::Amount;
///
/// assert_eq!(Amount::from(100).to_string(), "100");
/// assert_eq!(Amount::from(2.5).to_string(), "2.5");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amount(f64);

/// In what the layer counts money.
const MILLIONTHS: f64 = 1e6;

impl Amount {
    /// As the layer counts it; `None` if it cannot.
    pub(crate) fn count(self, unit: Unit) -> Option<u64> {
        let most = palisade::rate_limit::Quota::MOST as f64;
        let count = match unit {
            Unit::Requests | Unit::Tokens => self.0,
            Unit::Money => (self.0 * MILLIONTHS).round(),
        };
        let is_kept = count.fract() == 0.0 && (0.0..=most).contains(&count);
        is_kept.then_some(count as u64)
    }

    /// As people count what the layer has counted.
    pub(crate) fn of(count: u64, unit: Unit) -> Self {
        match unit {
            Unit::Requests | Unit::Tokens => count.into(),
            Unit::Money => Self(count as f64 / MILLIONTHS),
        }
    }
}

impl From<u64> for Amount {
    fn from(number: u64) -> Self {
        Self(number as f64)
    }
}

impl From<i32> for Amount {
    fn from(number: i32) -> Self {
        Self(number.into())
    }
}

impl From<f64> for Amount {
    fn from(number: f64) -> Self {
        Self(number)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let whole = self.0 as u64;
        if whole as f64 == self.0 {
            serializer.serialize_u64(whole)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Amount, E> {
                Ok(number.into())
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Amount, E> {
                Ok(Amount(number as f64))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Amount, E> {
                Ok(Amount(number))
            }
        }

        deserializer.deserialize_f64(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_counted_in_millionths_and_the_rest_in_ones() {
        for (number, unit, count) in [
            (5.0, Unit::Requests, Some(5)),
            (0.0, Unit::Tokens, Some(0)),
            (2.5, Unit::Tokens, None),
            (-1.0, Unit::Requests, None),
            (f64::NAN, Unit::Money, None),
            (2.5, Unit::Money, Some(2_500_000)),
            (0.15, Unit::Money, Some(150_000)),
            (1e15, Unit::Requests, None),
            (1e9, Unit::Money, None),
        ] {
            assert_eq!(Amount(number).count(unit), count, "{number} {unit:?}");
            if let Some(count) = count {
                assert_eq!(Amount::of(count, unit), Amount(number));
            }
        }
    }
}
