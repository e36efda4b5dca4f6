//! Lets a service that has just started have less than its quota at first.

use std::time::Duration;

use crate::quota::Quota;

/// Begins with a third of a quota and lets all of it through after some time.
///
/// Requests cost more meanwhile: three times as much at first, so that they pass at a third of the rate, which grows
/// evenly. What is told about how long to wait is therefore an upper bound, as the request will cost less by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WarmUp {
    period: Duration,
}

impl WarmUp {
    /// The whole quota after this time; zero is no warm-up.
    pub(crate) const fn over(period: Duration) -> Self {
        Self { period }
    }

    /// What a request costs `age` nanoseconds after the start, rounded up: the rate is `(1 + 2 * age / period) / 3`.
    pub(crate) fn cost(&self, cost: u64, age: u64) -> u64 {
        let (period, age) = (self.period.as_nanos(), u128::from(age));
        // What no quota holds stays so, and does not overflow.
        if age >= period || cost > Quota::MOST {
            return cost;
        }
        // Longer ones end as much later as nobody will see.
        let period = period.min(u64::MAX.into());
        (u128::from(cost) * 3 * period).div_ceil(period + 2 * age) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_begins_with_a_third_and_ends_with_all() {
        let warm_up = WarmUp::over(Duration::from_nanos(100));
        let costs = [0, 1, 25, 50, 99, 100, 101].map(|age| warm_up.cost(100, age));
        assert_eq!(costs, [300, 295, 200, 150, 101, 100, 100]);
        assert_eq!(
            [0, 40, 99, 100].map(|age| warm_up.cost(1, age)),
            [3, 2, 2, 1]
        );
        assert_eq!(warm_up.cost(0, 0), 0);
    }

    #[test]
    fn without_a_period_or_with_the_longest_nothing_overflows() {
        assert_eq!(WarmUp::over(Duration::ZERO).cost(7, 0), 7);
        let forever = WarmUp::over(Duration::MAX);
        assert_eq!(forever.cost(7, 0), 21);
        assert_eq!(forever.cost(u64::MAX, 0), u64::MAX);
        assert_eq!(
            forever.cost(Quota::MOST, u64::MAX / 2),
            Quota::MOST / 2 * 3 + 2
        );
        assert_eq!(forever.cost(7, u64::MAX - 1), 8);
    }

    proptest! {
        #[test]
        fn a_cost_keeps_to_the_rate_of_its_time(
            period in 1..u64::MAX,
            age in any::<u64>(),
            cost in 1..=Quota::MOST,
        ) {
            let warm_up = WarmUp::over(Duration::from_nanos(period));
            let slowed = u128::from(warm_up.cost(cost, age));
            let (period, age) = (u128::from(period), u128::from(age.min(period)));
            // The least whole number that is as much at this rate.
            let rate = period + 2 * age;
            prop_assert!(slowed * rate >= u128::from(cost) * 3 * period);
            prop_assert!((slowed - 1) * rate < u128::from(cost) * 3 * period);
        }

        #[test]
        fn later_it_never_costs_more(period in 1..1000_u64, age in 0..1100_u64, cost in 1..1000_u64) {
            let warm_up = WarmUp::over(Duration::from_nanos(period));
            prop_assert!(warm_up.cost(cost, age + 1) <= warm_up.cost(cost, age));
            prop_assert!((cost..=3 * cost).contains(&warm_up.cost(cost, age)));
        }
    }
}
