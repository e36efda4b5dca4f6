//! Error budgets, and how fast they are spent.

use std::{array, time::Duration};

use crate::{objective::Objective, ring::Ring};

/// What an error budget is for, unless told otherwise. The windows of the alerts scale with it.
pub(crate) const PERIOD: Duration = Duration::from_secs(30 * 24 * 3600);

/// Buckets of 10 s in a period of 30 days.
const FINE: u64 = 30 * 24 * 360;
/// Buckets of 5 min are 30 of them.
const MIDDLE: u64 = 30;
/// Buckets of 1 h are 360 of them.
const COARSE: u64 = 360;

/// With fewer requests in the long window no alert fires.
const ENOUGH: u64 = 50;
/// Nor in the first minute of traffic, which is six fine buckets.
const COLD: u64 = 6;

/// An alert ends when the short window has been below this share of its burn rate
const BELOW: f64 = 0.9;
/// all through this part of its length: with errors that hover at the burn rate, two requests a second, an alert that
/// ended as soon as the window is below began 43 times in six hours, and one that ends like this 19 times (`tests.rs`).
const HOLD: u64 = 5;

/// The Site Reliability Workbook, chapter 5, with 3 x over a day between its 6 x and 1 x.
const RULES: [Rule; 4] = [
    Rule {
        kind: AlertKind::Page,
        above: 14.4,
        long: Span::fine("1h", 360),
        short: Span::fine("5m", 30),
    },
    Rule {
        kind: AlertKind::Page,
        above: 6.0,
        long: Span::middle("6h", 72),
        short: Span::fine("30m", 180),
    },
    Rule {
        kind: AlertKind::Ticket,
        above: 3.0,
        long: Span::middle("1d", 288),
        short: Span::fine("2h", 720),
    },
    Rule {
        kind: AlertKind::Ticket,
        above: 1.0,
        long: Span::middle("3d", 864),
        short: Span::middle("6h", 72),
    },
];

#[derive(Clone, Copy, Debug)]
struct Rule {
    kind: AlertKind,
    above: f64,
    long: Span,
    short: Span,
}

/// A window and the buckets that it is made of.
#[derive(Clone, Copy, Debug)]
struct Span {
    name: &'static str,
    scale: Scale,
    buckets: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Fine,
    Middle,
}

impl Span {
    const fn fine(name: &'static str, buckets: u64) -> Self {
        Self {
            name,
            scale: Scale::Fine,
            buckets,
        }
    }

    const fn middle(name: &'static str, buckets: u64) -> Self {
        Self {
            name,
            scale: Scale::Middle,
            buckets,
        }
    }
}

/// Requests that an objective is about, and those among them that broke it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    events: u64,
    bad: u64,
}

impl Count {
    pub(crate) fn count(&mut self, bad: bool) {
        self.events += 1;
        self.bad += u64::from(bad);
    }

    fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.bad += other.bad;
    }

    fn take(&mut self, other: &Self) {
        self.events -= other.events;
        self.bad -= other.bad;
    }

    fn share(&self) -> f64 {
        if self.events == 0 {
            return 0.0;
        }
        self.bad as f64 / self.events as f64
    }
}

/// What both objectives count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) availability: Count,
    pub(crate) latency: Count,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.availability.add(&other.availability);
        self.latency.add(&other.latency);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.availability.events == 0
    }
}

/// The counts of a period, finer the newer they are, and which alerts fire.
#[derive(Debug)]
pub(crate) struct ErrorBudgets {
    fine: Ring<Counts>,
    middle: Ring<Counts>,
    coarse: Ring<Counts>,
    /// When the first request was counted.
    first: Option<u64>,
    availability: Firing,
    latency: Firing,
}

