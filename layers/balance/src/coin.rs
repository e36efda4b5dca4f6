//! Chance, for jitter and for where a scan begins: spread matters, secrecy does not.

use std::hash::{BuildHasher, Hasher, RandomState};

/// SplitMix64, by Steele, Lea and Flood.
#[derive(Clone, Debug)]
pub(crate) struct Coin(u64);

impl Coin {
    /// Differs between processes, so that gateways do not probe in step.
    pub(crate) fn random() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    #[cfg(test)]
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn toss(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Evenly between 0, which may come, and 1, which does not.
    pub(crate) fn share(&mut self) -> f64 {
        (self.toss() >> 11) as f64 / (1u64 << 53) as f64
    }
}
