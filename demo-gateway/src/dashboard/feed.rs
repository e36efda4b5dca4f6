//! One look a second for all viewers, and what each of them is sent.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame};
use palisade::{BoxError, time};
use tokio::{
    sync::{broadcast::error::TryRecvError, watch},
    time::{MissedTickBehavior, interval_at},
};

use super::{
    collect::Collector,
    gather::{Fixture, Judged, Now, newest},
    second::LISTED,
    state::State,
    viewers::{VIEWERS, Viewer, Viewers},
    wire::{About, Event, Request, Snapshot, Tick},
};
use crate::{
    app::App,
    clock::unix_ms,
    config,
    errors::{ApiError, SOON},
    record::{Observe, Record},
    server::Hangup,
};

/// A tick is shorter than this, in bytes, unless there are many endpoints.
const SHORT: usize = 4096;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// What the page at `/` shows: looked at once a second, by one task, whoever is watching.
///
/// Nobody watching, it only counts and judges; the rest is gathered and written when there is somebody to send it to, and once for
/// all of them.
#[derive(Debug)]
pub(crate) struct Dashboard {
    collector: Collector,
    state: Mutex<State>,
    /// What was told last of what seldom changes, and how often it has.
    told: Mutex<(u64, Fixture)>,
    messages: watch::Sender<Message>,
    viewers: Viewers,
    started: SystemTime,
}

/// What a viewer is to be sent.
#[derive(Clone, Debug)]
enum Message {
    Nothing,
    Tick {
        /// Of what seldom changes: who knows another one needs the snapshot first.
        epoch: u64,
        snapshot: Bytes,
        tick: Bytes,
    },
    End,
}

impl Dashboard {
    /// `limits`: whether there are any that a caller could be near.
    pub(crate) fn new(limits: bool) -> Self {
        Self {
            collector: Collector::new(limits),
            state: Mutex::default(),
            told: Mutex::default(),
            messages: watch::Sender::new(Message::Nothing),
            viewers: Viewers::new(),
            started: time::wall_clock(),
        }
    }

    /// Requests that have ended since the start, up to the last look.
    pub(crate) fn ended(&self) -> u64 {
        self.state().total()
    }

