//! What the parts of the gateway say of themselves at one moment.

use std::{collections::HashMap, sync::Arc, time::Duration};

use palisade::{
    balance::{EndpointState, Snapshot},
    circuit_breaker::CircuitState,
    sla::Burn,
    time,
};

use super::{
    state::State,
    wire::{Alert, Fixed, Limit, Moving, Num, Objective, Own, Slo, sentence},
};
use crate::{
    app::App,
    backends::note,
    config::Unit,
    store::Store,
    verdict::{self, Facts, Verdict},
};

/// Endpoints that are told one by one; of more, those that serve are left out.
const ENDPOINTS: usize = 64;

/// Limits that are told.
const LIMITS: usize = 4;

/// What the parts of the gateway say of themselves at one moment.
#[derive(Debug)]
pub(super) struct Now {
    pub(super) fixed: Fixture,
    pub(super) verdict: Verdict,
    pub(super) own: Own,
    pub(super) strategy: &'static str,
    pub(super) endpoints: Vec<Moving>,
    pub(super) endpoints_more: usize,
    pub(super) limits: Vec<Limit>,
    pub(super) slo: Vec<Slo>,
    pub(super) rules: usize,
}

/// What only a snapshot tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fixture {
    pub(super) endpoints: Vec<Fixed>,
    pub(super) objectives: Vec<Objective>,
    pub(super) alerts: Vec<Alert>,
}

/// Whether all is well, and what that was told by.
#[derive(Debug)]
pub(super) struct Judged {
    endpoints: Vec<Snapshot>,
    burn: Burn,
    in_flight: u64,
    verdict: Verdict,
}

impl Judged {
    /// Asked each second, so that it is known since when it has been so.
    pub(super) fn judge(app: &App, endpoints: Vec<Snapshot>, ended: u64) -> Self {
        let burn = app.stack.sla.burn(time::now());
        let in_flight = app.stack.sla.in_flight();
        let verdict = app.verdict.judge(&Facts {
            backends: &app.backends,
            endpoints: &endpoints,
            burn: &burn,
            draining: app.is_draining(),
            ended,
            in_flight,
        });
        Self {
            endpoints,
            burn,
            in_flight,
            verdict,
        }
    }
}

impl Now {
    pub(super) fn gather(app: &App, state: &State, judged: Judged) -> Self {
        let Judged {
            endpoints,
            burn,
            in_flight,
            verdict,
        } = judged;
        let (shown, endpoints_more) = shown(endpoints);
        Self {
            fixed: Fixture {
                endpoints: shown.iter().map(|endpoint| fixed(app, endpoint)).collect(),
                objectives: objectives(&burn),
                alerts: alerts(&burn),
            },
            verdict,
            own: Own {
                in_flight,
                queued: app.stack.limits.waiting(),
                overhead_us: state.overhead(),
                attempts_per_request: state.attempts().map(|each| Num::new(each, 2)),
                retries_left: app.stack.budget.left(),
                log_dropped: app.store.as_ref().map(Store::dropped),
            },
            strategy: app.backends.endpoints.strategy().name(),
            endpoints: moving(app, state, &shown),
            endpoints_more,
            limits: limits(app, state),
            slo: slo(&burn),
            rules: app.stack.limits.count(),
        }
    }
}

/// Of each name the newest: one of that name may still be leaving.
pub(crate) fn newest(endpoints: Vec<Snapshot>) -> Vec<Snapshot> {
    let mut newest: Vec<Snapshot> = Vec::with_capacity(endpoints.len());
    let mut places = HashMap::new();
    for endpoint in endpoints {
        match places.get(&endpoint.name) {
            Some(place) => newest[*place] = endpoint,
            None => {
                places.insert(endpoint.name.clone(), newest.len());
                newest.push(endpoint);
            }
        }
    }
    newest
}

/// As many as are told, in their order, and how many more there are.
fn shown(mut endpoints: Vec<Snapshot>) -> (Vec<Snapshot>, usize) {
    let mut more = endpoints.len().saturating_sub(ENDPOINTS);
    let all = more;
    let mut place = endpoints.len();
    while more > 0 && place > 0 {
        place -= 1;
        if endpoints[place].state == EndpointState::Serving {
            endpoints.remove(place);
            more -= 1;
        }
    }
    endpoints.truncate(ENDPOINTS);
    (endpoints, all)
}

fn fixed(app: &App, endpoint: &Snapshot) -> Fixed {
    Fixed {
        id: endpoint.name.clone(),
        url: app.backends.url(&endpoint.name),
        zone: endpoint.zone.clone(),
        max_in_flight: endpoint.max_in_flight,
    }
}

