//! Who may ask how often: the rules of the configuration as one gate, and what can be asked about them.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Request};
use palisade::{
    classify::Verdict,
    gate::{Admit, Gate},
    head::RequestHead,
    key::Key,
    rate_limit::{
        Handle, MissingKey, Quota, QuotaError, RateLimit, Rule, RuleError, State, Strategy,
    },
    reject::{Reason, Rejected},
    settle::{End, Settle},
    time,
};
use serde::Serialize;

use crate::{
    config::{self, Config, Identifier as Counts, LimitStrategy, Switch, Tier},
    exchange::{Exchange, Operation},
    identity::{Caller, Identifier, Kind},
};

/// Who may ask how often.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    gate: RateLimit,
    handle: Handle,
    rules: Arc<[config::Rule]>,
}

/// How the rule stands that leaves a caller least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct First {
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    /// Seconds.
    pub(crate) reset: u64,
}

impl Limits {
    pub(crate) fn new(config: &Config) -> Result<Self, RuleError> {
        let rules: Arc<[config::Rule]> = match config.rate_limit {
            Switch::Default => config.rate_limits.clone().into(),
            Switch::Off => Arc::default(),
        };
        let built: Result<Vec<Rule>, QuotaError> = rules.iter().map(rule).collect();
        let built = built.map_err(|error| RuleError::Quota("rate_limits".into(), error))?;
        let gate = RateLimit::rules(built)?.named("gateway");
        Ok(Self {
            handle: gate.handle(),
            gate,
            rules,
        })
    }

    pub(crate) fn gate(&self) -> &RateLimit {
        &self.gate
    }

    /// What `llm_rate_limit_hits_total` calls what the rule counts by.
    pub(crate) fn kind(&self, rule: &str, caller: &Caller) -> &'static str {
        let found = self.rules.iter().find(|found| found.name == *rule);
        match found.map(|found| found.identifier) {
            Some(Counts::Global) | None => "global",
            Some(Counts::Ip) => Kind::Address.name(),
            Some(Counts::User | Counts::Premium) => caller.kind.name(),
        }
    }

    /// Refuses if a rule leaves this caller no room at all. Charges nothing.
    pub(crate) fn peek(&self, caller: &Arc<Caller>, operation: Operation) -> Option<Rejected> {
        let is_empty = |rule: &config::Rule| {
            let key = match rule.identifier {
                Counts::Global => Some("global".into()),
                Counts::Ip => Some(caller.address.into()),
                Counts::User => caller.subject_of(Tier::Basic),
                Counts::Premium => caller.subject_of(Tier::Premium),
            };
            let state = key.and_then(|key| self.handle.peek(&rule.name, &key));
            state.is_some_and(|state| state.remaining == 0)
        };
        if !self.rules.iter().any(is_empty) {
            return None;
        }
        // The gate itself finds the words.
        let mut request = Request::new(());
        let exchange = Exchange::new(caller.clone(), operation, false);
        request.extensions_mut().insert(Arc::new(exchange));
        let now = time::now();
        match self.gate.admit(&RequestHead::from(&request), now) {
            Admit::Now(Err(rejected)) => Some(rejected),
            Admit::Now(Ok(mut reservation)) => {
                // There is room again: the request asks once more when it is whole.
                let end = End {
                    verdict: Verdict::Refused(Reason::Overloaded),
                    usage: None,
                    age: Duration::ZERO,
                };
                reservation.finish(&end, now);
                None
            }
            Admit::Later(_) => None,
        }
    }

    /// What the first item of a `RateLimit` header says.
    pub(crate) fn first(&self, header: &HeaderValue) -> Option<First> {
        let item = header.to_str().ok()?.split(',').next()?;
        let (name, rest) = item.trim().strip_prefix('"')?.split_once('"')?;
        let number = |name: &str| {
            let mut parts = rest.split(';');
            parts.find_map(|part| part.strip_prefix(name)?.parse::<u64>().ok())
        };
        let rule = self.rules.iter().find(|rule| rule.name == name)?;
        Some(First {
            limit: rule.burst.unwrap_or(rule.max_requests),
            remaining: number("r=")?,
            reset: number("t=").unwrap_or(0),
        })
    }

    /// How an identifier stands with every rule.
    pub(crate) fn states(&self, identifier: &Identifier) -> Vec<(&str, RuleState)> {
        let key = identifier.key();
        let states = self.rules.iter().filter_map(|rule| {
            let state = self.handle.peek(&rule.name, &key)?;
            let applies = applies(rule, identifier);
            Some((&*rule.name, RuleState::new(&state, applies)))
        });
        states.collect()
    }

    /// Gives an identifier all of its quota again: how many rules had counted it, or `None` if there is no such rule.
    pub(crate) fn reset(&self, rule: Option<&str>, identifier: &Identifier) -> Option<usize> {
        let named = |name: &str| self.rules.iter().find(|rule| rule.name == name);
        if let Some(rule) = rule {
            named(rule)?;
        }
        if *identifier == Identifier::Global {
            let globals = self.rules.iter();
            let globals = globals.filter(|found| found.identifier == Counts::Global);
            let asked = globals.filter(|found| rule.is_none_or(|rule| found.name == rule));
            let reset = asked.filter(|found| self.handle.reset_shared(&found.name));
            return Some(reset.count());
        }
        Some(self.handle.reset(rule, &identifier.key()))
    }

    /// The names of all rules.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.rules.iter().map(|rule| &*rule.name).collect()
    }

    /// What all rules hold and have done; `None` when there are none.
    pub(crate) fn totals(&self) -> Option<Vec<RuleTotals<'_>>> {
        if self.rules.is_empty() {
            return None;
        }
        let snapshot = self.handle.snapshot();
        let totals = self.rules.iter().zip(snapshot.rules);
        let totals = totals.map(|(rule, held)| RuleTotals {
            rule: &rule.name,
            identifier: rule.identifier,
            strategy: rule.strategy.name(),
            limit: rule.max_requests,
            window_seconds: rule.window.as_secs_f64(),
            keys: held.keys,
            admitted: held.admitted,
            refused: held.refused,
        });
        Some(totals.collect())
    }
}