    /// Looks once a second, for as long as the gateway is there and this is polled.
    ///
    /// Dropped at any point it has counted a second either wholly or not at all.
    pub(crate) async fn watch(app: Weak<App>) {
        let Some(mut changes) = app.upgrade().map(|app| {
            let recent = app.changes.recent();
            app.dashboard.state().changed(recent.into_iter().rev());
            app.changes.subscribe()
        }) else {
            return;
        };
        let mut last = time::now();
        let mut looks = interval_at(time::now() + EVERY, EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            looks.tick().await;
            let Some(app) = app.upgrade() else {
                return;
            };
            let mut fresh = Vec::new();
            loop {
                match changes.try_recv() {
                    Ok(change) => fresh.push(change),
                    // The oldest are lost; `recent` would not have them either.
                    Err(TryRecvError::Lagged(_)) => {}
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            let now = time::now();
            let took = now.saturating_duration_since(last);
            last = now;
            app.dashboard.look(&app, took, fresh);
        }
    }

    pub(super) fn look(&self, app: &App, took: Duration, fresh: Vec<Arc<crate::changes::Change>>) {
        self.viewers.look();
        let now = time::wall_clock();
        let unix = now.duration_since(SystemTime::UNIX_EPOCH);
        let endpoints = newest(app.backends.endpoints.snapshot());
        let mut state = self.state();
        state.roll(&self.collector, &endpoints, took, unix.unwrap_or_default());
        state.changed(fresh);
        let judged = Judged::judge(app, endpoints, state.total());
        if self.messages.receiver_count() == 0 {
            state.tell(false);
            return;
        }
        let gathered = Now::gather(app, &state, judged);
        let tick = short(&state, &gathered, now);
        let epoch = self.epoch(&gathered.fixed);
        let snapshot = match &*self.messages.borrow() {
            Message::Tick {
                epoch: known,
                snapshot,
                ..
            } if *known == epoch => snapshot.clone(),
            Message::End => return,
            _ => self.snapshot(&state, &gathered, now),
        };
        state.tell(true);
        // Under the lock, so that who comes now gets either the one or the other.
        self.messages.send_replace(Message::Tick {
            epoch,
            snapshot,
            tick,
        });
    }

    /// What somebody who comes now is sent.
    ///
    /// # Errors
    ///
    /// If too many are looking already, or the gateway stops.
    pub(super) fn view(&self, app: &App, connection: Option<Hangup>) -> Result<Viewing, ApiError> {
        let unavailable = |code, detail: String| {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(SOON)
        };
        let viewer = self.viewers.enter(connection).ok_or_else(|| {
            let detail = format!("{VIEWERS} are looking at the dashboard already");
            unavailable("overloaded", detail)
        })?;
        let state = self.state();
        if matches!(*self.messages.borrow(), Message::End) {
            return Err(unavailable("draining", "the gateway stops".into()));
        }
        let now = time::wall_clock();
        let endpoints = newest(app.backends.endpoints.snapshot());
        let judged = Judged::judge(app, endpoints, state.total());
        let gathered = Now::gather(app, &state, judged);
        let first = self.snapshot(&state, &gathered, now);
        let mut messages = self.messages.subscribe();
        messages.mark_unchanged();
        Ok(Viewing {
            first: Some(first),
            epoch: self.epoch(&gathered.fixed),
            next: Box::pin(next(messages)),
            viewer,
        })
    }

    /// Sends everybody away, and lets nobody in any more.
    pub(crate) fn close(&self) {
        let _state = self.state();
        self.messages.send_replace(Message::End);
    }

    fn epoch(&self, fixed: &Fixture) -> u64 {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.1 != *fixed {
            *told = (told.0 + 1, fixed.clone());
        }
        told.0
    }

    fn snapshot(&self, state: &State, now: &Now, at: SystemTime) -> Bytes {
        let snapshot = Snapshot {
            gateway: About {
                name: env!("CARGO_PKG_NAME"),
                version: env!("CARGO_PKG_VERSION"),
                started_ms: unix_ms(self.started),
                strategies: config::strategies(),
                rules: now.rules,
            },
            endpoints: &now.fixed.endpoints,
            objectives: &now.fixed.objectives,
            alerts: &now.fixed.alerts,
            history: state.history.columns(),
            requests: state.requests.iter().map(Request::of).collect(),
            events: state.told().map(Event::from).collect(),
            tick: tick(state, now, at, None),
        };
        event("snapshot", &snapshot)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observe for Dashboard {
    fn ended(&self, record: &Record) {
        self.collector.ended(record);
    }
}

/// The tick of this second, with as many requests as it has room for.
fn short(state: &State, now: &Now, at: SystemTime) -> Bytes {
    let mut most = LISTED;
    loop {
        let tick = event("tick", &tick(state, now, at, Some(most)));
        if most == 0 || tick.len() < SHORT {
            return tick;
        }
        most -= 1;
    }
}

/// `lists`: whether to tell the changes of the second one by one, and at most so many requests.
fn tick<'a>(state: &'a State, now: &'a Now, at: SystemTime, lists: Option<usize>) -> Tick<'a> {
    let (listed, fresh) = match lists {
        Some(most) => (state.listed(most), state.fresh().map(Event::from).collect()),
        None => (Vec::new(), Vec::new()),
    };
    Tick {
        seq: state.seq,
        at: state.at,
        at_ms: unix_ms(at),
        verdict: (&now.verdict).into(),
        rate: state.rate(),
        latency_ms: state.latency(),
        first_token_ms: state.first_token(),
        gateway: now.own,
        strategy: now.strategy,
        endpoints: &now.endpoints,
        endpoints_more: now.endpoints_more,
        limits: &now.limits,
        slo: &now.slo,
        requests_skipped: lists.map_or(0, |_| state.skipped(listed.len())),
        requests: listed.into_iter().map(Request::of).collect(),
        total_requests: state.total(),
        events: fresh,
    }
}

fn event(name: &str, value: &impl serde::Serialize) -> Bytes {
    let mut text = format!("event: {name}\ndata: ").into_bytes();
    serde_json::to_writer(&mut text, value).expect("only strings as keys");
    text.extend_from_slice(b"\n\n");
    text.into()
}

/// The answer to somebody who watches: all that is known, and then what is new, of which at most one message waits.
///
/// Dropped, its place is free again.
pub(super) struct Viewing {
    first: Option<Bytes>,
    /// What seldom changes, as this viewer knows it.
    epoch: u64,
    next: Pin<Box<Next>>,
    viewer: Arc<Viewer>,
}

type Next = dyn Future<Output = (watch::Receiver<Message>, Message)> + Send;

async fn next(mut messages: watch::Receiver<Message>) -> (watch::Receiver<Message>, Message) {
    let message = match messages.changed().await {
        Ok(()) => messages.borrow_and_update().clone(),
        Err(_) => Message::End,
    };
    (messages, message)
}

impl Body for Viewing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.viewer.is_lost() {
            return Poll::Ready(None);
        }
        self.viewer.takes();
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        loop {
            let (messages, message) = std::task::ready!(self.next.as_mut().poll(cx));
            self.next = Box::pin(next(messages));
            match message {
                Message::Nothing => {}
                Message::End => return Poll::Ready(None),
                Message::Tick {
                    epoch,
                    snapshot,
                    tick,
                } => {
                    if std::mem::replace(&mut self.epoch, epoch) == epoch {
                        return Poll::Ready(Some(Ok(Frame::data(tick))));
                    }
                    self.first = Some(tick);
                    return Poll::Ready(Some(Ok(Frame::data(snapshot))));
                }
            }
        }
    }
}

#[cfg(test)]
mod silent;
#[cfg(test)]
mod tests;
