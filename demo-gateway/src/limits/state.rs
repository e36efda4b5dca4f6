//! What is shown of rules.

use std::time::Duration;

use palisade::{
    rate_limit::{CostExceedsQuota, RateLimited, RuleSnapshot, State, StoreState},
    time::wall_clock,
};
use serde::Serialize;

use crate::{
    clock::rfc3339,
    config::{self, Amount, Identifier as Counts, LimitStrategy, Mode, OnStoreError, Unit},
};

/// Who has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// This process alone.
    Local,
    /// All that share the store.
    Redis,
}

/// What is said of a store that cannot be asked.
pub(crate) const DOWN: &str = "down";

/// How an identifier stands with a rule.
#[derive(Debug, Serialize)]
pub(crate) struct RuleState {
    /// Whether the rule counts by identifiers of this kind.
    applies: bool,
    allowed: bool,
    strategy: &'static str,
    unit: Unit,
    mode: Mode,
    limit: Amount,
    /// `in_flight` has none.
    window_seconds: Option<f64>,
    remaining: Amount,
    reset_after_seconds: f64,
    retry_after_seconds: f64,
    source: Source,
    /// Said when it cannot be asked, so that this is what this process knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<&'static str>,
    /// As the layer counts.
    #[serde(skip)]
    used: u64,
}

impl RuleState {
    pub(super) fn new(
        rule: &config::Rule,
        state: &State,
        applies: bool,
        source: Source,
        is_down: bool,
    ) -> Self {
        Self {
            applies,
            allowed: state.remaining > 0,
            strategy: state.strategy.name(),
            unit: rule.unit,
            mode: rule.mode,
            limit: Amount::of(state.limit, rule.unit),
            window_seconds: window(rule, state.window),
            remaining: Amount::of(state.remaining, rule.unit),
            reset_after_seconds: state.reset_after.as_secs_f64(),
            retry_after_seconds: state.retry_after.as_secs_f64(),
            source,
            store: is_down.then_some(DOWN),
            used: state.holds.saturating_sub(state.remaining),
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }
}

fn window(rule: &config::Rule, window: Duration) -> Option<f64> {
    let has_one = rule.strategy != LimitStrategy::InFlight;
    has_one.then_some(window.as_secs_f64())
}

/// What all rules hold and have done.
#[derive(Debug, Serialize)]
pub(crate) struct Totals<'a> {
    rules: Vec<RuleTotals<'a>>,
    /// Requests that wait for their rate.
    waiting: usize,
    store: Option<StoreTotals>,
}

impl<'a> Totals<'a> {
    pub(super) fn new(
        rules: impl Iterator<Item = (&'a config::Rule, RuleSnapshot, Source)>,
        waiting: usize,
        store: Option<StoreState>,
    ) -> Self {
        let is_down = store.as_ref().is_some_and(|store| !store.up);
        let rules = rules.map(|(rule, held, source)| RuleTotals::new(rule, &held, source, is_down));
        Self {
            rules: rules.collect(),
            waiting,
            store: store.map(|store| StoreTotals::new(&store)),
        }
    }
}

/// What a rule holds and has done.
#[derive(Debug, Serialize)]
struct RuleTotals<'a> {
    rule: &'a str,
    identifier: Counts,
    strategy: &'static str,
    unit: Unit,
    mode: Mode,
    /// As it is now: an adaptive one moves.
    limit: Amount,
    window_seconds: Option<f64>,
    keys: usize,
    admitted: u64,
    refused: u64,
    /// What it would have refused, were it not in shadow mode.
    shadowed: u64,
    /// Who counts now.
    source: Source,
    /// What it does without the store, if it is counted there.
    #[serde(skip_serializing_if = "Option::is_none")]
    on_store_error: Option<OnStoreError>,
    /// Whether that is what it does now.
    fallback: bool,
}

impl<'a> RuleTotals<'a> {
    fn new(rule: &'a config::Rule, held: &RuleSnapshot, source: Source, is_down: bool) -> Self {
        let is_shared = source == Source::Redis;
        let fallback = is_shared && is_down;
        Self {
            rule: &rule.name,
            identifier: rule.identifier,
            strategy: rule.strategy.name(),
            unit: rule.unit,
            mode: rule.mode,
            limit: Amount::of(held.quota.limit(), rule.unit),
            window_seconds: window(rule, held.quota.window()),
            keys: held.keys,
            admitted: held.admitted,
            refused: held.refused,
            shadowed: held.shadowed,
            source: if fallback { Source::Local } else { source },
            on_store_error: is_shared.then_some(rule.on_store_error),
            fallback,
        }
    }
}

/// How the store does.
#[derive(Debug, Serialize)]
struct StoreTotals {
    kind: Source,
    up: bool,
    /// Since when it has been so.
    since: String,
    /// Gateways that share it, as last heard.
    replicas: u64,
    checks: u64,
    errors: u64,
    timeouts: u64,
    maybe_charged: u64,
    trips: u64,
    jobs_lost: u64,
}

impl StoreTotals {
    fn new(state: &StoreState) -> Self {
        Self {
            kind: Source::Redis,
            up: state.up,
            since: rfc3339(wall_clock() - state.since),
            replicas: state.replicas,
            checks: state.checks,
            errors: state.errors,
            timeouts: state.timeouts,
            maybe_charged: state.maybe_charged,
            trips: state.trips,
            jobs_lost: state.jobs_lost,
        }
    }
}

/// What a refusal says about the rule that it names, as members of the answer.
#[derive(Debug, Serialize)]
pub(crate) struct Refusal {
    rule: String,
    #[serde(flatten)]
    numbers: Option<Numbers>,
    /// When the same request passes, if no other comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

#[derive(Debug, Serialize)]
struct Numbers {
    unit: Unit,
    /// How much there is in a window.
    limit: Amount,
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<Amount>,
    /// What the request would have taken.
    cost: Amount,
}

impl Refusal {
    pub(super) fn limited(error: &RateLimited, unit: Unit) -> Self {
        Self {
            rule: error.rule.to_string(),
            numbers: Some(Numbers {
                unit,
                limit: Amount::of(error.limit, unit),
                remaining: Some(Amount::of(error.remaining, unit)),
                cost: Amount::of(error.cost, unit),
            }),
            until: Some(after(error.retry_after)),
        }
    }

    /// There is no time at which it passes.
    pub(super) fn too_dear(error: &CostExceedsQuota, unit: Unit) -> Self {
        Self {
            rule: error.rule.to_string(),
            numbers: Some(Numbers {
                unit,
                limit: Amount::of(error.holds, unit),
                remaining: None,
                cost: Amount::of(error.cost, unit),
            }),
            until: None,
        }
    }

    /// Nobody could be asked for the numbers.
    pub(super) fn unknown(rule: &str, delay: Option<Duration>) -> Self {
        Self {
            rule: rule.into(),
            numbers: None,
            until: delay.map(after),
        }
    }
}

/// The date so far from now, to the next millisecond: then, and not before, it has passed.
fn after(delay: Duration) -> String {
    let date = wall_clock().checked_add(delay);
    let date = date.and_then(|date| date.checked_add(Duration::from_nanos(999_999)));
    rfc3339(date.unwrap_or_else(wall_clock))
}