fn rule(config: &config::Rule) -> Result<Rule, QuotaError> {
    let mut quota = Quota::new(config.max_requests, config.window)?;
    if let Some(burst) = config.burst {
        quota = quota.burst(burst);
    }
    let rule = Rule::new(&config.name, quota)
        .strategy(config.strategy.into())
        .missing_key(MissingKey::Skip);
    Ok(match config.identifier {
        Counts::Global => rule,
        Counts::Ip => rule.key(address),
        Counts::User => rule.key(basic),
        Counts::Premium => rule.key(premium),
    })
}

fn caller<'a>(head: &RequestHead<'a>) -> Option<&'a Caller> {
    let exchange: &Arc<Exchange> = head.extensions.get()?;
    Some(&exchange.caller)
}

fn address<'a>(head: &RequestHead<'a>) -> Option<Key<'a>> {
    Some(caller(head)?.address.into())
}

fn basic<'a>(head: &RequestHead<'a>) -> Option<Key<'a>> {
    caller(head)?.subject_of(Tier::Basic)
}

fn premium<'a>(head: &RequestHead<'a>) -> Option<Key<'a>> {
    caller(head)?.subject_of(Tier::Premium)
}

fn applies(rule: &config::Rule, identifier: &Identifier) -> bool {
    matches!(
        (rule.identifier, identifier),
        (Counts::Global, _)
            | (Counts::Ip, Identifier::Address(_))
            | (Counts::User | Counts::Premium, Identifier::Caller(_))
    )
}

impl From<LimitStrategy> for Strategy {
    fn from(strategy: LimitStrategy) -> Self {
        match strategy {
            LimitStrategy::SlidingWindow => Self::SlidingWindow,
            LimitStrategy::FixedWindow => Self::FixedWindow,
            LimitStrategy::TokenBucket => Self::TokenBucket,
        }
    }
}

/// How an identifier stands with a rule.
#[derive(Debug, Serialize)]
pub(crate) struct RuleState {
    /// Whether the rule counts by identifiers of this kind.
    applies: bool,
    allowed: bool,
    strategy: &'static str,
    limit: u64,
    window_seconds: f64,
    remaining: u64,
    reset_after_seconds: f64,
    retry_after_seconds: f64,
}

