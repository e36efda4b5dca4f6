//! What a quantile costs while requests come in.

use std::time::Duration;

use palisade_core::{quantile::Quantile, ratio::Ratio, testing::CountingAllocator, time::now};

#[test]
fn recording_reading_and_forgetting_allocate_nothing() {
    let (window, start) = (Duration::from_secs(8), now());
    let quantile = Quantile::new(window);
    let before = CountingAllocator::count();
    let mut seen = 0;
    for step in 0..10_000_u32 {
        let at = start + step * Duration::from_millis(7);
        quantile.record(step * Duration::from_micros(13), at);
        seen += u32::from(quantile.value(Ratio::HALF, at).is_some());
    }
    quantile.record(window, start + 100 * window);
    assert_eq!(CountingAllocator::count() - before, 0);
    assert_eq!((seen, quantile.count(start + 100 * window)), (10_000, 1));
}
