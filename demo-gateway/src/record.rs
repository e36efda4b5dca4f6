//! What becomes of each request, told once its answer has ended.

use std::{
    error::Error,
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use palisade::{
    BoxError, Reason,
    classify::{Usage, Verdict},
    rate_limit::{CostExceedsQuota, RateLimited, StoreUnavailable},
    reject::Rejected,
    time,
};
use pin_project::{pin_project, pinned_drop};
use tokio::time::Instant;

use crate::{
    config::told,
    errors::ApiError,
    exchange::{Exchange, Operation},
    identity::Caller,
};

/// What the caller is told who has left before there was anything to tell: nginx's word for it.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The longest sentence that is told of a request, in bytes. It may repeat what the caller has sent, which may be
/// megabytes.
const LONGEST_WHY: usize = 1024;

/// Who wants to know of each request that has ended.
///
/// Called on the thread of the request: neither waits nor fails.
pub(crate) trait Observe: Send + Sync {
    fn ended(&self, record: &Record);
}

/// All who want to know.
#[derive(Clone, Default)]
pub(crate) struct Observers(Arc<Vec<Arc<dyn Observe>>>);

impl Observers {
    pub(crate) fn add(&mut self, observer: Arc<dyn Observe>) {
        Arc::make_mut(&mut self.0).push(observer);
    }

    fn tell(&self, record: &Record) {
        for observer in &*self.0 {
            observer.ended(record);
        }
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observers").field(&self.0.len()).finish()
    }
}

/// One request whose answer has ended, or been given up.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Its `x-request-id`.
    pub(crate) id: HeaderValue,
    pub(crate) received: SystemTime,
    /// To the end of the answer's body.
    pub(crate) took: Duration,
    /// To the first data of a stream.
    pub(crate) first_token: Option<Duration>,
    pub(crate) peer: SocketAddr,
    pub(crate) method: Method,
    uri: Uri,
    /// `None` when nothing was asked of a model.
    pub(crate) operation: Option<Operation>,
    pub(crate) caller: Option<Arc<Caller>>,
    pub(crate) model: Option<Arc<str>>,
    pub(crate) stream: bool,
    pub(crate) status: StatusCode,
    pub(crate) verdict: Verdict,
    /// Why it was refused or failed, from a closed set.
    pub(crate) reason: Option<&'static str>,
    /// The rule that refused it.
    pub(crate) rule: Option<Arc<str>>,
    /// Why it was no success, in a sentence.
    pub(crate) why: Option<String>,
    /// The backend of the last attempt.
    pub(crate) backend: Option<Arc<str>>,
    pub(crate) attempts: u32,
    pub(crate) usage: Option<Usage>,
    /// What the gateway itself took of it; `None` when nothing was asked of a model.
    pub(crate) own: Option<Duration>,
    pub(crate) part: Part,
}

impl Record {
    /// The path as it may stand in a log: without an identifier, for which somebody may have put a raw key.
    pub(crate) fn path(&self) -> &str {
        shown(self.uri.path())
    }
}

/// A path as it may stand in a log.
pub(crate) fn shown(path: &str) -> &str {
    for prefix in ["/rate-limits/", "/admin/reset-rate-limit/"] {
        if path.starts_with(prefix) {
            return prefix;
        }
    }
    path
}

/// How a record stands to HTTP requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A request by itself.
    Whole,
    /// A request that brought many, each with a record of its own.
    Batch,
    /// One of a batch.
    Item,
}

/// Why a request was no success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    verdict: Option<Verdict>,
    reason: Option<&'static str>,
    rule: Option<Arc<str>>,
    why: String,
}

impl Cause {
    /// A layer refused it, or a backend broke it off.
    pub(crate) fn of_error(error: &BoxError) -> Self {
        let Some(rejected) = Rejected::find(&**error) else {
            return Self {
                verdict: None,
                reason: None,
                rule: None,
                why: cut(told(&**error)),
            };
        };
        let source = rejected.source();
        Self {
            verdict: Some(match rejected.reason() {
                Reason::TimedOut => Verdict::TimedOut,
                reason => Verdict::Refused(reason),
            }),
            reason: Some(rejected.reason().name()),
            rule: source.and_then(rule),
            why: cut(source.map_or_else(|| rejected.to_string(), ToString::to_string)),
        }
    }

