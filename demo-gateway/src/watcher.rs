//! Looks at the gateway once a second, and tells what has changed: the log, the dashboard, and a webhook.

mod endpoint;
mod view;

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use palisade::{sla::AlertKind, time::wall_clock};
use tokio::time::{Instant, MissedTickBehavior, interval};

pub(crate) use self::view::RuleView;
use self::{
    endpoint::Condition,
    view::{BurnView, View},
};
pub(crate) use crate::config::NotifyKind as Kind;
use crate::{
    alerts::Notifier,
    app::App,
    changes::{Changes, Severity},
    store::{SUBJECT, Writing},
};

/// What picks backends is called.
const BALANCER: &str = "balancer";

/// What the store of the limits is called.
const REDIS: &str = "redis";

const EVERY: Duration = Duration::from_secs(1);

/// A rule that has refused nothing for so long is no longer said to refuse.
const QUIET: Duration = Duration::from_secs(30);

/// How many sentences one look may tell; what is beyond is summed up.
const SENTENCES: usize = 8;

/// How an event stands to what was told before of the same subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Something is wrong, or wrong in another way.
    Firing,
    /// It is right again.
    Resolved,
    /// Nothing was wrong, nor is.
    Told,
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
            Self::Told => "told",
        }
    }
}

/// Something has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) at: SystemTime,
    pub(crate) kind: Kind,
    pub(crate) state: State,
    pub(crate) severity: Severity,
    pub(crate) subject: Arc<str>,
    pub(crate) text: String,
}

impl Event {
    fn new(
        kind: Kind,
        state: State,
        severity: Severity,
        subject: impl Into<Arc<str>>,
        text: impl Into<String>,
    ) -> Self {
        Self {
            at: wall_clock(),
            kind,
            state,
            severity,
            subject: subject.into(),
            text: text.into(),
        }
    }
}

/// Tells what changes for as long as the gateway is there and this is polled.
///
/// Dropped at any point it has told of a look either nothing or all.
pub(crate) async fn watch(app: Weak<App>, mut notifier: Option<Notifier>) {
    let mut watcher = Watcher::default();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        let Some(app) = app.upgrade() else {
            return;
        };
        let events = watcher.look(View::of(&app), now);
        if let Some(notifier) = &mut notifier {
            events.iter().for_each(|event| notifier.notify(event));
        }
        tell(&app.changes, events);
    }
}

/// Tells the worst ones in a sentence each, in their order, and sums up the rest.
fn tell(changes: &Changes, events: Vec<Event>) {
    let room = match events.len() {
        ..=SENTENCES => SENTENCES,
        _ => SENTENCES - 1,
    };
    let mut worst: Vec<_> = (0..events.len()).collect();
    worst.sort_by_key(|at| Reverse(events[*at].severity));
    worst.truncate(room);
    let mut rest = BTreeMap::<_, usize>::new();
    for (at, event) in events.into_iter().enumerate() {
        let Event {
            severity,
            subject,
            text,
            ..
        } = event;
        if !worst.contains(&at) {
            *rest.entry(severity).or_default() += 1;
            continue;
        }
        // Of the store of the limits its own chore logs.
        if (event.kind, &*subject) != (Kind::Store, REDIS) {
            log(severity, &text);
        }
        changes.tell(severity, subject, text);
    }
    let Some(worst) = rest.keys().next_back().copied() else {
        return;
    };
    let counts = rest.iter().rev();
    let counts: Vec<_> = counts
        .map(|(severity, many)| format!("{many} {}", severity.name()))
        .collect();
    let many: usize = rest.values().sum();
    let text = format!("and {many} more changes: {}", counts.join(", "));
    log(worst, &text);
    changes.tell(worst, "gateway", text);
}

fn log(severity: Severity, text: &str) {
    match severity {
        Severity::Bad | Severity::Warn => tracing::warn!("{text}"),
        Severity::Ok | Severity::Info => tracing::info!("{text}"),
    }
}

