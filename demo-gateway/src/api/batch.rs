//! `POST /generate/batch`: many requests at once, each on its own through the layers.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use palisade::time;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{sync::Semaphore, task::JoinSet};
use tracing::Instrument;

use super::{
    Asked, Inbound, forward,
    generate::{self, GenerateAnswer, GenerateRequest},
    input,
};
use crate::{
    affinity::Kin,
    app::App,
    body::{self, Answer},
    errors::ApiError,
    exchange::{Exchange, Operation, Waiting},
    headers::{ATTEMPTS, to_backend},
    metrics::Overhead,
    record::{Entry, Recording},
    telemetry::spans,
};

const PATH: &str = "/generate/batch";

/// The most requests in one batch.
const MOST: usize = 100;

/// How many of a batch are under way at once.
const SIDE_BY_SIDE: usize = 32;

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    requests: Vec<&'a RawValue>,
}

impl<'a> Batch<'a> {
    fn read(body: &'a [u8]) -> Result<Self, ApiError> {
        let batch: Self = input::json(body)?;
        let many = batch.requests.len();
        if many > MOST {
            let detail = format!("`requests`: {many} are more than {MOST}");
            return Err(ApiError::bad_request(detail).param("requests"));
        }
        Ok(batch)
    }
}

#[derive(Serialize)]
struct Results {
    processed_count: usize,
    results: Vec<Outcome>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok(GenerateAnswer),
    Error(Box<RawValue>),
}

pub(super) async fn answer(inbound: Inbound) -> Result<Answer, ApiError> {
    let Asked {
        app,
        entry,
        exchange,
        parts,
        body,
    } = match inbound.enter(Operation::Generate, PATH).await? {
        Ok(asked) => asked,
        Err(refused) => return Ok(*refused),
    };
    let batch = Batch::read(&body);
    let batch = batch.map_err(|error| forward::wrong(&app, &exchange, PATH, error))?;
    exchange.becomes_batch();
    let many = batch.requests.len();
    let kin = Kin::find(&app, &exchange.caller, &parts.headers);
    let headers = to_backend(parts.headers);
    let room = Arc::new(Semaphore::new(SIDE_BY_SIDE));
    // Dropped with the request: a caller who leaves ends all that is under way.
    let mut under_way = JoinSet::new();
    for (at, request) in batch.requests.iter().enumerate() {
        let one = Arc::new(Exchange::new(
            exchange.caller.clone(),
            Operation::Generate,
            time::now(),
        ));
        let entry = Arc::new(entry.item(numbered(entry.id(), at), one.clone()));
        let item = Item {
            at,
            app: app.clone(),
            exchange: one,
            kin,
            headers: headers.clone(),
            body: body.slice_ref(request.get().as_bytes()),
            recording: Recording::new(entry.clone(), app.observers.clone()),
            entry,
        };
        let room = room.clone();
        let run = async move {
            // For others, which are at backends.
            let waiting = Waiting::new(item.exchange.clone());
            let _place = room.acquire_owned().await;
            drop(waiting);
            item.run().await
        }
        .instrument(spans::item());
        under_way.spawn(run);
    }
    let mut results: Vec<Option<Outcome>> = Vec::new();
    results.resize_with(many, || None);
    let (mut attempts, mut signature) = (0, HeaderMap::new());
    while let Some(done) = under_way.join_next().await {
        // One that panicked leaves its place empty.
        let Ok(done) = done else { continue };
        results[done.at] = Some(done.outcome);
        attempts += done.attempts;
        // One that was wrong was not sent, and knows nothing of limits.
        if !done.signature.is_empty() {
            signature = done.signature;
        }
    }
    let lost = || {
        let problem = ApiError::bad_gateway("the request was lost").problem();
        raw(problem.as_bytes())
    };
    let results = results.into_iter();
    let results: Vec<_> = results
        .map(|outcome| outcome.unwrap_or_else(lost))
        .collect();
    let mut answer = body::json(&Results {
        processed_count: results.len(),
        results,
    });
    // How the limits stood when the last was answered.
    if signature.is_empty() {
        forward::sign_unsent(&mut signature);
    }
    forward::copy_signature(&signature, answer.headers_mut());
    answer.headers_mut().insert(ATTEMPTS, attempts.into());
    Ok(answer)
}

struct Item {
    at: usize,
    app: Arc<App>,
    exchange: Arc<Exchange>,
    kin: Kin,
    headers: HeaderMap,
    body: Bytes,
    entry: Arc<Entry>,
    /// From the start, so that one that was not begun is in the log as well.
    recording: Recording,
}

struct Done {
    at: usize,
    outcome: Outcome,
    attempts: u32,
    signature: HeaderMap,
}

impl Item {
    async fn run(self) -> Done {
        let Self {
            exchange,
            entry,
            mut recording,
            ..
        } = self;
        // Dropped first, so that the recording has what it measured.
        let mut overhead = Overhead::new(self.app.meters.clone(), entry.clone());
        let (outcome, signature) = match GenerateRequest::check(&self.body) {
            Err(error) => {
                recording.failed(&error);
                recording.answered(error.status());
                (raw(error.problem().as_bytes()), HeaderMap::new())
            }
            Ok(tokens) => {
                let body = self.body;
                let (headers, id) = (self.headers, entry.id());
                let answer =
                    generate::one(&self.app, &exchange, self.kin, headers, body, tokens, id).await;
                match answer {
                    Ok(answer) => {
                        recording.answered(StatusCode::OK);
                        let (parts, answer) = answer.into_parts();
                        (Outcome::Ok(answer), parts.headers)
                    }
                    Err(answer) => {
                        let (parts, body) = answer.into_parts();
                        recording.answered(parts.status);
                        let body = body.collect().await.map(|body| body.to_bytes());
                        (raw(&body.unwrap_or_default()), parts.headers)
                    }
                }
            }
        };
        recording.is_whole();
        overhead.answered(StatusCode::OK);
        Done {
            at: self.at,
            outcome,
            attempts: exchange.attempts(),
            signature,
        }
    }
}

/// An error as it was told, or what stands for it when that is no JSON.
fn raw(body: &[u8]) -> Outcome {
    Outcome::Error(serde_json::from_slice(body).unwrap_or_else(|_| {
        let problem = ApiError::bad_gateway("the backend refused the request").problem();
        RawValue::from_string(problem).unwrap_or_default()
    }))
}

/// The id of one request of a batch.
fn numbered(id: &HeaderValue, at: usize) -> HeaderValue {
    let id = id.to_str().unwrap_or_default();
    HeaderValue::try_from(format!("{id}-{at}")).unwrap_or(HeaderValue::from_static("-"))
}
