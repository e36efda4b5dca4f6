//! axum wants services that never fail: `.responding()`, or a `RespondLayer` around several layers.

use axum::{Router, routing::get};
use palisade::rate_limit::{Quota, RateLimitLayer};

fn main() {
    let _app: Router = Router::new()
        .route("/", get(async || "hello"))
        .layer(RateLimitLayer::new(Quota::per_second(50)));
}