/// Compares what it sees with what it has seen last. What is wrong at first sight is told, what is right is not.
#[derive(Debug, Default)]
pub(crate) struct Watcher {
    looked: bool,
    endpoints: BTreeMap<Arc<str>, Condition>,
    refusing: BTreeMap<Arc<str>, Refusing>,
    store_down: bool,
    log: Log,
    burning: BTreeMap<(&'static str, AlertKind), Arc<str>>,
    unusable: bool,
    panics: bool,
    draining: bool,
}

/// What was told last of the request log.
#[derive(Debug, Default)]
struct Log {
    trouble: Option<Trouble>,
    /// Rows that were lost up to the last look, and up to when all was well.
    lost: u64,
    told: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// Rows wait.
    Down,
    /// And there is no room for more.
    Full,
}

/// What a rule has refused.
#[derive(Debug, Default)]
struct Refusing {
    total: u64,
    /// When it was seen last to have refused something, and what its total was before it began.
    since: Option<(Instant, u64)>,
}

impl Watcher {
    pub(crate) fn look(&mut self, view: View, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        self.service(&view, &mut events);
        self.endpoints(&view, &mut events);
        for burn in &view.burns {
            self.burn(burn, &mut events);
        }
        // Nobody is told twice that a promise of nobody is kept.
        self.burning
            .retain(|(rule, _), _| view.burns.iter().any(|burn| burn.rule == *rule));
        for rule in view.rules {
            self.rule(rule, now, &mut events);
        }
        if let Some((up, last_error)) = view.store {
            self.store(up, last_error, &mut events);
        }
        if let Some(writing) = view.log {
            self.log(writing, &mut events);
        }
        self.looked = true;
        events
    }

    fn service(&mut self, view: &View, events: &mut Vec<Event>) {
        if view.draining && !self.draining {
            let text = "the gateway drains: it takes no more requests and finishes what it has";
            let event = Event::new(Kind::Service, State::Told, Severity::Info, "gateway", text);
            events.push(event);
        }
        self.draining = view.draining;
        // Refusing all of them is another matter, told below.
        let panics = view.panics && view.usable;
        if panics != self.panics {
            self.panics = panics;
            events.push(if panics {
                let text = "fewer than half of the backends are well: those that are out get requests as well";
                Event::new(Kind::Service, State::Firing, Severity::Bad, BALANCER, text)
            } else {
                let text = match view.usable {
                    true => "those that are out get no more requests: half of the backends are well",
                    false => "those that are out get no more requests: all are refused",
                };
                Event::new(Kind::Service, State::Resolved, Severity::Ok, BALANCER, text)
            });
        }
        if view.usable != self.unusable {
            return;
        }
        self.unusable = !view.usable;
        events.push(if view.usable {
            let text = "there is a backend again that requests can go to";
            Event::new(
                Kind::Service,
                State::Resolved,
                Severity::Ok,
                "gateway",
                text,
            )
        } else {
            let text = match view.endpoints.len() {
                0 => "there is no backend: all requests are refused".to_owned(),
                1 => "the only backend is out: all requests are refused".to_owned(),
                many => format!("all {many} backends are out: all requests are refused"),
            };
            Event::new(Kind::Service, State::Firing, Severity::Bad, "gateway", text)
        });
    }

    fn endpoints(&mut self, view: &View, events: &mut Vec<Event>) {
        let mut before = std::mem::take(&mut self.endpoints);
        for endpoint in &view.endpoints {
            let name = &endpoint.name;
            let condition = Condition::of(endpoint);
            let known = before.remove(name);
            if known.is_none() && self.looked {
                let text = format!("{name} is new: it gets requests");
                events.push(told(name, Severity::Info, text));
            }
            let known = known.unwrap_or_default();
            events.extend(known.change(&condition, endpoint));
            self.endpoints.insert(name.clone(), condition);
        }
        for (name, condition) in before {
            let text = format!("{name} was removed");
            events.push(match condition.is_wrong() {
                true => Event::new(Kind::Endpoint, State::Resolved, Severity::Info, name, text),
                false => told(&name, Severity::Info, text),
            });
        }
    }

