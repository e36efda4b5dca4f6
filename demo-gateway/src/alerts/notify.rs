//! Messages to a webhook, when something breaks and when it is right again.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, StatusCode, Uri,
    header::{CONTENT_TYPE, USER_AGENT},
};
use http_body_util::Full;
use metrics::{Counter, counter, describe_counter};
use palisade::{
    BoxError,
    balance::Client,
    retry::{Backoff, Jitter},
    retry_after::retry_after,
    time::wall_clock,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tower::{Service, ServiceExt};
use uuid::Uuid;

use super::{
    payload::{body, signature},
    queue::Queue,
};
use crate::{
    changes::Severity,
    config::{MinSeverity, Notify, told},
    watcher::{Event, Kind, State},
};

const EVENTS: &str = "palisade_notify_events_total";

/// How many events wait for the receiver; beyond that the newest state of each alert does.
const QUEUE: usize = 256;

/// Of how many alerts it does.
const ALERTS: usize = 4096;

/// How many go out as one message.
const TOGETHER: usize = 64;

/// Between two attempts.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// What became of events that were to be told, each of them in one of these.
#[derive(Clone)]
struct Meters {
    delivered: Counter,
    /// The receiver does not want them.
    refused: Counter,
    /// It did not take them in all attempts; the newest state of an alert goes out again.
    gave_up: Counter,
    /// They found no room, and there was something newer of the same alert, or of too many others.
    dropped: Counter,
    /// The gateway has stopped before.
    stopped: Counter,
}

impl Meters {
    fn new() -> Self {
        describe_counter!(
            EVENTS,
            "Events for the webhook, by what became of the message that they went out with."
        );
        let of = |result: &'static str| counter!(EVENTS, "result" => result);
        Self {
            delivered: of("delivered"),
            refused: of("refused"),
            gave_up: of("gave_up"),
            dropped: of("dropped"),
            stopped: of("stopped"),
        }
    }
}

/// What both sides share.
#[derive(Clone)]
struct Shared(Arc<Mutex<Queue>>);

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes what is to be told, and never waits.
pub(crate) struct Notifier {
    shared: Shared,
    wakes: watch::Sender<()>,
    filter: Filter,
    meters: Meters,
    /// Whether anything was dropped at the last event.
    drops: bool,
}

/// Sends it.
pub(crate) struct Sender {
    shared: Shared,
    wakes: watch::Receiver<()>,
    webhook: Webhook,
    group: Duration,
    meters: Meters,
}

impl Notifier {
    /// One for this gateway. Expects a configuration without mistakes.
    pub(crate) fn new(config: &Notify, gateway: String) -> Result<(Self, Sender), BoxError> {
        let (client, target) = config.target().ok_or("there is no webhook")??;
        let shared = Shared(Arc::new(Mutex::new(Queue::new(QUEUE, ALERTS))));
        let (wakes, woken) = watch::channel(());
        let meters = Meters::new();
        let notifier = Self {
            shared: shared.clone(),
            wakes,
            filter: Filter::new(config),
            meters: meters.clone(),
            drops: false,
        };
        let client = client
            .named("webhook")
            .connect_timeout(config.timeout)
            .max_idle(1);
        let sender = Sender {
            shared,
            wakes: woken,
            webhook: Webhook {
                client,
                target,
                gateway,
                config: config.clone(),
                backoff: Backoff::exponential(SHORTEST_BACKOFF, LONGEST_BACKOFF)?
                    .jitter(Jitter::Equal),
            },
            group: config.group,
            meters,
        };
        Ok((notifier, sender))
    }

    /// Tells of this, if somebody wants to know.
    pub(crate) fn notify(&mut self, event: &Event) {
        let begins = !self.filter.fires(event);
        if !self.filter.lets_through(event) {
            return;
        }
        let dropped = self.shared.queue().push(event.clone(), begins);
        self.meters.dropped.increment(dropped as u64);
        let drops = dropped > 0;
        if drops && !std::mem::replace(&mut self.drops, drops) {
            tracing::warn!(
                "the webhook is too slow: of each alert it is told the newest state only"
            );
        }
        self.drops = drops;
        self.wakes.send_replace(());
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier").finish_non_exhaustive()
    }
}

/// Which events are told: what has begun, what has become worse, and what of that is over.
#[derive(Debug)]
struct Filter {
    least: Severity,
    kinds: Vec<Kind>,
    /// What fires as far as the receiver knows, and how bad that is.
    firing: BTreeMap<(Kind, Arc<str>), Severity>,
}

impl Filter {
    fn new(config: &Notify) -> Self {
        Self {
            least: match config.min_severity {
                MinSeverity::Info => Severity::Info,
                MinSeverity::Warn => Severity::Warn,
                MinSeverity::Bad => Severity::Bad,
            },
            kinds: config.kinds.clone(),
            firing: BTreeMap::new(),
        }
    }

    fn lets_through(&mut self, event: &Event) -> bool {
        if !self.kinds.contains(&event.kind) {
            return false;
        }
        let key = (event.kind, event.subject.clone());
        match event.state {
            State::Firing => {
                let known = self.firing.get(&key).copied();
                let is_news = known.is_none_or(|known| known < event.severity);
                let tells = event.severity >= self.least && is_news;
                if tells {
                    self.firing.insert(key, event.severity);
                }
                tells
            }
            State::Resolved => self.firing.remove(&key).is_some(),
            State::Told => event.severity >= self.least,
        }
    }

    /// Whether this alert fires, as far as the receiver knows or will.
    fn fires(&self, event: &Event) -> bool {
        self.firing
            .contains_key(&(event.kind, event.subject.clone()))
    }
}

impl Sender {
    /// Sends for as long as there is a notifier and this is polled, and then what is left, until that is given up.
    ///
    /// Dropped, it leaves out what it had not sent, and says how much.
    pub(crate) async fn run(mut self) {
        // Fewer after each failure, so that one that always fails is alone in the end.
        let mut again = TOGETHER;
        loop {
            // Seen before it is looked for, so that nothing that comes in between is missed.
            let is_over = self.wakes.has_changed().is_err();
            self.wakes.mark_unchanged();
            if self.shared.queue().len() == 0 {
                if is_over || self.wakes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            // Troubles come together.
            sleep(self.group).await;
            let mut batch = Batch {
                events: self.shared.queue().take(TOGETHER, again),
                stopped: &self.meters.stopped,
            };
            let outcome = self.webhook.deliver(&batch.events).await;
            let events = std::mem::take(&mut batch.events);
            let counter = match outcome {
                Outcome::Delivered => &self.meters.delivered,
                Outcome::Refused => &self.meters.refused,
                Outcome::GaveUp => &self.meters.gave_up,
            };
            counter.increment(events.len() as u64);
            drop(batch);
            if outcome != Outcome::GaveUp {
                again = TOGETHER.min(2 * again);
                continue;
            }
            again = 1.max(events.len() / 2);
            let lost = self.shared.queue().put_back(events);
            self.meters.dropped.increment(lost as u64);
            if self.wakes.has_changed().is_err() {
                return;
            }
            sleep(self.webhook.config.timeout).await;
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        self.meters.stopped.increment(queue.len() as u64);
        queue.clear();
    }
}

/// Counts what was not sent to its end.
struct Batch<'a> {
    events: Vec<Event>,
    stopped: &'a Counter,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.events.is_empty() {
            let events = self.events.len();
            self.stopped.increment(events as u64);
            tracing::warn!(events, "stopped before the webhook had taken a message");
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Delivered,
    Refused,
    GaveUp,
}

struct Webhook {
    client: Client<Full<Bytes>>,
    target: Uri,
    gateway: String,
    config: Notify,
    backoff: Backoff,
}

/// Why an attempt failed, without the URL.
struct Failed {
    why: String,
    /// It would fail again.
    is_final: bool,
    /// When the receiver wants to be asked again.
    after: Option<Duration>,
}

impl Webhook {
    async fn deliver(&mut self, events: &[Event]) -> Outcome {
        let id = Uuid::now_v7().to_string();
        let body = Bytes::from(body(self.config.format, &id, &self.gateway, events));
        let mut delays = self.backoff.delays();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let Err(failed) = self.attempt(&id, &body).await else {
                return Outcome::Delivered;
            };
            let Failed {
                why,
                is_final,
                after,
            } = failed;
            if is_final {
                tracing::warn!(%why, events = events.len(), "the webhook refuses a message");
                return Outcome::Refused;
            }
            if attempt >= self.config.attempts {
                tracing::warn!(%why, attempt, events = events.len(), "gave up on the webhook");
                return Outcome::GaveUp;
            }
            let delay = delays.next().unwrap_or(LONGEST_BACKOFF);
            let delay = delay.max(after.unwrap_or_default()).min(LONGEST_BACKOFF);
            tracing::info!(%why, attempt, ?delay, "the webhook has not taken a message: once more");
            sleep(delay).await;
        }
    }

    async fn attempt(&mut self, id: &str, body: &Bytes) -> Result<(), Failed> {
        let again = |why: String| Failed {
            why,
            is_final: false,
            after: None,
        };
        let request = self.request(id, body);
        let sent = async { self.client.ready().await?.call(request).await };
        let answer = match timeout(self.config.timeout, sent).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(again(told(&*error))),
            Err(_) => return Err(again("no answer in time".into())),
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let may_pass = status.is_server_error()
            || status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::REQUEST_TIMEOUT;
        Err(Failed {
            why: format!("status {}", status.as_u16()),
            is_final: !may_pass,
            after: retry_after(answer.headers(), wall_clock()),
        })
    }

    fn request(&self, id: &str, body: &Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let agent = concat!("demo-gateway/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        // Who gets a message twice, because its answer was lost, can tell.
        if let Ok(id) = HeaderValue::from_str(id) {
            headers.insert("idempotency-key", id);
        }
        if let Some(secret) = &self.config.secret {
            let at = wall_clock().duration_since(SystemTime::UNIX_EPOCH);
            let at = at.unwrap_or_default().as_secs();
            let signature = signature(secret.reveal(), at, body);
            if let Ok(signature) = HeaderValue::from_str(&signature) {
                headers.insert("x-palisade-signature", signature);
            }
        }
        request
    }
}

#[cfg(test)]
mod tests;