impl RuleState {
    fn new(state: &State, applies: bool) -> Self {
        Self {
            applies,
            allowed: state.remaining > 0,
            strategy: state.strategy.name(),
            limit: state.limit,
            window_seconds: state.window.as_secs_f64(),
            remaining: state.remaining,
            reset_after_seconds: state.reset_after.as_secs_f64(),
            retry_after_seconds: state.retry_after.as_secs_f64(),
        }
    }
}

/// What a rule holds and has done.
#[derive(Debug, Serialize)]
pub(crate) struct RuleTotals<'a> {
    rule: &'a str,
    identifier: Counts,
    strategy: &'static str,
    limit: u64,
    window_seconds: f64,
    keys: usize,
    admitted: u64,
    refused: u64,
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::HeaderMap;

    use super::*;
    use crate::identity::Identities;

    fn alice(config: &Config) -> Arc<Caller> {
        let headers: HeaderMap = [("x-user-id".parse().unwrap(), "alice".parse().unwrap())]
            .into_iter()
            .collect();
        let peer: SocketAddr = "192.0.2.1:1".parse().unwrap();
        Arc::new(Identities::new(config).find(peer, &headers).unwrap())
    }

    fn admit(limits: &Limits, caller: &Arc<Caller>) -> bool {
        let mut request = Request::new(());
        let exchange = Exchange::new(caller.clone(), Operation::Chat, false);
        request.extensions_mut().insert(Arc::new(exchange));
        let admitted = limits
            .gate()
            .admit(&RequestHead::from(&request), time::now());
        matches!(admitted, Admit::Now(Ok(_)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_peek_refuses_only_who_has_nothing_left_and_charges_nothing() {
        let mut config = Config::default();
        config.rate_limits[1].max_requests = 2;
        let (limits, alice) = (Limits::new(&config).unwrap(), alice(&config));
        for _ in 0..2 {
            assert!(limits.peek(&alice, Operation::Chat).is_none());
            assert!(limits.peek(&alice, Operation::Chat).is_none());
            assert!(admit(&limits, &alice));
        }
        let refused = limits.peek(&alice, Operation::Chat).unwrap();
        assert_eq!(refused.reason().name(), "rate_limited");
        assert!(refused.headers().unwrap().contains_key("ratelimit"));
        // Only what was let through counts, also for the address.
        let address = Identifier::parse("ip:192.0.2.1").unwrap();
        let states = limits.states(&address);
        let (_, per_ip) = states.iter().find(|(name, _)| *name == "per_ip").unwrap();
        assert_eq!((per_ip.remaining, per_ip.applies), (198, true));
        assert_eq!(limits.kind("per_user", &alice), "user");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_gives_all_back_to_one_identifier() {
        let config = Config::default();
        let (limits, alice) = (Limits::new(&config).unwrap(), alice(&config));
        assert!(admit(&limits, &alice));
        let user = Identifier::parse("user:alice").unwrap();
        let remaining = |rule: &str, identifier: &Identifier| {
            let states = limits.states(identifier);
            states
                .iter()
                .find(|(name, _)| *name == rule)
                .unwrap()
                .1
                .remaining
        };
        assert_eq!(remaining("per_user", &user), 99);
        assert_eq!(limits.reset(Some("nonsense"), &user), None);
        assert_eq!(limits.reset(Some("per_user"), &user), Some(1));
        assert_eq!(remaining("per_user", &user), 100);
        assert_eq!(remaining("global", &user), 999);
        assert_eq!(limits.reset(None, &Identifier::Global), Some(1));
        assert_eq!(remaining("global", &user), 1000);
    }

    #[test]
    fn the_first_rule_of_the_header_is_what_openai_clients_see() {
        let limits = Limits::new(&Config::default()).unwrap();
        let header = HeaderValue::from_static("\"per_user\";r=7;t=12, \"global\";r=900;t=3");
        let first = limits.first(&header).unwrap();
        assert_eq!((first.limit, first.remaining, first.reset), (100, 7, 12));
        assert_eq!(limits.first(&HeaderValue::from_static("nonsense")), None);
    }
}