    fn burn(&mut self, burn: &BurnView, events: &mut Vec<Event>) {
        let BurnView {
            rule,
            kind,
            firing,
            left,
        } = *burn;
        let was = self.burning.get(&(rule, kind)).cloned();
        let word = match kind {
            AlertKind::Page => "page",
            AlertKind::Ticket => "ticket",
        };
        let left = left * 100.0;
        match (was, firing) {
            (None, Some(rate)) => {
                let subject: Arc<str> = format!("{rule} {word}").into();
                self.burning.insert((rule, kind), subject.clone());
                let severity = match kind {
                    AlertKind::Page => Severity::Bad,
                    AlertKind::Ticket => Severity::Warn,
                };
                let text = format!(
                    "{word}: the error budget of {rule} is spent {:.1} times as fast as it is earned over the last {}; {left:.0} % of it is left",
                    rate.rate,
                    span(rate.over)
                );
                events.push(Event::new(
                    Kind::Burn,
                    State::Firing,
                    severity,
                    subject,
                    text,
                ));
            }
            (Some(subject), None) => {
                self.burning.remove(&(rule, kind));
                let text = format!(
                    "{word} is over: the error budget of {rule} is no longer spent too fast; {left:.0} % of it is left"
                );
                let event = Event::new(Kind::Burn, State::Resolved, Severity::Ok, subject, text);
                events.push(event);
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    fn rule(&mut self, rule: RuleView, now: Instant, events: &mut Vec<Event>) {
        let RuleView { name, refused } = rule;
        let known = self.refusing.entry(name.clone()).or_default();
        let before = std::mem::replace(&mut known.total, refused);
        let event = match known.since {
            None if refused > before => {
                known.since = Some((now, before));
                let text = format!(
                    "rule {name} refuses requests: {} in the last second",
                    refused - before
                );
                Event::new(Kind::Limit, State::Firing, Severity::Warn, name, text)
            }
            Some((_, start)) if refused > before => {
                known.since = Some((now, start));
                return;
            }
            Some((last, start)) if now.saturating_duration_since(last) >= QUIET => {
                known.since = None;
                let many = refused.saturating_sub(start);
                let quiet = span(QUIET);
                let text =
                    format!("rule {name} has refused nothing for {quiet}, after {many} requests");
                Event::new(Kind::Limit, State::Resolved, Severity::Ok, name, text)
            }
            None | Some(_) => return,
        };
        events.push(event);
    }

    fn store(&mut self, up: bool, last_error: Option<Arc<str>>, events: &mut Vec<Event>) {
        if up != self.store_down {
            return;
        }
        self.store_down = !up;
        events.push(if up {
            let text = "redis answers again: limits are shared";
            Event::new(Kind::Store, State::Resolved, Severity::Ok, REDIS, text)
        } else {
            let last = last_error.as_deref().unwrap_or("it has not answered");
            let text = format!("redis does not answer ({last}): limits go on by `on_store_error`");
            Event::new(Kind::Store, State::Firing, Severity::Bad, REDIS, text)
        });
    }

    fn log(&mut self, writing: Writing, events: &mut Vec<Event>) {
        let Writing {
            up,
            is_full,
            lost,
            last_error,
        } = writing;
        // Also when there was room again before this look.
        let loses = lost > std::mem::replace(&mut self.log.lost, lost);
        let trouble = match up {
            _ if is_full || loses => Some(Trouble::Full),
            true => None,
            false => Some(Trouble::Down),
        };
        if std::mem::replace(&mut self.log.trouble, trouble) == trouble {
            return;
        }
        let error = last_error.as_deref().filter(|_| !up);
        let error = error.unwrap_or("it is too slow");
        let (state, severity, text) = match trouble {
            Some(Trouble::Full) => {
                let text = format!("request log: rows are dropped and counted: {error}");
                (State::Firing, Severity::Bad, text)
            }
            Some(Trouble::Down) => {
                let text = format!("request log cannot be written, rows wait: {error}");
                (State::Firing, Severity::Bad, text)
            }
            None => {
                let many = lost - std::mem::replace(&mut self.log.told, lost);
                let text = format!("request log is written again; {many} rows were dropped");
                (State::Resolved, Severity::Ok, text)
            }
        };
        events.push(Event::new(Kind::Store, state, severity, SUBJECT, text));
    }
}

fn told(subject: &Arc<str>, severity: Severity, text: String) -> Event {
    Event::new(Kind::Endpoint, State::Told, severity, subject.clone(), text)
}

/// A time as people say it.
fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        seconds if seconds < 10.0 => format!("{} s", (seconds * 10.0).round() / 10.0),
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.0} h", seconds / 3600.0),
        seconds => format!("{:.0} d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests;
