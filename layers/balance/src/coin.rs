//! Chance, for jitter, for draws and for where a scan begins: spread matters, secrecy does not.

use std::hash::{BuildHasher, Hasher, RandomState};

/// SplitMix64, by Steele, Lea and Flood.
#[derive(Clone, Debug)]
pub(crate) struct Coin(u64);

impl Coin {
    /// Differs between processes, so that gateways do not probe in step.
    pub(crate) fn random() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn toss(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Evenly between 0, which may come, and 1, which does not.
    pub(crate) fn share(&mut self) -> f64 {
        (self.toss() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly below `end`, which is above zero; as evenly as 64 bits can.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        // The upper half of the product, by Lemire: no division.
        ((u128::from(self.toss()) * end as u128) >> 64) as usize
    }
}

/// Spreads what differs in a few bits over all of them.
#[inline]
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The same in all processes, whoever built them: gateways that know nothing of each other have to agree.
///
/// FNV-1a, by Fowler, Noll and Vo, and a last mix.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    mix(fnv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_below_their_end_and_reach_all() {
        let mut coin = Coin::seeded(1);
        let mut seen = [0u32; 7];
        (0..7000).for_each(|_| seen[coin.below(7)] += 1);
        assert!(
            seen.iter().all(|seen| (850..1150).contains(seen)),
            "{seen:?}"
        );
    }

    #[test]
    fn a_hash_is_the_same_for_ever() {
        // Another value would send all sessions elsewhere while gateways of two versions run.
        assert_eq!(hash(b""), 0xF52A_15E9_A9B5_E89B);
        assert_eq!(hash(b"session 7"), hash(b"session 7"));
        assert_ne!(hash(b"session 7"), hash(b"session 8"));
    }
}
