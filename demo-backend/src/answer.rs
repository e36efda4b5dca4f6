//! One request: its books, its faults, its answer.

use std::{future::pending, io, sync::Arc};

use axum::{Router, body::Body as Inner};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version,
    header::CONTENT_LENGTH, request::Parts,
};
use http_body::Body;
use http_body_util::BodyExt;
use palisade_core::{BoxError, time};
use tokio::time::{Instant, sleep};
use tower_service::Service;

use crate::{
    body::AnswerBody,
    chaos::{Chaos, Strike},
    errors::Failure,
    fault::{Kind, LATENCY, Target},
    forward,
    instance::Instance,
    reply::{Reply, What},
    rng::Rng,
    routes,
    seen::{Ended, Seen},
    server::Link,
    ticket::{Call, Ticket},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const INSTANCE_ID: HeaderName = HeaderName::from_static("x-instance-id");
const LOAD: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// As the gateway has it.
const BODY_LIMIT: u64 = 4 << 20;
/// What is read beyond the limit and thrown away, so that the client gets to read the answer.
const DRAIN_LIMIT: u64 = 16 * BODY_LIMIT;
/// As the gateway has it.
const REQUEST_ID_LIMIT: usize = 128;

/// What answers the requests of all connections.
#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) instance: Arc<Instance>,
    router: Router,
}

impl Backend {
    pub(crate) fn new(instance: Arc<Instance>) -> Self {
        let router = routes::router(Arc::clone(&instance));
        Self { instance, router }
    }

    /// An error says that the connection is to be closed without an answer.
    pub(crate) async fn answer<B>(
        &self,
        request: Request<B>,
        link: Option<Arc<Link>>,
    ) -> io::Result<Response<AnswerBody>>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let instance = &self.instance;
        let now = time::now();
        let (mut parts, body) = request.into_parts();
        let target = target(parts.uri.path());
        let work = target == Some(Target::Requests);
        let mut ticket = Ticket::new(instance, work, now);
        let chaos = instance.chaos();

        // Its first request is part of a connection that was let in a moment ago.
        let kept = link.as_ref().is_none_or(|link| !link.is_first());
        // Only HTTP/1 has a connection to itself.
        let link = link.filter(|_| parts.version < Version::HTTP_2);
        if kept && !chaos.is_empty() && chaos.refuses(instance.next_connection(), now) {
            instance.meters.fault(Kind::Refuse.index());
            return Err(refuse(link.as_deref(), ticket));
        }
        let nth = match target {
            Some(Target::Requests) => instance.next_request(now),
            _ => instance.next_other(),
        };
        let body = match claimed(&parts.headers) {
            Some(length) if length > DRAIN_LIMIT => None,
            _ => read_body(body).await?,
        };
        ticket.record(|| Seen {
            method: parts.method.clone(),
            path: parts.uri.to_string(),
            headers: parts.headers.clone(),
            body: body.clone().unwrap_or_default(),
            at: now,
            ended: Ended::InFlight,
            ended_at: None,
        });
        let request_id = request_id(&parts.headers).unwrap_or_else(|| made_id(instance, nth, work));
        let scripted = if work { instance.next_reply() } else { None };
        let mut reply = scripted.unwrap_or_else(Reply::simulated);

