//! Names and labels.

use std::sync::Arc;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use crate::{
    burn::{AlertKind, Burn, BurnRate, ErrorBudget},
    class::{Class, Standing},
    indicators::Event,
    labels::Dimensions,
};

const REQUESTS: &str = "palisade_sla_requests_total";
const DURATION: &str = "palisade_sla_duration_seconds";
const FIRST_DATA: &str = "palisade_sla_first_data_seconds";
const BETWEEN_TOKENS: &str = "palisade_sla_between_tokens_seconds";
const TOKENS: &str = "palisade_sla_tokens_total";
const IN_FLIGHT: &str = "palisade_sla_in_flight";
const BUDGET_LEFT: &str = "palisade_sla_error_budget_left_ratio";
const BURN_RATE: &str = "palisade_sla_burn_rate_ratio";
const FIRING: &str = "palisade_sla_alert_firing";
const LABEL_REQUESTS: &str = "palisade_sla_label_requests_total";
const LABEL_IN_FLIGHT: &str = "palisade_sla_label_in_flight";

/// What requests report to, registered once.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: [Counter; Class::ALL.len()],
    duration: Histogram,
    first_data: Histogram,
    between_tokens: Histogram,
    input_tokens: Counter,
    output_tokens: Counter,
    in_flight: Gauge,
}

impl Metrics {
    pub(crate) fn new(layer: &Arc<str>) -> Self {
        describe_counter!(REQUESTS, "Requests that have ended, by how they did");
        describe_histogram!(
            DURATION,
            Unit::Seconds,
            "From admission to the end of the answer"
        );
        describe_histogram!(
            FIRST_DATA,
            Unit::Seconds,
            "From admission to the first data of the answer"
        );
        describe_histogram!(
            BETWEEN_TOKENS,
            Unit::Seconds,
            "The mean time between the tokens of an answer"
        );
        describe_counter!(TOKENS, "Tokens that language models read and wrote");
        describe_gauge!(IN_FLIGHT, "Requests before the end of their answer");
        let tokens = |kind| counter!(TOKENS, "layer" => layer.clone(), "kind" => kind);
        Self {
            requests: Class::ALL.map(
                |class| counter!(REQUESTS, "layer" => layer.clone(), "verdict" => class.name()),
            ),
            duration: histogram!(DURATION, "layer" => layer.clone()),
            first_data: histogram!(FIRST_DATA, "layer" => layer.clone()),
            between_tokens: histogram!(BETWEEN_TOKENS, "layer" => layer.clone()),
            input_tokens: tokens("input"),
            output_tokens: tokens("output"),
            in_flight: gauge!(IN_FLIGHT, "layer" => layer.clone()),
        }
    }

    pub(crate) fn entered(&self) {
        self.in_flight.increment(1.0);
    }

    pub(crate) fn left(&self) {
        self.in_flight.decrement(1.0);
    }

    pub(crate) fn happened(&self, event: &Event) {
        let usage = match event {
            Event::FirstData(taken) => {
                self.first_data.record(seconds(*taken));
                None
            }
            Event::End(ended) => {
                self.requests[ended.class as usize].increment(1);
                if ended.class.standing() != Standing::LeftOut {
                    self.duration.record(seconds(ended.total));
                    if let Some(gaps) = ended.gaps {
                        self.between_tokens.record(seconds(gaps.mean));
                    }
                }
                ended.usage
            }
            Event::Tokens(usage, _) => Some(*usage),
        };
        if let Some(usage) = usage {
            self.input_tokens.increment(usage.prompt);
            self.output_tokens.increment(usage.completion);
        }
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Sets what is only known of labels when asked.
pub(crate) fn publish_labels(layer: &Arc<str>, dimensions: &Dimensions) {
    describe_counter!(
        LABEL_REQUESTS,
        "Requests of a label that have ended, by what that says about the service"
    );
    describe_gauge!(
        LABEL_IN_FLIGHT,
        "Requests of a label before the end of their answer"
    );
    dimensions.each(|dimension, label, in_flight, news| {
        for (standing, more) in ["good", "bad", "left_out"].into_iter().zip(news) {
            // One that comes back after it was let go of goes on where it was.
            counter!(LABEL_REQUESTS, "layer" => layer.clone(), "dimension" => dimension.clone(),
                "label" => label.clone(), "standing" => standing)
            .increment(more);
        }
        gauge!(LABEL_IN_FLIGHT, "layer" => layer.clone(), "dimension" => dimension.clone(),
            "label" => label.clone())
        .set(in_flight as f64);
    });
}

/// Sets what is only known when asked.
pub(crate) fn publish(layer: &Arc<str>, burn: &Burn) {
    describe_gauge!(
        BUDGET_LEFT,
        "The share of the error budget that is not spent"
    );
    describe_gauge!(BURN_RATE, "Error budget spent per error budget earned");
    describe_gauge!(FIRING, "1 while an alert of this kind fires");
    for (rule, budget) in burn.error_budgets() {
        budget_left(layer, rule).set(budget.error_budget_left);
        for rate in rates(budget) {
            burn_rate(layer, rule, rate).set(rate.burn_rate);
        }
        for kind in [AlertKind::Page, AlertKind::Ticket] {
            let mut alerts = budget.alerts.iter();
            let fires = alerts.any(|alert| alert.kind == kind && alert.firing);
            firing(layer, rule, kind).set(f64::from(u8::from(fires)));
        }
    }
}

/// Takes back what was said of a promise that is no longer made: no alert of it fires, and what is not a number compares
/// with none, so that no rule outside goes by the last one.
pub(crate) fn withdraw_latency(layer: &Arc<str>, burn: &Burn) {
    let rule = "latency";
    budget_left(layer, rule).set(f64::NAN);
    // Of the same windows.
    for rate in rates(&burn.availability) {
        burn_rate(layer, rule, rate).set(f64::NAN);
    }
    for kind in [AlertKind::Page, AlertKind::Ticket] {
        firing(layer, rule, kind).set(0.0);
    }
}

fn rates(budget: &ErrorBudget) -> impl Iterator<Item = &BurnRate> {
    let alerts = budget.alerts.iter();
    alerts.flat_map(|alert| [&alert.long, &alert.short])
}

fn budget_left(layer: &Arc<str>, rule: &'static str) -> Gauge {
    gauge!(BUDGET_LEFT, "layer" => layer.clone(), "rule" => rule)
}

fn burn_rate(layer: &Arc<str>, rule: &'static str, rate: &BurnRate) -> Gauge {
    gauge!(BURN_RATE, "layer" => layer.clone(), "rule" => rule, "window" => rate.window)
}

fn firing(layer: &Arc<str>, rule: &'static str, kind: AlertKind) -> Gauge {
    let kind = match kind {
        AlertKind::Page => "page",
        AlertKind::Ticket => "ticket",
    };
    gauge!(FIRING, "layer" => layer.clone(), "rule" => rule, "kind" => kind)
}
