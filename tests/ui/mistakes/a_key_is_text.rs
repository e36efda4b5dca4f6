//! A key is found by a function that may find none.

use palisade::rate_limit::{Quota, RateLimitLayer};

fn main() {
    let _ = RateLimitLayer::new(Quota::per_second(50)).key("x-api-key");
}
