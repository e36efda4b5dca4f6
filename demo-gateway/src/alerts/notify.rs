//! Messages to a webhook, when something breaks and when it is right again.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
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
    sync::mpsc,
    time::{sleep, timeout},
};
use tower::{Service, ServiceExt};
use uuid::Uuid;

use super::payload::{body, signature};
use crate::{
    changes::Severity,
    config::{MinSeverity, Notify, told},
    watcher::{Event, Kind, State},
};

const EVENTS: &str = "palisade_notify_events_total";

/// How many events wait for the receiver; what comes beyond is dropped and counted.
const QUEUE: usize = 256;

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
    /// It did not take them in all attempts.
    gave_up: Counter,
    /// The queue was full.
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

/// Takes what is to be told, and never waits.
pub(crate) struct Notifier {
    queue: mpsc::Sender<Event>,
    filter: Filter,
    meters: Meters,
    /// Whether the queue was full at the last event.
    is_full: bool,
}

/// Sends it.
pub(crate) struct Sender {
    queue: mpsc::Receiver<Event>,
    webhook: Webhook,
    group: Duration,
    meters: Meters,
}

impl Notifier {
    /// One for this gateway. Expects a configuration without mistakes.
    pub(crate) fn new(config: &Notify, gateway: String) -> Result<(Self, Sender), BoxError> {
        let (client, target) = config.target().ok_or("there is no webhook")??;
        let (queue, receiver) = mpsc::channel(QUEUE);
        let meters = Meters::new();
        let notifier = Self {
            queue,
            filter: Filter::new(config),
            meters: meters.clone(),
            is_full: false,
        };
        let client = client
            .named("webhook")
            .connect_timeout(config.timeout)
            .max_idle(1);
        let sender = Sender {
            queue: receiver,
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
        if !self.filter.lets_through(event) {
            return;
        }
        let is_full = self.queue.try_send(event.clone()).is_err();
        if is_full {
            self.meters.dropped.increment(1);
            self.filter.forget(event);
            if !self.is_full {
                tracing::warn!("the webhook is too slow: events for it are dropped");
            }
        }
        self.is_full = is_full;
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

    /// The receiver will not hear of this.
    fn forget(&mut self, event: &Event) {
        let key = (event.kind, event.subject.clone());
        match event.state {
            State::Firing => drop(self.firing.remove(&key)),
            // It may be told when it fires again.
            State::Resolved | State::Told => {}
        }
    }
}

impl Sender {
    /// Sends for as long as there is a notifier and this is polled.
    ///
    /// Dropped, it leaves out what it had not sent, and says how much.
    pub(crate) async fn run(mut self) {
        loop {
            let Some(first) = self.queue.recv().await else {
                return;
            };
            let mut batch = Batch {
                events: vec![first],
                stopped: &self.meters.stopped,
            };
            // Troubles come together.
            sleep(self.group).await;
            while batch.events.len() < TOGETHER
                && let Ok(event) = self.queue.try_recv()
            {
                batch.events.push(event);
            }
            let outcome = self.webhook.deliver(&batch.events).await;
            let many = std::mem::take(&mut batch.events).len() as u64;
            let counter = match outcome {
                Outcome::Delivered => &self.meters.delivered,
                Outcome::Refused => &self.meters.refused,
                Outcome::GaveUp => &self.meters.gave_up,
            };
            counter.increment(many);
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.queue.close();
        let mut left = 0;
        while self.queue.try_recv().is_ok() {
            left += 1;
        }
        self.meters.stopped.increment(left);
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
mod tests {
    use super::*;

    fn event(state: State, severity: Severity) -> Event {
        Event {
            at: SystemTime::UNIX_EPOCH,
            kind: Kind::Endpoint,
            state,
            severity,
            subject: "gpu-3".into(),
            text: "gpu-3".into(),
        }
    }

    fn told_of(config: &Notify, events: &[(State, Severity)]) -> Vec<bool> {
        let mut filter = Filter::new(config);
        let events = events.iter();
        events
            .map(|(state, severity)| filter.lets_through(&event(*state, *severity)))
            .collect()
    }

    #[test]
    fn an_alert_is_told_once_until_it_is_worse_or_over() {
        use Severity::{Bad, Ok, Warn};
        use State::{Firing, Resolved};

        let told = told_of(
            &Notify::default(),
            &[
                (Firing, Warn),
                (Firing, Bad),
                (Firing, Warn),
                (Firing, Bad),
                (Resolved, Ok),
                (Resolved, Ok),
                (Firing, Bad),
            ],
        );
        assert_eq!(told, [true, true, false, false, true, false, true]);
    }

    #[test]
    fn what_was_not_told_is_not_told_to_be_over() {
        let config = Notify {
            min_severity: MinSeverity::Bad,
            ..Notify::default()
        };
        let events = [
            (State::Firing, Severity::Warn),
            (State::Resolved, Severity::Ok),
            (State::Told, Severity::Info),
        ];
        assert_eq!(told_of(&config, &events), [false; 3]);
        let config = Notify {
            min_severity: MinSeverity::Info,
            ..Notify::default()
        };
        assert_eq!(told_of(&config, &events), [true; 3]);
        let config = Notify {
            kinds: vec![Kind::Burn],
            ..config
        };
        assert_eq!(told_of(&config, &events), [false; 3]);
    }

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_and_what_fires_on_is_told_again() {
        let config = Notify::new("http://127.0.0.1:9");
        let (mut notifier, mut sender) = Notifier::new(&config, "here".into()).unwrap();
        for number in 0..QUEUE + 10 {
            let event = Event {
                subject: number.to_string().into(),
                ..event(State::Firing, Severity::Bad)
            };
            notifier.notify(&event);
        }
        assert!(notifier.is_full);
        assert_eq!(sender.queue.len(), QUEUE);
        assert_eq!(notifier.filter.firing.len(), QUEUE);
        let _first = sender.queue.try_recv();
        let last = Event {
            subject: (QUEUE + 9).to_string().into(),
            ..event(State::Firing, Severity::Bad)
        };
        notifier.notify(&last);
        assert!(!notifier.is_full);
        assert_eq!(sender.queue.len(), QUEUE);
    }
}
