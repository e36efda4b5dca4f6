//! What several of these tests need.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use palisade_core::{
    classify::Verdict,
    gate::{Admit, Gate},
    head::RequestHead,
    reject::Rejected,
    settle::{End, Settle},
    testing::Answers,
    time::now,
};
use tokio::time::Instant;

pub(crate) const COOLDOWN: Duration = Duration::from_secs(5);

pub(crate) type Answer = Response<Full<Bytes>>;

/// A service that always answers so.
pub(crate) fn says(status: StatusCode) -> Answers<impl Fn() -> Answer + Clone> {
    Answers(move || {
        let mut response = Response::new(Full::from("hello"));
        *response.status_mut() = status;
        response
    })
}

pub(crate) fn admit_at<G: Gate>(gate: &G, at: Instant) -> Result<G::Guard, Rejected> {
    match gate.admit(&RequestHead::from(&Request::new(())), at) {
        Admit::Now(decided) => decided,
        later => panic!("{later:?}"),
    }
}

pub(crate) fn admit<G: Gate>(gate: &G) -> Result<G::Guard, Rejected> {
    admit_at(gate, now())
}

/// Sends one that ends at once, if it is let through; whether it was.
pub(crate) fn one<G: Gate>(gate: &G, verdict: Verdict) -> bool {
    match admit(gate) {
        Ok(mut guard) => {
            guard.settle(&End::new(verdict), now());
            true
        }
        Err(_) => false,
    }
}

pub(crate) fn many<G: Gate>(gate: &G, verdict: Verdict, count: usize) {
    for _ in 0..count {
        assert!(one(gate, verdict));
    }
}
