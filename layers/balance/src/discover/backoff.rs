//! How long to leave a source alone that has failed.

use std::time::Duration;

use crate::coin::Coin;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// The pause after so many failures in a row: doubled each time, and longer or shorter by up to a half, so that
/// gateways do not come back in step.
pub(super) fn pause(failures: u32, coin: &mut Coin) -> Duration {
    let doubled = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(LONGEST).mul_f64(0.5 + coin.share())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_half_a_minute_and_never_overflows() {
        let mut coin = Coin::seeded(7);
        for (failures, seconds) in [(0, 1), (1, 1), (2, 2), (5, 16), (6, 30), (u32::MAX, 30)] {
            let exact = Duration::from_secs(seconds);
            for _ in 0..100 {
                let pause = pause(failures, &mut coin);
                assert!(
                    pause >= exact / 2 && pause < exact * 3 / 2,
                    "{failures}: {pause:?}"
                );
            }
        }
    }
}
