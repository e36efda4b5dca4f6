//! What the watcher looks at.

use std::{sync::Arc, time::Duration};

use palisade::{
    balance::{EjectionReason, EndpointState, Finding},
    circuit_breaker::CircuitState,
    sla::{AlertKind, Burn},
    time,
};

use crate::{
    app::App,
    backends::root,
    dashboard::newest,
    store::{Store, Writing},
};

/// The gateway at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) usable: bool,
    /// So few backends are well that those that are out are asked as well.
    pub(crate) panics: bool,
    pub(crate) draining: bool,
    pub(crate) endpoints: Vec<EndpointView>,
    pub(crate) rules: Vec<RuleView>,
    /// Whether the store answers, and what it said last; `None` without one.
    pub(crate) store: Option<(bool, Option<Arc<str>>)>,
    /// The request log; `None` without one.
    pub(crate) log: Option<Writing>,
    pub(crate) burns: Vec<BurnView>,
}

#[derive(Clone, Debug)]
pub(crate) struct EndpointView {
    pub(crate) name: Arc<str>,
    pub(crate) state: EndpointState,
    pub(crate) circuit: Option<CircuitView>,
    /// Why the set has taken it out.
    pub(crate) reason: Option<EjectionReason>,
    /// Why its last health check has failed.
    pub(crate) check: Option<Arc<str>>,
    pub(crate) retry_in: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct CircuitView {
    pub(crate) state: CircuitState,
    pub(crate) forced: bool,
    pub(crate) opened: u64,
    pub(crate) in_a_row: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct RuleView {
    pub(crate) name: Arc<str>,
    /// Since the start.
    pub(crate) refused: u64,
}

/// One kind of alert on one objective.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BurnView {
    pub(crate) rule: &'static str,
    pub(crate) kind: AlertKind,
    /// Over the longer window of the fastest one that fires.
    pub(crate) firing: Option<Rate>,
    /// The share of the error budget.
    pub(crate) left: f64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) rate: f64,
    pub(crate) over: Duration,
}

impl View {
    pub(crate) fn of(app: &App) -> Self {
        let limits = &app.stack.limits;
        Self {
            usable: app.backends.usable(),
            panics: app
                .backends
                .tries_those_out(&app.backends.endpoints.snapshot()),
            draining: app.is_draining(),
            endpoints: endpoints(app),
            rules: limits.refusals().collect(),
            store: limits.store_state().map(|it| (it.up, it.last_error)),
            log: app.store.as_ref().map(Store::writing),
            burns: burns(&app.stack.sla.burn(time::now())),
        }
    }
}

fn endpoints(app: &App) -> Vec<EndpointView> {
    let set = &app.backends.endpoints;
    // One of that name that leaves may still be there beside its successor.
    let views = newest(set.snapshot()).into_iter().map(|endpoint| {
        let circuit = set.with_gate(&endpoint.name, |(breaker, _)| breaker.handle().snapshot());
        let check = endpoint.last_check.and_then(|it| match it.finding {
            Finding::Failed(why) => Some(root(&why).into()),
            Finding::Passed => None,
        });
        EndpointView {
            name: endpoint.name,
            state: endpoint.state,
            circuit: circuit.map(|it| CircuitView {
                state: it.state,
                forced: it.forced,
                opened: it.opened_total,
                in_a_row: it.in_a_row,
            }),
            reason: endpoint.ejected.map(|it| it.reason),
            check,
            retry_in: endpoint.retry_in,
        }
    });
    views.collect()
}

fn burns(burn: &Burn) -> Vec<BurnView> {
    let budgets = burn.error_budgets();
    let views = budgets.flat_map(|(rule, budget)| {
        [AlertKind::Page, AlertKind::Ticket].map(|kind| {
            let mut alerts = budget.alerts.iter();
            let firing = alerts.find(|alert| alert.kind == kind && alert.firing);
            BurnView {
                rule,
                kind,
                firing: firing.map(|alert| Rate {
                    rate: alert.long.burn_rate,
                    over: Duration::from_secs_f64(alert.long.window_seconds),
                }),
                left: budget.error_budget_left,
            }
        })
    });
    views.collect()
}