        let strike = self.strike(&chaos, target, nth, now, &mut reply);
        if !strike.delay.is_zero() {
            sleep(strike.delay).await;
        }
        match &strike.kind {
            Some(Kind::Hang) => return pending().await,
            Some(Kind::Crash) => {
                instance.crash();
                return pending().await;
            }
            Some(Kind::Refuse) => return Err(refuse(link.as_deref(), ticket)),
            _ => {}
        }
        let mut response = match (on_purpose(strike.kind.as_ref()), body) {
            (Some(failure), _) => failure.answer(parts.uri.path()),
            (None, None) => too_large().answer(parts.uri.path()),
            (None, Some(body)) => {
                let call = Call {
                    nth,
                    at: now,
                    headers: std::mem::take(&mut parts.headers),
                    body,
                    request_id: request_id.clone(),
                    what: reply.what,
                    sent: ticket.sent(),
                };
                self.respond(parts, call).await
            }
        };
        let headers = response.headers_mut();
        headers.extend(reply.headers);
        headers.insert(REQUEST_ID, request_id);
        headers.insert(INSTANCE_ID, instance.id_header.clone());
        headers.insert(LOAD, instance.orca());
        let (mut head, body) = response.into_parts();
        let body = AnswerBody::new(body, &mut head, strike.kind.as_ref(), link, ticket);
        Ok(Response::from_parts(head, body))
    }

    /// What the script and the chaos do to this request. The script's fault goes first, latencies add up.
    fn strike(
        &self,
        chaos: &Chaos,
        target: Option<Target>,
        nth: u64,
        now: Instant,
        reply: &mut Reply,
    ) -> Strike {
        let meters = &self.instance.meters;
        let mut strike = match target {
            Some(target) if !chaos.is_empty() => chaos.strike(target, nth, now),
            _ => Strike::default(),
        };
        if !strike.delay.is_zero() {
            meters.fault(LATENCY);
        }
        strike.delay = strike.delay.saturating_add(reply.delay);
        match reply.fault.take() {
            Some(Kind::Latency(latency)) => {
                meters.fault(LATENCY);
                let delay = latency.draw(&mut Rng::of(self.instance.seed, nth));
                strike.delay = strike.delay.saturating_add(delay);
            }
            Some(kind) => strike.kind = Some(kind),
            None => {}
        }
        if let Some(kind) = &strike.kind {
            meters.fault(kind.index());
        }
        strike
    }

    /// What the script says, or else the provider or the simulation.
    async fn respond(&self, parts: Parts, call: Call) -> Response<Inner> {
        match call.what {
            What::Response(response) => response.map(Inner::from),
            What::Status(status) if status.as_u16() >= 400 => {
                let failure = Failure::new(status, "scripted", "the script says so");
                failure.answer(parts.uri.path())
            }
            What::Status(status) => {
                let mut response = Response::new(Inner::empty());
                *response.status_mut() = status;
                response
            }
            _ => self.route(parts, call).await,
        }
    }

    async fn route(&self, parts: Parts, call: Call) -> Response<Inner> {
        if let Some(forward) = &self.instance.forward
            && is_work(parts.uri.path())
            && matches!(call.what, What::Simulated)
        {
            return forward::answer(forward, &self.instance, &parts, &call).await;
        }
        let mut request = Request::from_parts(parts, Inner::empty());
        request.extensions_mut().insert(Arc::new(call));
        let mut router = self.router.clone();
        let Ok(response) = router.call(request).await;
        response
    }
}

fn is_work(path: &str) -> bool {
    path == "/generate" || path.starts_with("/v1/")
}

fn target(path: &str) -> Option<Target> {
    match path {
        "/health" => Some(Target::Health),
        _ if is_work(path) => Some(Target::Requests),
        _ => None,
    }
}

/// Ends the connection of a request, or its stream, without an answer.
fn refuse(link: Option<&Link>, mut ticket: Ticket) -> io::Error {
    ticket.break_off();
    if let Some(link) = link {
        link.reset();
    }
    io::Error::new(io::ErrorKind::ConnectionReset, "a fault")
}

/// The error that a fault answers with.
fn on_purpose(fault: Option<&Kind>) -> Option<Failure> {
    let (status, retry_after) = match fault? {
        Kind::Error {
            status,
            retry_after,
        } => (*status, *retry_after),
        Kind::RateLimit { retry_after } => (StatusCode::TOO_MANY_REQUESTS, Some(*retry_after)),
        _ => return None,
    };
    Some(Failure::new(status, "fault", "a fault on purpose").retry_after(retry_after))
}

fn too_large() -> Failure {
    let status = StatusCode::PAYLOAD_TOO_LARGE;
    let detail = format!("the body is larger than {BODY_LIMIT} bytes");
    Failure::new(status, "body_too_large", detail)
}

fn claimed(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The whole body, or none when it is beyond the limit.
async fn read_body<B>(body: B) -> io::Result<Option<Bytes>>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let mut body = std::pin::pin!(body);
    let (mut first, mut more) = (Bytes::new(), BytesMut::new());
    let mut length = 0_u64;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len() as u64;
        if length > DRAIN_LIMIT {
            break;
        } else if length > BODY_LIMIT {
            (first, more) = (Bytes::new(), BytesMut::new());
        } else if first.is_empty() {
            // Nearly all bodies are one frame, which is not copied.
            first = data;
        } else {
            more.extend_from_slice(&data);
        }
    }
    Ok(match length {
        _ if length > BODY_LIMIT => None,
        _ if more.is_empty() => Some(first),
        _ => Some([first, more.freeze()].concat().into()),
    })
}

/// The caller's name for the request, if it is one that can be written down.
fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(REQUEST_ID)?;
    let visible = id.as_bytes().iter().all(u8::is_ascii_graphic);
    (visible && (1..=REQUEST_ID_LIMIT).contains(&id.len())).then(|| id.clone())
}

fn made_id(instance: &Instance, nth: u64, work: bool) -> HeaderValue {
    /// Both kinds of requests are counted from 0.
    const OTHER: u64 = 1 << 63;
    let nth = if work { nth } else { nth | OTHER };
    let id = Bytes::from(format!("req-{}", instance.unique(nth)));
    HeaderValue::from_maybe_shared(id).expect("letters and digits")
}
