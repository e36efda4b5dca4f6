//! How long a circuit stays open.

use std::time::Duration;

use crate::settings::Settings;

/// The time to stay open after so many probes in a row have failed: doubled with every one, with a random part.
///
/// The longest is a bound before jitter: cut off after it, most circuits would end up at the same moment.
pub(crate) fn pause(settings: &Settings, reopenings: u32, random: &mut Random) -> Duration {
    let grown = settings.cooldown.saturating_mul(1 << reopenings.min(31));
    let pause = grown.min(settings.longest_cooldown);
    match settings.jitter {
        None => pause,
        Some(jitter) => pause.mul_f64(1.0 + jitter.get() * (2.0 * random.share() - 1.0)),
    }
}

/// Marsaglia's xorshift64* (Vigna 2016, "An experimental exploration of Marsaglia's xorshift generators").
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // It would stay at zero.
        Self(seed.max(1))
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// The upper 53 bits, as a share below 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::ratio::Ratio;
    use proptest::prelude::*;

    use super::*;

    fn settings(cooldown: u64) -> Settings {
        Settings::consecutive(1, Duration::from_secs(cooldown))
    }

    fn seconds(settings: &Settings, reopenings: u32) -> f64 {
        pause(settings, reopenings, &mut Random::new(1)).as_secs_f64()
    }

    #[test]
    fn doubles_up_to_the_longest() {
        let mut settings = settings(5);
        settings.jitter = None;
        let pauses: Vec<_> = (0..6).map(|n| seconds(&settings, n)).collect();
        assert_eq!(pauses, [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]);
        assert_eq!(seconds(&settings, u32::MAX), 60.0);

        settings.longest_cooldown = Duration::from_secs(12);
        assert_eq!(seconds(&settings, 2), 12.0);
        settings.longest_cooldown = Duration::ZERO;
        let settings = settings.reasonable();
        assert_eq!(seconds(&settings, 2), 5.0, "never shorter than the first");
    }

    #[test]
    fn a_first_one_over_a_minute_does_not_grow_by_default() {
        let mut settings = settings(90);
        settings.jitter = None;
        assert_eq!(seconds(&settings, 9), 90.0);
    }

    #[test]
    fn the_jitter_reaches_a_fifth_either_way_by_default_and_spreads_evenly() {
        let (settings, mut random) = (settings(10), Random::new(7));
        let mut buckets = [0_u32; 4];
        for _ in 0..4_000 {
            let over = pause(&settings, 0, &mut random) - Duration::from_secs(8);
            buckets[over.as_secs() as usize] += 1;
        }
        assert!(
            buckets.iter().all(|count| (900..1100).contains(count)),
            "{buckets:?}"
        );
    }

    #[test]
    fn draws_spread_evenly() {
        let mut random = Random::new(0);
        let mut buckets = [0_u32; 10];
        for _ in 0..10_000 {
            buckets[((u128::from(random.draw()) * 10) >> 64) as usize] += 1;
        }
        assert!(
            buckets.iter().all(|count| (900..1100).contains(count)),
            "{buckets:?}"
        );
    }

    proptest! {
        #[test]
        fn no_number_makes_it_panic_or_leave_its_bounds(
            first: Duration,
            longest: Duration,
            share in 0.000_001_f64..=1.0,
            reopenings: u32,
            seed: u64,
        ) {
            let mut settings = Settings::consecutive(1, first);
            settings.longest_cooldown = longest;
            settings.jitter = Ratio::new(share).ok();
            let settings = settings.reasonable();
            let pause = pause(&settings, reopenings, &mut Random::new(seed)).as_secs_f64();
            let (first, longest) = (settings.cooldown.as_secs_f64(), settings.longest_cooldown.as_secs_f64());
            // Ten digits of a double are left.
            let slack = 1e-9 * (1.0 + longest);
            prop_assert!(pause >= first * (1.0 - share) - slack);
            prop_assert!(pause <= longest * (1.0 + share) + slack);
        }
    }
}
