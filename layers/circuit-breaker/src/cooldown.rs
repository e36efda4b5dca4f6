//! How long a circuit stays open.

use std::time::Duration;

use palisade_core::ratio::Ratio;

/// How long at most by default: a service that was away for an hour is found within a minute of its return, and a
/// minute of refusals is what a caller that backs off by itself would wait too.
const LONGEST: Duration = Duration::from_secs(60);

/// By how much by default: replicas that opened at the same moment spread their probes over 40 % of the cool-down,
/// and none is far from what was asked for.
const JITTER: f64 = 0.2;

/// Longer is for ever; more would not fit into an instant.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Doubles with every reopening, with a random part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cooldown {
    first: Duration,
    longest: Duration,
    jitter: f64,
}

impl Cooldown {
    pub(crate) fn new(first: Duration) -> Self {
        let first = first.min(FOREVER);
        Self {
            first,
            longest: first.max(LONGEST),
            jitter: JITTER,
        }
    }

    /// Never shorter than the first.
    pub(crate) fn set_longest(&mut self, longest: Duration) {
        self.longest = longest.clamp(self.first, FOREVER);
    }

    pub(crate) fn set_jitter(&mut self, jitter: Option<Ratio>) {
        self.jitter = jitter.map_or(0.0, Ratio::get);
    }

    /// The time to stay open after so many probes in a row have failed.
    ///
    /// The longest is a bound before jitter: cut off after it, most circuits would end up at the same moment.
    pub(crate) fn pause(&self, reopenings: u32, random: u64) -> Duration {
        let grown = self.first.saturating_mul(1 << reopenings.min(31));
        let pause = grown.min(self.longest);
        if self.jitter == 0.0 {
            return pause;
        }
        // The upper 53 bits, as a share below 1.
        let share = (random >> 11) as f64 / (1_u64 << 53) as f64;
        pause.mul_f64(1.0 + self.jitter * (2.0 * share - 1.0))
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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(cooldown: &Cooldown, reopenings: u32) -> f64 {
        cooldown.pause(reopenings, 0).as_secs_f64()
    }

    #[test]
    fn doubles_up_to_the_longest() {
        let mut cooldown = Cooldown::new(Duration::from_secs(5));
        cooldown.set_jitter(None);
        let pauses: Vec<_> = (0..6).map(|n| seconds(&cooldown, n)).collect();
        assert_eq!(pauses, [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]);
        assert_eq!(seconds(&cooldown, u32::MAX), 60.0);

        cooldown.set_longest(Duration::from_secs(12));
        assert_eq!(seconds(&cooldown, 2), 12.0);
        cooldown.set_longest(Duration::ZERO);
        assert_eq!(seconds(&cooldown, 2), 5.0, "never shorter than the first");
    }

    #[test]
    fn a_first_one_over_a_minute_does_not_grow_by_default() {
        let mut cooldown = Cooldown::new(Duration::from_secs(90));
        cooldown.set_jitter(None);
        assert_eq!(seconds(&cooldown, 9), 90.0);
    }

    #[test]
    fn the_jitter_reaches_a_fifth_either_way_by_default() {
        let cooldown = Cooldown::new(Duration::from_secs(10));
        assert_eq!(cooldown.pause(0, 0), Duration::from_secs(8));
        assert_eq!(cooldown.pause(0, 1 << 63), Duration::from_secs(10));
        let most = cooldown.pause(0, u64::MAX);
        assert!(most > Duration::from_millis(11_999) && most <= Duration::from_secs(12));
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
            random: u64,
        ) {
            let mut cooldown = Cooldown::new(first);
            cooldown.set_longest(longest);
            cooldown.set_jitter(Some(Ratio::new(share).unwrap()));
            let pause = cooldown.pause(reopenings, random).as_secs_f64();
            let (first, longest) = (cooldown.first.as_secs_f64(), cooldown.longest.as_secs_f64());
            // Ten digits of a double are left.
            let slack = 1e-9 * (1.0 + longest);
            prop_assert!(pause >= first * (1.0 - share) - slack);
            prop_assert!(pause <= longest * (1.0 + share) + slack);
        }
    }
}
