//! What cannot be as it is set.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use palisade::{
    rate_limit::{Price as LayerPrice, Quota, RateLimit},
    ratio::Ratio,
};

use super::{Adaptive, Amount, BASIC, Identifier, LimitStrategy, PREMIUM, Price, Rule, Unit};
use crate::{
    config::{Config, Mistake, backend::is_label},
    identity, limits,
};

/// The most that a sliding log remembers.
const LONGEST_LOG: u64 = 10_000;

const LABEL: &str = "must be 1 to 64 letters, digits or `-._:[]`";

/// Tells what is wrong with one rule.
struct Checker<'a> {
    at: usize,
    rule: &'a Rule,
    found: &'a mut Vec<Mistake>,
}

impl Config {
    pub(in crate::config) fn check_limits(&self, found: &mut Vec<Mistake>) {
        check_prices(&self.prices, found);
        let most = palisade::rate_limit::Rule::MOST;
        if self.rate_limits.len() > most {
            let message = format!("more than {most} rules");
            let hint = "tiers and exceptions need no rules of their own";
            found.push(Mistake::new(
                format!("rate_limits[{most}].name"),
                message,
                hint,
            ));
        }
        let identities = identity::Identities::new(self);
        let mut seen = BTreeSet::new();
        for (at, rule) in self.rate_limits.iter().enumerate() {
            let before = found.len();
            let mut checker = Checker { at, rule, found };
            if !seen.insert(&rule.name) {
                checker.wrong("name", "is there twice", "");
            }
            checker.check(&self.prices);
            // Whatever else the layer minds.
            if found.len() == before
                && let Err(error) = limits::layer_rule(rule, self, &identities).and_then(|rule| {
                    RateLimit::rules([rule]).map_err(|error| told(&error))?;
                    Ok(())
                })
            {
                found.push(Mistake::new(format!("rate_limits[{at}]"), error, ""));
            }
        }
        if self.wait_up_to > Duration::ZERO && self.waiting == 0 {
            let hint = "how many may wait at a time, for example 100";
            found.push(Mistake::new("waiting", "0 lets nobody wait", hint));
        }
    }
}

/// An error with what caused it, in one line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    for cause in causes {
        told.push_str(": ");
        told.push_str(&cause.to_string());
    }
    told
}

fn check_prices(prices: &BTreeMap<String, Price>, found: &mut Vec<Mistake>) {
    for (model, price) in prices {
        for (field, price) in [("prompt", price.prompt), ("completion", price.completion)] {
            if let Err(error) = LayerPrice::per_million(price, 0.0) {
                let path = format!("prices.\"{model}\".{field}");
                let hint = "for a million tokens, in the currency of `max_requests`";
                found.push(Mistake::new(path, error.to_string(), hint));
            }
        }
    }
}