fn moving(app: &App, state: &State, endpoints: &[Snapshot]) -> Vec<Moving> {
    let all = state.all_attempts();
    let moving = endpoints.iter().map(|endpoint| {
        let circuit = app.backends.circuit(&endpoint.name);
        let (attempts, failures) = state.attempts_of(&endpoint.name);
        let times = state.times_of(&endpoint.name);
        let waits = circuit.as_ref().and_then(|it| it.next_probe_in);
        let waits = endpoint.retry_in.or(waits).filter(|left| !left.is_zero());
        let note = note(endpoint, circuit.as_ref());
        Moving {
            id: endpoint.name.clone(),
            state: endpoint.state.name(),
            breaker: circuit.as_ref().map(|it| match it.state {
                CircuitState::Closed => "closed",
                CircuitState::Open => "open",
                _ => "half_open",
            }),
            forced: circuit.as_ref().is_some_and(|it| it.forced),
            retry_in_ms: waits.map(ms),
            in_flight: endpoint.in_flight,
            share: Num::new(ratio(attempts, all).unwrap_or(0.0), 3),
            rps: Num::new(attempts as f64 / state.covered(), 1),
            p50_ms: times.quantile(0.5).map(shown_ms),
            p95_ms: times.quantile(0.95).map(shown_ms),
            error_ratio: ratio(failures, attempts).map(|share| Num::new(share, 3)),
            weight: Num::new(endpoint.weight, 3),
            note: note.map(|note| sentence(&note).chars().take(80).collect()),
        }
    });
    moving.collect()
}

/// Milliseconds as somebody reads them: digits that the bins cannot tell are left out.
pub(super) fn shown_ms(ms: f64) -> Num {
    Num::new(ms, if ms < 10.0 { 1 } else { 0 })
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part.min(whole) as f64 / whole as f64)
}

fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// Those nearest to a limit, first those over it.
fn limits(app: &App, state: &State) -> Vec<Limit> {
    let limits = &app.stack.limits;
    if limits.count() == 0 {
        return Vec::new();
    }
    let mut refused: HashMap<(Arc<str>, String), u64> = HashMap::new();
    for it in state.refused() {
        let who = limits.identifier(&it.rule, &it.who.caller, it.who.model.as_ref());
        if let Some(who) = who {
            *refused.entry((it.rule.clone(), who)).or_default() += u64::from(it.who.count);
        }
    }
    let mut found: HashMap<(Arc<str>, String), Limit> = HashMap::new();
    for seen in state.watched() {
        for it in limits.standings(&seen.caller, seen.model.as_ref()) {
            let key = (it.rule.clone(), it.identifier.clone());
            let refused = refused.get(&key).copied().unwrap_or(0);
            if it.used == 0.0 && refused == 0 {
                continue;
            }
            found.entry(key).or_insert_with(|| Limit {
                rule: it.rule,
                key: it.identifier,
                used: Num::new(it.used, 4),
                limit: Num::new(it.holds, 4),
                unit: (it.unit != Unit::Requests).then_some(it.unit),
                window_ms: it.window.map(ms),
                rejected: Num::new(refused as f64 / state.covered(), 1),
            });
        }
    }
    let mut nearest: Vec<Limit> = found.into_values().collect();
    let share = |limit: &Limit| limit.used.get() / limit.limit.get().max(1e-9);
    nearest.sort_by(|a, b| {
        let (a_over, b_over) = (a.rejected.get(), b.rejected.get());
        let by_share = || share(b).total_cmp(&share(a));
        let by_name = || (&a.rule, &a.key).cmp(&(&b.rule, &b.key));
        (b_over.total_cmp(&a_over))
            .then_with(by_share)
            .then_with(by_name)
    });
    nearest.truncate(LIMITS);
    nearest
}

fn objectives(burn: &Burn) -> Vec<Objective> {
    let objectives = burn.error_budgets().map(|(id, budget)| {
        let share = Num::new(budget.target * 100.0, 4).get();
        let within = budget.limit_seconds.map(|limit| match limit < 1.0 {
            true => format!("{} ms", Num::new(limit * 1e3, 1).get()),
            false => format!("{} s", Num::new(limit, 2).get()),
        });
        Objective {
            id,
            title: verdict::title(id),
            text: match within {
                Some(within) => format!("{share} % begin to answer within {within}"),
                None => format!("{share} % of requests succeed"),
            },
            period_s: Num::new(burn.period_seconds, 1),
            target_ms: budget.limit_seconds.map(|limit| Num::new(limit * 1e3, 1)),
        }
    });
    objectives.collect()
}

fn alerts(burn: &Burn) -> Vec<Alert> {
    let alerts = burn.availability.alerts.iter().map(|alert| Alert {
        kind: alert.kind,
        above: Num::new(alert.above, 1),
        long_s: Num::new(alert.long.window_seconds, 1),
        short_s: Num::new(alert.short.window_seconds, 1),
    });
    alerts.collect()
}

fn slo(burn: &Burn) -> Vec<Slo> {
    let rate = |rate: f64| Num::new(rate, 1);
    let slo = burn.error_budgets().map(|(id, budget)| Slo {
        id,
        budget_left: Num::new(budget.error_budget_left, 4),
        burn: budget
            .alerts
            .map(|it| [rate(it.long.burn_rate), rate(it.short.burn_rate)]),
        firing: budget.alerts.map(|it| it.firing),
    });
    slo.collect()
}