impl ErrorBudgets {
    pub(crate) fn new(period: Duration) -> Self {
        let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        let fine = (period / FINE).max(1);
        let longest = |scale| {
            let spans = RULES.iter().flat_map(|rule| {
                let held = rule.short.buckets + rule.short.buckets / HOLD;
                [(rule.long, rule.long.buckets), (rule.short, held)]
            });
            let spans = spans.filter(|(span, _)| span.scale == scale);
            spans.map(|(_, buckets)| buckets).max().unwrap_or(0)
        };
        Self {
            fine: Ring::new(fine, longest(Scale::Fine)),
            middle: Ring::new(fine * MIDDLE, longest(Scale::Middle)),
            coarse: Ring::new(fine * COARSE, FINE / COARSE),
            first: None,
            availability: Firing::default(),
            latency: Firing::default(),
        }
    }

    /// The finest buckets. Edges of coarser ones are edges of these.
    pub(crate) fn fine(&self) -> &Ring<Counts> {
        &self.fine
    }

    /// Counts requests that ended in one fine bucket, the first of them at this time.
    pub(crate) fn add(&mut self, first: u64, counts: &Counts) {
        self.first = Some(self.first.map_or(first, |known| known.min(first)));
        for ring in [&mut self.fine, &mut self.middle, &mut self.coarse] {
            if let Some(bucket) = ring.at(first) {
                bucket.add(counts);
            }
        }
    }

    /// Decides which alerts fire, and says why.
    pub(crate) fn report(&mut self, nanos: u64, objective: &Objective) -> Burn {
        let (mut availability, mut latency) = (self.availability, self.latency);
        if objective.latency_share().is_none() {
            // What is no longer promised is not broken, nor when it is promised again.
            latency = Firing::default();
        }
        let burn = Burn {
            period_seconds: seconds(self.fine.width() * FINE),
            availability: self.budget(
                nanos,
                (objective.success_share(), None),
                |counts| &counts.availability,
                &mut availability,
            ),
            latency: objective.latency_share().map(|(share, limit)| {
                let promise = (share, Some(limit));
                self.budget(nanos, promise, |counts| &counts.latency, &mut latency)
            }),
        };
        (self.availability, self.latency) = (availability, latency);
        burn
    }

    fn budget(
        &self,
        nanos: u64,
        (target, limit): (f64, Option<Duration>),
        pick: fn(&Counts) -> &Count,
        firing: &mut Firing,
    ) -> ErrorBudget {
        let allowed = 1.0 - target;
        let cold = COLD * self.fine.width();
        let warm = (self.first).is_some_and(|first| nanos.saturating_sub(first) >= cold);
        let alerts = array::from_fn(|at| {
            let (rule, fires) = (&RULES[at], &mut firing[at]);
            let long = self.rate(nanos, rule.long, allowed, pick);
            let short = self.rate(nanos, rule.short, allowed, pick);
            // The short window ends an alert soon after its cause has ended.
            *fires = if *fires {
                !self.is_over(nanos, rule, allowed, pick)
            } else {
                let enough = warm && long.events >= ENOUGH;
                enough && long.burn_rate.min(short.burn_rate) >= rule.above
            };
            Alert {
                kind: rule.kind,
                above: rule.above,
                long,
                short,
                firing: *fires,
            }
        });
        let whole = sum(&self.coarse, nanos, FINE / COARSE, pick);
        ErrorBudget {
            target,
            limit_seconds: limit.map(|limit| limit.as_secs_f64()),
            events: whole.events,
            bad_events: whole.bad,
            error_budget_left: 1.0 - whole.share() / allowed,
            alerts,
        }
    }

    fn rate(&self, nanos: u64, span: Span, allowed: f64, pick: fn(&Counts) -> &Count) -> BurnRate {
        let ring = self.ring(span.scale);
        let count = sum(ring, nanos, span.buckets, pick);
        BurnRate {
            window: span.name,
            window_seconds: seconds(ring.width() * span.buckets),
            events: count.events,
            bad_events: count.bad,
            burn_rate: count.share() / allowed,
        }
    }
}

impl ErrorBudgets {
    fn ring(&self, scale: Scale) -> &Ring<Counts> {
        match scale {
            Scale::Fine => &self.fine,
            Scale::Middle => &self.middle,
        }
    }

