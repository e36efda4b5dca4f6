//! Chance that can be repeated.

use std::{f64::consts::TAU, hash::Hasher};

/// `SplitMix64` (Steele, Lea, Flood 2014): the same on every machine and in every version, so that a seed names one run.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The stream of `part` under `seed`: parts do not disturb one another, in whatever order they come.
    pub(crate) fn of(seed: u64, part: u64) -> Self {
        Self(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ mix(part))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 up to but without 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 up to but without `end`, which is above 0.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        (((self.next() >> 32) * u64::from(end)) >> 32) as u32
    }

    /// Of mean 0 and deviation 1, after Box and Muller.
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (TAU * self.unit()).cos()
    }
}

/// 64 bits that look like chance and are not.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A number for these bytes, the same on every machine (FNV-1a, mixed).
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(bytes);
    hasher.finish()
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        mix(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_one_stream_and_parts_differ() {
        let take = |seed, part| {
            let mut rng = Rng::of(seed, part);
            [rng.next(), rng.next()]
        };
        assert_eq!(take(1, 2), take(1, 2));
        assert_ne!(take(1, 2), take(2, 1));
        assert_ne!(take(1, 2), take(1, 3));
    }

    #[test]
    fn shares_and_normals_have_the_mean_that_they_claim() {
        let mut rng = Rng::of(7, 0);
        let units: f64 = (0..10_000).map(|_| rng.unit()).sum::<f64>() / 10_000.0;
        let normals: f64 = (0..10_000).map(|_| rng.normal()).sum::<f64>() / 10_000.0;
        let below = (0..10_000).map(|_| rng.below(3)).max();
        assert!((units - 0.5).abs() < 0.02, "{units}");
        assert!(normals.abs() < 0.05, "{normals}");
        assert_eq!(below, Some(2));
    }
}
