//! A share of a whole.

use std::{error::Error, fmt};

/// A share above 0 and up to 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(f64);

impl Ratio {
    /// One half.
    pub const HALF: Self = Self(0.5);

    /// Fails outside of `0 < share <= 1`.
    pub fn new(share: f64) -> Result<Self, InvalidRatio> {
        if share > 0.0 && share <= 1.0 {
            Ok(Self(share))
        } else {
            Err(InvalidRatio(share))
        }
    }

    /// The share as a number.
    pub fn get(self) -> f64 {
        self.0
    }

    /// Whether `part` of `whole` is at least this share.
    pub fn reached(self, part: u32, whole: u32) -> bool {
        // Divided, not multiplied: 0.55 * 100.0 is above 55.
        f64::from(part) / f64::from(whole) >= self.0
    }
}

/// The number is not a share above 0 and up to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InvalidRatio(f64);

impl fmt::Display for InvalidRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not above 0 and up to 1", self.0)
    }
}

impl Error for InvalidRatio {}