impl Checker<'_> {
    fn wrong(&mut self, field: &str, message: impl Into<String>, hint: &str) {
        let path = format!("rate_limits[{}].{field}", self.at);
        self.found.push(Mistake::new(path, message, hint));
    }

    fn check(&mut self, prices: &BTreeMap<String, Price>) {
        let rule = self.rule;
        if !is_label(&rule.name) {
            self.wrong("name", LABEL, "");
        }
        let hint = "at least 1; `rate_limit = \"off\"` turns limits off";
        self.check_amount("max_requests", rule.max_requests, hint);
        self.check_burst("burst", rule.burst);
        self.check_window();
        self.check_unit(prices);
        self.check_start();
        self.check_store();
        self.check_adaptive();
        self.check_tiers();
        self.check_exceptions();
    }

    fn check_amount(&mut self, field: &str, amount: Amount, none: &str) {
        let unit = self.rule.unit;
        match amount.count(unit) {
            Some(0) => self.wrong(field, "0 admits nobody", none),
            Some(many) if self.rule.strategy == LimitStrategy::SlidingLog && many > LONGEST_LOG => {
                let message = format!("a sliding log remembers at most {LONGEST_LOG} requests");
                self.wrong(field, message, "`sliding_window` counts any number");
            }
            Some(_) => {}
            None if unit == Unit::Money => {
                let message = format!("{amount} is not an amount of money up to 999999999");
                self.wrong(
                    field,
                    message,
                    "in the currency of `prices`, for example 2.5",
                );
            }
            None => {
                let message = format!("{amount} is not a whole number up to {}", Quota::MOST);
                self.wrong(field, message, "only `unit = \"money\"` has fractions");
            }
        }
    }

    fn check_burst(&mut self, field: &str, burst: Option<u64>) {
        let Some(burst) = burst else { return };
        if self.rule.strategy != LimitStrategy::TokenBucket {
            let hint = "a window admits `max_requests` at once";
            self.wrong(field, "only `token_bucket` has a burst", hint);
        } else if burst == 0 {
            self.wrong(field, "0 admits nobody", "at least 1");
        } else if burst > u32::MAX.into() {
            self.wrong(field, format!("is above {}", u32::MAX), "");
        }
    }

    fn check_window(&mut self) {
        let in_flight = self.rule.strategy == LimitStrategy::InFlight;
        match self.rule.window {
            Some(_) if in_flight => {
                let hint = "it counts requests at a time, whatever time that is";
                self.wrong("window", "`in_flight` has no window", hint);
            }
            None if !in_flight => self.wrong("window", "is missing", "for example \"60s\""),
            Some(window) if window < Duration::from_secs(1) => {
                let message = "is shorter than a second, which headers cannot say";
                self.wrong("window", message, "for example \"60s\"");
            }
            Some(window) if window > Quota::LONGEST => {
                self.wrong("window", "is longer than 104 days", "for example \"720h\"");
            }
            _ => {}
        }
    }

    fn check_unit(&mut self, prices: &BTreeMap<String, Price>) {
        let rule = self.rule;
        if rule.unit.settles() {
            if !rule.strategy.settles() {
                let name = rule.strategy.name();
                let message = format!("`{name}` cannot give back what was reserved and not used");
                let hint = "tokens and money need `sliding_window`, `fixed_window` or `adaptive`";
                self.wrong("strategy", message, hint);
            }
            if rule.unit == Unit::Money && prices.is_empty() {
                let hint = "for example `[prices.default]` with `prompt = 1.0` and `completion = 2.0`, per million tokens";
                self.wrong("unit", "there are no `prices`", hint);
            }
            return;
        }
        let hint = "add `unit = \"tokens\"` or `\"money\"`";
        if rule.estimate.is_some() {
            self.wrong("estimate", "a request counts as one, and needs none", hint);
        }
        if rule.growing {
            self.wrong(
                "growing",
                "a request counts as one, and does not grow",
                hint,
            );
        }
    }

    fn check_start(&mut self) {
        let rule = self.rule;
        let is_rate = !rule.unit.settles() && rule.strategy != LimitStrategy::InFlight;
        match rule.warm_up {
            Some(_) if !is_rate => {
                let message = "only rates of requests can be warmed up";
                self.wrong("warm_up", message, "leave it out");
            }
            Some(Duration::ZERO) => self.wrong("warm_up", "is 0", "for example \"30s\""),
            _ => {}
        }
        if rule.drain_on_overload && rule.strategy == LimitStrategy::InFlight {
            let message = "places in flight cannot be drained";
            self.wrong("drain_on_overload", message, "a window or a bucket can");
        }
        match rule.capacity {
            Some(_) if rule.identifier == Identifier::Global => {
                self.wrong("capacity", "`global` counts nobody apart", "leave it out");
            }
            Some(0) => self.wrong(
                "capacity",
                "0 would count nobody apart",
                "for example 100000",
            ),
            _ => {}
        }
    }

    fn check_store(&mut self) {
        let rule = self.rule;
        match rule.lease {
            None if rule.strict => {
                let hint = "it is about leases; without one limits are exact";
                self.wrong("strict", "there is no `lease`", hint);
            }
            None => {}
            Some(_) if rule.local => {
                let message = "a rule that is `local` has no store to take from";
                self.wrong("lease", message, "leave one of them out");
            }
            Some(_) if rule.unit.settles() || !rule.strategy.can_lease() => {
                let message = "only requests in buckets, fixed and sliding windows can be leased";
                self.wrong("lease", message, "leave it out");
            }
            Some(0) => self.wrong("lease", "0 takes nothing", "for example 32"),
            Some(_) => {}
        }
    }

    fn check_adaptive(&mut self) {
        let Some(adaptive) = self.rule.adaptive else {
            return;
        };
        if self.rule.strategy != LimitStrategy::Adaptive {
            let hint = "set `strategy = \"adaptive\"`, or leave it out";
            let message = "these numbers are for another strategy";
            return self.wrong("adaptive", message, hint);
        }
        let Adaptive {
            least,
            most,
            grow,
            shrink,
            threshold,
            interval,
            samples,
        } = adaptive;
        let fields = [
            (
                grow > 1.0 && grow <= 10.0,
                "grow",
                format!("{grow} is not above 1 and up to 10"),
                "1.2 is a fifth more",
            ),
            (
                shrink > 0.0 && shrink < 1.0,
                "shrink",
                format!("{shrink} is not above 0 and below 1"),
                "0.8 is a fifth less",
            ),
            (
                Ratio::new(threshold).is_ok(),
                "threshold",
                format!("{threshold} is not between 0 and 1"),
                "0.95 goes up while 19 of 20 answers are good",
            ),
            (
                !interval.is_zero() && interval <= Quota::LONGEST,
                "interval",
                "is 0 or longer than 104 days".into(),
                "for example \"300s\"",
            ),
            (
                samples > 0,
                "samples",
                "0 would move by no answer at all".into(),
                "at least 1",
            ),
        ];
        for (fine, field, message, hint) in fields {
            if !fine {
                self.wrong(&format!("adaptive.{field}"), message, hint);
            }
        }
        let Some(base) = self.rule.max_requests.count(self.rule.unit) else {
            return;
        };
        // Both in the numbers of the file, where money is not counted in millionths.
        let scaled = |limit: u64| Amount::from(limit).count(self.rule.unit);
        if least.is_some_and(|least| least == 0 || scaled(least).is_none_or(|least| least > base)) {
            let message = format!(
                "is not between 1 and the {} that it starts at",
                self.rule.max_requests
            );
            self.wrong("adaptive.least", message, "");
        }
        if most.is_some_and(|most| scaled(most).is_none_or(|most| most < base)) {
            let message = format!("is below the {} that it starts at", self.rule.max_requests);
            self.wrong("adaptive.most", message, "");
        }
    }

    fn check_tiers(&mut self) {
        let rule = self.rule;
        let mut seen = BTreeSet::new();
        for (at, tier) in rule.tiers.iter().enumerate() {
            let path = |field: &str| format!("tiers[{at}].{field}");
            if rule.strategy == LimitStrategy::Adaptive {
                let message = "an adaptive rule has one limit for all, which moves";
                return self.wrong(&path("name"), message, "make a rule for each");
            }
            if !rule.identifier.has_tiers() {
                let message = "only rules with `identifier = \"user\"` or `\"key\"` have tiers";
                return self.wrong(
                    &path("name"),
                    message,
                    "keys have tiers, in `identity.keys`",
                );
            }
            if !is_label(&tier.name) {
                self.wrong(&path("name"), LABEL, "");
            }
            if tier.name == BASIC {
                let hint = "`max_requests` of the rule is for them";
                self.wrong(&path("name"), "`basic` is who is in no other tier", hint);
            }
            if !seen.insert(&tier.name) {
                self.wrong(&path("name"), "is there twice", "");
            }
            self.check_amount(&path("max_requests"), tier.max_requests, "at least 1");
            self.check_burst(&path("burst"), tier.burst);
        }
    }

    fn check_exceptions(&mut self) {
        let rule = self.rule;
        let mut seen = Vec::new();
        for (at, exception) in rule.exceptions.iter().enumerate() {
            let path = |field: &str| format!("exceptions[{at}].{field}");
            if rule.strategy == LimitStrategy::Adaptive {
                let message = "an adaptive rule has one limit for all, which moves";
                return self.wrong(&path("identifier"), message, "make a rule for each");
            }
            let text = &exception.identifier;
            match identity::Identifier::parse(text) {
                Err(_) => {
                    let message = format!("`{text}` is nobody");
                    let hint = "`user:NAME`, `api_key:ID` (as `/rate-limits` shows it, not the key), `ip:ADDRESS` or `model:NAME`";
                    self.wrong(&path("identifier"), message, hint);
                }
                Ok(who) if !who.is_counted_by(rule.identifier) => {
                    let message = format!("the rule never counts `{text}` apart");
                    self.wrong(&path("identifier"), message, "");
                }
                Ok(who) if seen.contains(&who) => {
                    self.wrong(&path("identifier"), "is there twice", "");
                }
                Ok(who) => seen.push(who),
            }
            self.check_amount(&path("max_requests"), exception.max_requests, "at least 1");
            self.check_burst(&path("burst"), exception.burst);
        }
    }
}

impl Config {
    /// Whether a tier means anything.
    pub(in crate::config) fn knows_tier(&self, tier: &str) -> bool {
        let in_rules = || {
            let tiers = self.rate_limits.iter().flat_map(|rule| &rule.tiers);
            tiers.into_iter().any(|own| own.name == tier)
        };
        tier == BASIC || tier == PREMIUM || in_rules()
    }
}
