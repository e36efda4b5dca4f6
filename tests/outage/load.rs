//! Requests that come when they are due, whatever becomes of those before.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use palisade::time::now;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::support::{HttpClient, Running, http_client, send};

/// One request: when it was due, and what came of it.
pub(crate) struct Outcome {
    pub(crate) due: Duration,
    /// The status and the backend.
    pub(crate) result: Result<(u16, String), String>,
}

/// Sends requests, and does not wait for answers before it sends the next.
pub(crate) struct Load {
    start: Instant,
    pub(crate) client: HttpClient,
    gaps: Gaps,
    /// When the next is, after the start.
    next: Duration,
    under_way: JoinSet<Outcome>,
    outcomes: Vec<Outcome>,
    to: String,
}

/// How long it is to the next.
enum Gaps {
    Even(Duration),
    /// As if each came without knowing of the others; a xorshift generator.
    Poisson {
        mean: Duration,
        state: u64,
    },
}

impl Gaps {
    fn next(&mut self) -> Duration {
        match self {
            Self::Even(gap) => *gap,
            Self::Poisson { mean, state } => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                let uniform = ((*state >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
                mean.mul_f64(-uniform.ln())
            }
        }
    }
}

impl Load {
    /// One after each such time.
    pub(crate) fn every(gap: Duration, gateway: &Running) -> Self {
        Self::with(Gaps::Even(gap), gateway)
    }

    /// So many per second, at random.
    pub(crate) fn poisson(per_second: f64, seed: u64, gateway: &Running) -> Self {
        let mean = Duration::from_secs_f64(1.0 / per_second);
        Self::with(Gaps::Poisson { mean, state: seed }, gateway)
    }

    fn with(gaps: Gaps, gateway: &Running) -> Self {
        Self {
            start: now(),
            client: http_client(),
            gaps,
            next: Duration::ZERO,
            under_way: JoinSet::new(),
            outcomes: Vec::new(),
            to: format!("http://{}/generate", gateway.address),
        }
    }

    /// How long it has been under way.
    pub(crate) fn age(&self) -> Duration {
        now().duration_since(self.start)
    }

    /// Goes on until this long after the start.
    pub(crate) async fn until(&mut self, end: Duration) {
        while self.next < end {
            let due = self.next;
            self.next += self.gaps.next();
            sleep_until(self.start + due).await;
            let request = Request::post(&self.to).header("content-type", "application/json");
            let body = Full::new(Bytes::from_static(br#"{"prompt":"hello"}"#));
            let (client, request) = (self.client.clone(), request.body(body).unwrap());
            self.under_way.spawn(async move {
                let result = send(&client, request).await.map(|response| {
                    let backend = response.headers().get("x-backend-id");
                    let backend = backend.map_or("none", |id| id.to_str().unwrap());
                    (response.status().as_u16(), backend.to_owned())
                });
                Outcome { due, result }
            });
            while let Some(outcome) = self.under_way.try_join_next() {
                self.outcomes.push(outcome.unwrap());
            }
        }
    }

    /// Sends no more, and waits for what is under way.
    pub(crate) async fn end(mut self) -> Vec<Outcome> {
        while let Some(outcome) = self.under_way.join_next().await {
            self.outcomes.push(outcome.unwrap());
        }
        self.outcomes
    }
}

pub(crate) fn assert_all_well(outcomes: &[Outcome]) {
    let mut wrong = BTreeMap::<String, usize>::new();
    for outcome in outcomes {
        match &outcome.result {
            Ok((200..=299, _)) => {}
            Ok((status, _)) => *wrong.entry(status.to_string()).or_default() += 1,
            Err(broken) => *wrong.entry(broken.clone()).or_default() += 1,
        }
    }
    assert!(wrong.is_empty(), "of {}: {wrong:?}", outcomes.len());
}

/// The share of an endpoint among the requests due in a span.
pub(crate) fn share(outcomes: &[Outcome], id: &str, from: Duration, to: Duration) -> f64 {
    let within = outcomes
        .iter()
        .filter(|outcome| (from..to).contains(&outcome.due));
    let (mut all, mut there) = (0, 0);
    for outcome in within {
        all += 1;
        there += u32::from(matches!(&outcome.result, Ok((_, backend)) if backend == id));
    }
    assert!(all > 0, "nothing was sent in that span");
    f64::from(there) / f64::from(all)
}
