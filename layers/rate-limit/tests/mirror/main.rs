//! A client in front of services that count, on a paused clock.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod answers;
mod layer;
#[cfg(feature = "metrics")]
mod metrics;
mod pacing;
mod service;
mod waiting;

use std::time::Duration;

use http::{HeaderMap, HeaderName, Request};
use palisade_core::{
    classify::Verdict,
    gate::{Admission, Admit, Gate},
    reject::Rejected,
    settle::{End, Settle},
    testing::CountingAllocator,
    time::now,
};
use palisade_rate_limit::{QuotaMirror, RateLimited, Sent};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn to(host: &str) -> Request<()> {
    let uri = format!("https://{host}/v1");
    Request::builder().uri(uri).body(()).unwrap()
}

/// Admitted or refused at once.
fn admit(mirror: &QuotaMirror, request: &Request<()>) -> Result<Sent, Rejected> {
    match mirror.admit(&request.into(), now()) {
        Admit::Now(decided) => decided,
        Admit::Later(_) => panic!("decides at once"),
    }
}

fn wait(mirror: &QuotaMirror, request: &Request<()>) -> Admission<Sent> {
    match mirror.admit(&request.into(), now()) {
        Admit::Now(decided) => panic!("does not wait: {decided:?}"),
        Admit::Later(admission) => admission,
    }
}

fn answer(sent: Sent, lines: &[(&'static str, &str)]) {
    judged(sent, None, lines);
}

/// The head of an answer, after what it says to the judge.
fn judged(mut sent: Sent, verdict: Option<Verdict>, lines: &[(&'static str, &str)]) {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(HeaderName::from_static(name), value.parse().unwrap());
    }
    let before = headers.clone();
    if let Some(verdict) = verdict {
        sent.settle(&ended(verdict), now());
    }
    sent.decorate(&mut headers);
    assert_eq!(headers, before, "reads, and changes nothing");
    if verdict.is_none() {
        sent.finish(&ended(Verdict::Success), now());
    }
}

fn ended(verdict: Verdict) -> End {
    End {
        verdict,
        usage: None,
        streamed: 0,
        age: Duration::ZERO,
    }
}

fn limited(refused: &Rejected) -> &RateLimited {
    let source = std::error::Error::source(refused).unwrap();
    source
        .downcast_ref()
        .unwrap_or_else(|| panic!("{source:?}"))
}
