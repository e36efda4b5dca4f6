//! All interleavings of a few threads: `RUSTFLAGS="--cfg loom" cargo test -p palisade-retry --lib budget`.

use std::sync::Arc;

use loom::thread;

use super::{shared::BATCH, *};

/// So many ordinary requests fill a batch but for one.
const ALMOST: u64 = BATCH - TOKEN;

fn shared(reserve: u32) -> Arc<Shared> {
    Arc::new(Shared::new(Terms {
        share: TOKEN,
        reserve,
        ordinary: None,
    }))
}

/// The floor pays nothing meanwhile.
fn model(check: impl Fn(tokio::time::Instant) + Sync + Send + 'static) {
    let now = time::now();
    loom::model(move || check(now));
}

#[test]
fn no_two_threads_are_given_the_same_attempt() {
    model(|now| {
        let shared = shared(1);
        let take = |shared: Arc<Shared>| move || shared.take(TOKEN, || now).is_ok();
        let other = thread::spawn(take(shared.clone()));
        let third = thread::spawn(take(shared.clone()));
        let mine = take(shared.clone())();
        let taken = [mine, other.join().unwrap(), third.join().unwrap()];
        assert_eq!(taken.iter().filter(|&&taken| taken).count(), 1);
        assert_eq!(shared.balance(|| now), 0);
    });
}

#[test]
fn nothing_that_is_paid_in_is_lost_or_counted_twice() {
    model(|now| {
        let shared = shared(0);
        let pay = |shared: Arc<Shared>, size| thread::spawn(move || shared.pay(size, || now));
        // One of them fills the batch, while a third thread takes out.
        let (one, two) = (pay(shared.clone(), ALMOST), pay(shared.clone(), TOKEN));
        let taken = u64::from(shared.take(TOKEN, || now).is_ok()) * TOKEN;
        one.join().unwrap();
        two.join().unwrap();
        // The floor allows to save ten, and the income all of it.
        assert_eq!(taken + shared.balance(|| now), BATCH);
    });
}

#[test]
fn whoever_has_paid_in_can_take_out() {
    model(|now| {
        let shared = shared(0);
        let other = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.pay(TOKEN, || now);
                shared.take(TOKEN, || now).is_ok()
            })
        };
        shared.pay(TOKEN, || now);
        assert!(shared.take(TOKEN, || now).is_ok());
        assert!(other.join().unwrap());
        assert!(shared.take(TOKEN, || now).is_err());
    });
}