    /// The gateway itself said so.
    pub(crate) fn of_answer(error: &ApiError) -> Self {
        let verdict = match error.status() {
            status if status.is_client_error() => Verdict::CallerFault,
            _ => Verdict::Failure,
        };
        Self {
            verdict: Some(verdict),
            reason: Some(error.code()),
            rule: None,
            why: bounded(error.detail()).to_owned(),
        }
    }
}

fn bounded(why: &str) -> &str {
    &why[..why.floor_char_boundary(LONGEST_WHY)]
}

fn cut(mut why: String) -> String {
    why.truncate(bounded(&why).len());
    why
}

/// The rule that a refusal names.
fn rule(source: &(dyn Error + 'static)) -> Option<Arc<str>> {
    let limited = source.downcast_ref().map(|it: &RateLimited| &it.rule);
    let dear = || source.downcast_ref().map(|it: &CostExceedsQuota| &it.rule);
    let unknown = || source.downcast_ref().map(|it: &StoreUnavailable| &it.rule);
    limited.or_else(dear).or_else(unknown).cloned()
}

/// What is known of a request from the start.
#[derive(Debug)]
pub(crate) struct Entry {
    id: HeaderValue,
    peer: SocketAddr,
    method: Method,
    uri: Uri,
    received: SystemTime,
    since: Instant,
    exchange: OnceLock<Arc<Exchange>>,
    own: OnceLock<Duration>,
    part: Part,
}

impl Entry {
    pub(crate) fn new(id: HeaderValue, peer: SocketAddr, method: Method, uri: Uri) -> Self {
        Self {
            id,
            peer,
            method,
            uri,
            received: time::wall_clock(),
            since: time::now(),
            exchange: OnceLock::new(),
            own: OnceLock::new(),
            part: Part::Whole,
        }
    }

    /// One of those that this request brought.
    pub(crate) fn item(&self, id: HeaderValue, exchange: Arc<Exchange>) -> Self {
        Self {
            id,
            method: self.method.clone(),
            uri: self.uri.clone(),
            received: time::wall_clock(),
            since: exchange.since,
            exchange: exchange.into(),
            own: OnceLock::new(),
            part: Part::Item,
            peer: self.peer,
        }
    }

    /// Something is asked of a model.
    pub(crate) fn asks(&self, exchange: &Arc<Exchange>) {
        // A request asks once.
        let _first = self.exchange.set(exchange.clone());
    }

    pub(crate) fn id(&self) -> &HeaderValue {
        &self.id
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What is asked of a model.
    pub(crate) fn exchange(&self) -> Option<&Arc<Exchange>> {
        self.exchange.get()
    }

    /// Whether it came with others in one request.
    pub(crate) fn is_item(&self) -> bool {
        self.part == Part::Item
    }

    /// When it was here.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// So long the gateway itself has worked on it, to its end.
    pub(crate) fn took(&self, own: Duration) {
        // A request ends once.
        let _first = self.own.set(own);
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }
}

/// Tells of a request when dropped: with the body of its answer, or before there was one.
#[derive(Debug)]
pub(crate) struct Recording {
    entry: Arc<Entry>,
    observers: Observers,
    status: Option<StatusCode>,
    cause: Option<Cause>,
    /// Whether the caller has got all of it.
    whole: bool,
}

impl Recording {
    pub(crate) fn new(entry: Arc<Entry>, observers: Observers) -> Self {
        Self {
            entry,
            observers,
            status: None,
            cause: None,
            whole: false,
        }
    }

    pub(crate) fn failed(&mut self, error: &ApiError) {
        self.cause = Some(Cause::of_answer(error));
    }

    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// It needs no body to end.
    pub(crate) fn is_whole(&mut self) {
        self.whole = true;
    }

    fn record(&mut self) -> Record {
        let entry = &*self.entry;
        let exchange = entry.exchange.get();
        let end = exchange.and_then(|exchange| exchange.end());
        let cause = self.cause.take();
        let cause = cause.or_else(|| exchange.and_then(|exchange| exchange.take_cause()));
        let status = self.status;
        let status = status
            .unwrap_or_else(|| StatusCode::from_u16(CLIENT_CLOSED_REQUEST).expect("three digits"));
        let of_cause = cause.as_ref().and_then(|cause| cause.verdict);
        let verdict = match &end {
            // What comes after a good answer of a backend can still go wrong here.
            Some(end) if end.verdict != Verdict::Success => end.verdict,
            _ => match of_cause {
                Some(verdict) => verdict,
                None if end.is_some() => Verdict::Success,
                None if self.status.is_none() || !self.whole => Verdict::Canceled,
                None if status.is_server_error() => Verdict::Failure,
                None if status.is_client_error() => Verdict::CallerFault,
                None => Verdict::Success,
            },
        };
        let failed = verdict != Verdict::Success;
        let (reason, rule, why) = match cause.filter(|_| failed) {
            Some(cause) => (cause.reason, cause.rule, Some(cause.why)),
            None => (None, None, None),
        };
        // What is not to be shown of a path could stand in a sentence about it.
        let path = entry.uri.path();
        let why = why.filter(|_| shown(path) == path);
        let why = why.or_else(|| failed.then(|| sentence(verdict, status)));
        let part = match entry.part {
            Part::Whole if exchange.is_some_and(|exchange| exchange.is_batch()) => Part::Batch,
            part => part,
        };
        Record {
            id: entry.id.clone(),
            received: entry.received,
            took: time::now().saturating_duration_since(entry.since),
            first_token: (end.as_ref().and_then(|end| end.first_data))
                .filter(|_| exchange.is_some_and(|exchange| exchange.is_stream())),
            peer: entry.peer,
            method: entry.method.clone(),
            uri: entry.uri.clone(),
            operation: exchange.map(|exchange| exchange.operation),
            caller: exchange.map(|exchange| exchange.caller.clone()),
            model: exchange.and_then(|exchange| exchange.model()),
            stream: exchange.is_some_and(|exchange| exchange.is_stream()),
            status,
            verdict,
            reason: reason.or_else(|| failed.then(|| code(verdict))),
            rule,
            why,
            backend: (exchange.and_then(|exchange| exchange.backend()))
                .map(|backend| backend.id.clone()),
            attempts: exchange.map_or(0, |exchange| exchange.attempts()),
            usage: end.and_then(|end| end.usage),
            own: entry.own.get().copied(),
            part,
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.observers.0.is_empty() {
            let record = self.record();
            self.observers.tell(&record);
        }
    }
}

/// What stands for a cause that nobody has told.
fn sentence(verdict: Verdict, status: StatusCode) -> String {
    match verdict {
        Verdict::Canceled => "the caller left before the end".into(),
        Verdict::TimedOut => "no answer in time".into(),
        Verdict::Unsent => "no backend could be reached".into(),
        Verdict::Refused(reason) => format!("refused: {}", reason.name()),
        _ if status.is_success() => "the answer broke off".into(),
        _ => format!("the answer had status {}", status.as_u16()),
    }
}

/// The closed set of reasons where no layer or error has a word of its own.
fn code(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Canceled => "canceled",
        Verdict::TimedOut => "timed_out",
        Verdict::Overload { .. } => "overloaded",
        Verdict::CallerFault => "invalid_request",
        Verdict::Refused(reason) => reason.name(),
        _ => "bad_gateway",
    }
}

/// The body of an answer, with which the request ends.
#[pin_project(PinnedDrop)]
pub(crate) struct Recorded<B> {
    // Dropped first, so that all guards have settled when the recording is made.
    #[pin]
    body: B,
    ended: bool,
    recording: Recording,
}

impl<B: Body> Recorded<B> {
    pub(crate) fn new(body: B, recording: Recording) -> Self {
        Self {
            // Nobody asks for a frame of an empty one.
            ended: body.is_end_stream(),
            body,
            recording,
        }
    }
}

#[pinned_drop]
impl<B> PinnedDrop for Recorded<B> {
    fn drop(self: Pin<&mut Self>) {
        let this = self.project();
        if *this.ended {
            this.recording.is_whole();
        }
    }
}

impl<B> Body for Recorded<B>
where
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let frame = this.body.as_mut().poll_frame(cx);
        *this.ended = match &frame {
            Poll::Pending => false,
            Poll::Ready(None) => true,
            // Nobody asks again after the last frame.
            Poll::Ready(Some(Ok(_))) => this.body.is_end_stream(),
            Poll::Ready(Some(Err(_))) => false,
        };
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