    /// Whether the short window is well below the burn rate, and was at the end of each bucket of the hold.
    ///
    /// Found in the counts, so that it does not depend on how often this is asked.
    fn is_over(&self, nanos: u64, rule: &Rule, allowed: f64, pick: fn(&Counts) -> &Count) -> bool {
        let (ring, buckets) = (self.ring(rule.short.scale), rule.short.buckets);
        let running = ring.epoch(nanos);
        let at = |epoch: Option<u64>| {
            let counts = epoch.and_then(|epoch| ring.get(epoch));
            counts.map_or(Count::default(), |counts| *pick(counts))
        };
        let mut window = Count::default();
        let held = running.saturating_sub(buckets / HOLD);
        for epoch in held.saturating_sub(buckets)..held {
            window.add(&at(Some(epoch)));
        }
        (held..=running).all(|epoch| {
            window.add(&at(Some(epoch)));
            let is_below = window.share() / allowed < BELOW * rule.above;
            window.take(&at(epoch.checked_sub(buckets)));
            is_below
        })
    }
}

type Firing = [bool; RULES.len()];

fn sum(ring: &Ring<Counts>, nanos: u64, buckets: u64, pick: fn(&Counts) -> &Count) -> Count {
    let mut sum = Count::default();
    for counts in ring.window(nanos, buckets) {
        sum.add(pick(counts));
    }
    sum
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// How fast each objective uses up its error budget.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Burn {
    /// What an error budget is for.
    pub period_seconds: f64,
    /// The promise that requests succeed.
    pub availability: ErrorBudget,
    /// The promise that those that do are in time, if there is one.
    pub latency: Option<ErrorBudget>,
}

impl Burn {
    /// The error budgets, by the name of their objective.
    pub fn error_budgets(&self) -> impl Iterator<Item = (&'static str, &ErrorBudget)> {
        let latency = self.latency.as_ref().map(|latency| ("latency", latency));
        [("availability", &self.availability)]
            .into_iter()
            .chain(latency)
    }

    /// The most urgent alert that fires.
    pub fn firing(&self) -> Option<AlertKind> {
        self.error_budgets()
            .filter_map(|(_, budget)| budget.firing())
            .max()
    }
}

/// The error budget of one objective, over the period up to now.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ErrorBudget {
    /// The share of requests that was promised.
    pub target: f64,
    /// The time that was promised.
    pub limit_seconds: Option<f64>,
    /// Requests that the objective is about.
    pub events: u64,
    /// Those that broke it.
    pub bad_events: u64,
    /// The share of the error budget that is not spent: 1 without events, below 0 when the objective is missed.
    pub error_budget_left: f64,
    /// The alerts, fastest first.
    pub alerts: [Alert; RULES.len()],
}

impl ErrorBudget {
    /// The most urgent alert that fires.
    pub fn firing(&self) -> Option<AlertKind> {
        let firing = self.alerts.iter().filter(|alert| alert.firing);
        firing.map(|alert| alert.kind).max()
    }
}

/// Fires when the error budget is spent so fast over both windows, and ends when the short one has been a tenth below
/// that through a fifth of its length.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Alert {
    /// How urgent it is.
    pub kind: AlertKind,
    /// The burn rate from which on it fires.
    pub above: f64,
    /// Shows that it matters.
    pub long: BurnRate,
    /// Shows that it still goes on.
    pub short: BurnRate,
    /// Whether it fires.
    pub firing: bool,
}

/// How urgent an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum AlertKind {
    /// Somebody should look at it in the coming days.
    Ticket,
    /// Somebody should look at it now.
    Page,
}

/// The error budget spent over a window per error budget earned over it: 1 ends exactly used up.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct BurnRate {
    /// The name of the window: what it is for a period of 30 days.
    pub window: &'static str,
    /// How long it is: its whole buckets, to which the running one comes.
    pub window_seconds: f64,
    /// Requests in the window that the objective is about.
    pub events: u64,
    /// Those that broke it.
    pub bad_events: u64,
    /// 0 without events.
    pub burn_rate: f64,
}

#[cfg(test)]
mod tests;
