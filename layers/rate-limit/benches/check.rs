//! What one check costs, beside `governor` on its own in the same run. Prints; asserts nothing.

use std::{hint::black_box, num::NonZeroU32, thread, time::Duration};

use governor::RateLimiter;
use http::Request;
use palisade_core::{
    gate::{Admit, Gate},
    head::RequestHead,
    key,
    time::now,
};
use palisade_rate_limit::{Headers, Quota, RateLimit, Rule, Strategy};

const CHECKS: u32 = 10_000;
const ROUNDS: usize = 500;

/// Nanoseconds per check.
fn nanos(check: impl Fn(u32)) -> f64 {
    nanos_of(|| (0..CHECKS).for_each(&check))
}

/// The fastest of many short rounds: what else the machine did is in the others.
fn nanos_of(round: impl Fn()) -> f64 {
    let nanos = |_| {
        let start = now();
        round();
        start.elapsed().as_nanos() as f64 / f64::from(CHECKS)
    };
    (0..ROUNDS).map(nanos).fold(f64::INFINITY, f64::min)
}

/// The same, of two threads at once.
fn contended(check: impl Fn(u32) + Sync) -> f64 {
    nanos_of(|| {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..CHECKS).for_each(&check));
            }
        });
    })
}

fn checking(
    rules: impl IntoIterator<Item = Rule>,
    requests: &[Request<()>],
) -> impl Fn(u32) + Sync {
    let limit = RateLimit::rules(rules)
        .expect("valid rules")
        .headers(Headers::Off);
    let at = now();
    move |index| {
        let head = RequestHead::from(&requests[index as usize % requests.len()]);
        match limit.admit(black_box(&head), at + Duration::from_nanos(index.into())) {
            Admit::Now(admitted) => drop(black_box(admitted.expect("within the quota"))),
            Admit::Later(_) => unreachable!("decides at once"),
        }
    }
}

fn main() {
    let plenty = NonZeroU32::new(4_000_000_000).expect("not zero");
    let quota = || Quota::per_second(plenty.get().into());
    let users: Vec<String> = (0..1000).map(|user| format!("/user-{user:016}")).collect();
    let request = |user: &String| Request::get(user).header("x-user-id", user).body(());
    let requests: Vec<_> = users
        .iter()
        .map(|user| request(user).expect("a path"))
        .collect();

    let governor = RateLimiter::direct(governor::Quota::per_second(plenty));
    let direct = |_| black_box(governor.check()).expect("within the quota");
    let dashmap = RateLimiter::dashmap(governor::Quota::per_second(plenty));
    let keyed = |index| {
        let user = &users[index as usize % users.len()];
        black_box(dashmap.check_key(black_box(user))).expect("within the quota");
    };
    let (direct, both) = (nanos(direct), contended(direct));
    let keyed = nanos(keyed);
    let clock = nanos(|_| {
        black_box(now());
    });
    println!("governor direct              {direct:7.1} ns");
    println!("governor direct, 2 threads   {both:7.1} ns");
    println!("governor dashmap, string     {keyed:7.1} ns");
    println!("one reading of the clock     {clock:7.1} ns (ours are handed one)");

    let print = |name: &str, nanos: f64, base: f64| {
        println!("{name:28} {nanos:7.1} ns, {:4.2} x governor", nanos / base);
    };
    let global = || Rule::new("global", quota());
    let user = |name: &str| Rule::new(name, quota()).key(key::path());
    print("ours", nanos(checking([global()], &requests)), direct);
    print(
        "ours, 2 threads",
        contended(checking([global()], &requests)),
        both,
    );
    for strategy in [
        Strategy::TokenBucket,
        Strategy::FixedWindow,
        Strategy::SlidingWindow,
    ] {
        let name = format!("ours by path, {}", strategy.name());
        print(
            &name,
            nanos(checking([user("a").strategy(strategy)], &requests)),
            keyed,
        );
    }
    let by_header = Rule::new("a", quota()).key(key::header("x-user-id"));
    print(
        "ours by header",
        nanos(checking([by_header], &requests)),
        keyed,
    );
    let two = [global(), user("a")];
    print(
        "ours global and by path",
        nanos(checking(two, &requests)),
        direct + keyed,
    );
    let five = [global(), user("a"), user("b"), user("c"), user("d")];
    print(
        "ours global and 4 by path",
        nanos(checking(five, &requests)),
        direct + 4.0 * keyed,
    );
}
