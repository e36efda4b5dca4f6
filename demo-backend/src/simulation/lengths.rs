//! How long answers are.

use std::{error::Error, fmt, ops::RangeInclusive, str::FromStr};

use crate::rng::Rng;

/// How many tokens answers have: always the same number, or evenly between two.
///
/// ```
/// use demo_backend::Lengths;
///
/// assert_eq!("16-160".parse(), Lengths::try_from(16..=160));
/// assert_eq!("20".parse(), Ok(Lengths::from(20)));
/// assert!("9-5".parse::<Lengths>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    min: u32,
    max: u32,
}

impl Lengths {
    pub(crate) fn draw(self, rng: &mut Rng) -> u32 {
        let width = (self.max - self.min).saturating_add(1);
        self.min + rng.below(width)
    }

    pub(crate) fn mean(self) -> f64 {
        f64::midpoint(f64::from(self.min), f64::from(self.max))
    }
}

impl From<u32> for Lengths {
    fn from(tokens: u32) -> Self {
        Self {
            min: tokens,
            max: tokens,
        }
    }
}

impl TryFrom<RangeInclusive<u32>> for Lengths {
    type Error = InvalidLengths;

    fn try_from(range: RangeInclusive<u32>) -> Result<Self, InvalidLengths> {
        let (min, max) = range.into_inner();
        if min <= max {
            Ok(Self { min, max })
        } else {
            Err(InvalidLengths(format!("{min}-{max}")))
        }
    }
}

impl FromStr for Lengths {
    type Err = InvalidLengths;

    fn from_str(text: &str) -> Result<Self, InvalidLengths> {
        let invalid = || InvalidLengths(text.to_owned());
        let number = |text: &str| text.trim().parse().map_err(|_| invalid());
        match text.split_once('-') {
            Some((min, max)) => Self::try_from(number(min)?..=number(max)?),
            None => number(text).map(Self::from),
        }
    }
}

/// Neither a number of tokens, nor two with the smaller first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidLengths(String);

impl fmt::Display for InvalidLengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is neither a number of tokens nor a range such as 16-160",
            self.0
        )
    }
}

impl Error for InvalidLengths {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_reach_both_ends_and_no_further() {
        let lengths: Lengths = "3-5".parse().unwrap();
        let mut rng = Rng::of(0, 0);
        let mut seen: Vec<_> = (0..100).map(|_| lengths.draw(&mut rng)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [3, 4, 5]);
        assert_eq!(Lengths::from(9).draw(&mut rng), 9);
        assert_eq!(lengths.mean(), 4.0);
    }

    #[test]
    fn what_is_no_length_says_so() {
        for text in ["", "-", "a", "3-", "5-3", "-3", "4294967296"] {
            let error = text.parse::<Lengths>().unwrap_err().to_string();
            assert!(
                error.contains("neither a number of tokens"),
                "{text}: {error}"
            );
        }
    }
}
