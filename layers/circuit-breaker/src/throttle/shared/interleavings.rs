//! All interleavings of a few threads: `RUSTFLAGS="--cfg loom" cargo test -p palisade-circuit-breaker --lib shared`.

use std::sync::Arc;

use loom::thread;
use palisade_core::{classify::Verdict, time};

use super::*;

fn failed(shared: &Shared, now: Instant) {
    if let Ok(mut stage) = shared.admit(now) {
        shared.settle(&mut stage, &End::new(Verdict::Failure), now, now);
    }
}

#[test]
fn once_all_is_quiet_the_word_is_the_chance_and_no_request_is_lost() {
    loom::model(|| {
        let (shared, now) = (Arc::new(Shared::new(1)), time::now());
        shared.change(now, |meter| {
            let mut settings = meter.settings().clone();
            settings.minimum_calls = 1;
            meter.update(settings, now);
        });
        let other = {
            let shared = shared.clone();
            thread::spawn(move || failed(&shared, now))
        };
        let mut stage = shared.admit(now).unwrap_or(Stage::Over);
        let mine = u64::from(stage == Stage::Waiting);
        shared.first_data(&mut stage, now, now);
        shared.settle(&mut stage, &End::new(Verdict::Success), now, now);
        other.join().unwrap();
        let (chance, sums) = shared.meter(|meter| (meter.chance(now), meter.sums(now)));
        assert_eq!(shared.chance(), chance);
        assert_eq!(sums.calls, 2);
        assert_eq!(sums.failures, 2 - mine);
    });
}
