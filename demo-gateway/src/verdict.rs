//! Whether all is well, in one word and one sentence: `/status`, the dashboard and the log say the same.

use std::{
    fmt::Write,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use palisade::{
    balance::{EndpointState, Snapshot},
    sla::{AlertKind, Burn},
    time::wall_clock,
};
use serde::{Serialize, Serializer};

use crate::{
    backends::{Backends, note},
    clock::unix_ms,
};

/// Causes that are told one by one.
const CAUSES: usize = 3;

/// The longest sentence, in characters.
const SENTENCE: usize = 160;

/// How it is as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Healthy,
    /// Nothing was asked yet.
    Idle,
    /// Something is out, and callers are served.
    Degraded,
    /// An alert pages.
    Failing,
    /// No backend can be asked.
    Down,
    /// It is about to stop.
    Draining,
}

/// Whether all is well, since when, and why not.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) state: State,
    #[serde(rename = "since_ms", serialize_with = "as_ms")]
    pub(crate) since: SystemTime,
    /// One sentence or two.
    pub(crate) text: String,
    pub(crate) causes: Vec<Cause>,
}

fn as_ms<S: Serializer>(date: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(unix_ms(*date))
}

/// What is the matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cause {
    pub(crate) area: Area,
    pub(crate) severity: Severity,
    pub(crate) subject: String,
    #[serde(skip)]
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Area {
    Endpoints,
    Objectives,
}

/// The worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    Bad,
    Warn,
}

/// What a verdict is made of.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) backends: &'a Backends,
    pub(crate) endpoints: &'a [Snapshot],
    pub(crate) burn: &'a Burn,
    pub(crate) draining: bool,
    /// Requests that have ended since the start.
    pub(crate) ended: u64,
    pub(crate) in_flight: u64,
}

/// Remembers since when it has been so.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    last: Mutex<Option<(State, SystemTime)>>,
}

impl Judge {
    pub(crate) fn judge(&self, facts: &Facts<'_>) -> Verdict {
        let causes = causes(facts);
        let state = state(facts, &causes);
        let text = text(facts, state, &causes);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *last {
            Some((known, since)) if known == state => since,
            _ => wall_clock(),
        };
        let known = last.replace((state, since)).map(|(known, _)| known);
        drop(last);
        match known {
            Some(known) if known != state => tell(state, &text),
            _ => {}
        }
        let mut causes = causes;
        causes.truncate(CAUSES);
        Verdict {
            state,
            since,
            text,
            causes,
        }
    }
}

/// Logs that it is otherwise now.
fn tell(state: State, text: &str) {
    match state {
        State::Degraded | State::Failing | State::Down => tracing::warn!(?state, "{text}"),
        State::Healthy | State::Idle | State::Draining => tracing::info!(?state, "{text}"),
    }
}

fn serves(endpoint: &Snapshot) -> bool {
    matches!(
        endpoint.state,
        EndpointState::Serving | EndpointState::SlowStart
    )
}

fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    let alerts = facts.burn.error_budgets().filter_map(|(name, budget)| {
        let alert = budget.alerts.iter().find(|alert| alert.firing)?;
        let title = title(name);
        Some(Cause {
            area: Area::Objectives,
            severity: match alert.kind {
                AlertKind::Page => Severity::Bad,
                AlertKind::Ticket => Severity::Warn,
            },
            subject: name.into(),
            text: format!(
                "{title} burns {:.1}× its error budget",
                alert.long.burn_rate
            ),
        })
    });
    let out = facts.endpoints.iter().filter(|endpoint| {
        // Who drains one wants it so.
        !serves(endpoint) && endpoint.state != EndpointState::Draining
    });
    let out = out.map(|endpoint| {
        let circuit = facts.backends.circuit(&endpoint.name);
        let word = match endpoint.state {
            EndpointState::Probing => "being tried",
            EndpointState::Unhealthy => "unhealthy",
            _ => "ejected",
        };
        let why = note(endpoint, circuit.as_ref()).unwrap_or_default();
        Cause {
            area: Area::Endpoints,
            severity: Severity::Bad,
            subject: endpoint.name.to_string(),
            text: format!("{} is {word} ({why})", endpoint.name),
        }
    });
    let mut causes: Vec<Cause> = alerts.chain(out).collect();
    causes.sort_by_key(|cause| cause.severity);
    causes
}

/// As people call an objective.
pub(crate) fn title(objective: &str) -> &'static str {
    match objective {
        "latency" => "Latency",
        _ => "Availability",
    }
}

fn state(facts: &Facts<'_>, causes: &[Cause]) -> State {
    let pages = |cause: &Cause| cause.area == Area::Objectives && cause.severity == Severity::Bad;
    if facts.draining {
        State::Draining
    } else if !facts.backends.asks_any(facts.endpoints) {
        State::Down
    } else if causes.iter().any(pages) {
        State::Failing
    } else if !causes.is_empty() {
        State::Degraded
    } else if facts.ended == 0 {
        State::Idle
    } else {
        State::Healthy
    }
}

fn text(facts: &Facts<'_>, state: State, causes: &[Cause]) -> String {
    let serving = facts.endpoints.iter().filter(|it| serves(it)).count();
    let all = match (serving, facts.endpoints.len()) {
        (1, 1) => "The one endpoint is serving".to_owned(),
        (serving, all) if serving == all => format!("All {all} endpoints are serving"),
        (serving, all) => format!("{serving} of {all} endpoints are serving, as asked for"),
    };
    match state {
        State::Draining => format!(
            "The gateway stops: {} requests in flight may end, and no more are taken.",
            facts.in_flight
        ),
        State::Down if facts.endpoints.is_empty() => {
            "There is no endpoint. Callers get 503.".into()
        }
        State::Idle => format!("{all}. No request has come yet."),
        State::Healthy => {
            let budgets = facts.burn.error_budgets().count();
            let within = match budgets {
                1 => "the objective is",
                _ => "all objectives are",
            };
            format!("{all}, and {within} within their error budget.")
                .replace("objective is within their", "objective is within its")
        }
        State::Down | State::Failing | State::Degraded => {
            let end = match (state, serving) {
                (State::Down, _) => "No endpoint can take a request: callers get 503.".into(),
                _ if !causes.iter().any(|it| it.area == Area::Endpoints) => String::new(),
                _ if facts.backends.tries_those_out(facts.endpoints) => {
                    "Too few serve: those that are out are asked as well.".into()
                }
                (_, 0) => "What is left is tried all the same.".into(),
                (_, 1) => "Traffic goes to the one that serves.".into(),
                (_, many) => format!("Traffic goes to the {many} that serve."),
            };
            told(causes, &end)
        }
    }
}

/// As many causes as fit before this end, worst first, and how many more there are.
fn told(causes: &[Cause], end: &str) -> String {
    let room = SENTENCE - end.chars().count() - " and 99 more. ".len();
    let (mut text, mut used) = (String::new(), 0);
    for cause in causes.iter().take(CAUSES) {
        let join = if used == 0 { "" } else { "; " };
        let cut = match used {
            // The first is told whatever it takes.
            0 => cause.text.chars().take(room).collect(),
            _ if text.chars().count() + cause.text.chars().count() + 2 > room => break,
            _ => cause.text.clone(),
        };
        text.push_str(join);
        text.push_str(&cut);
        used += 1;
    }
    let more = causes.len() - used;
    if more > 0 {
        // Writing to a string does not fail.
        let _written = write!(text, " and {more} more");
    }
    if !text.is_empty() {
        text.push_str(". ");
    }
    text.push_str(end);
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests;
