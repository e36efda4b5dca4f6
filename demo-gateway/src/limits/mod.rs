//! Who may ask how often: the rules of the configuration as one gate, and what can be asked about them.

mod build;
mod near;
mod state;

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, Request};
use memchr::{memchr, memchr_iter};
use palisade::{
    BoxError,
    head::RequestHead,
    key::Key,
    rate_limit::{
        CostExceedsQuota, Handle, RateLimit, RateLimited, RedisStore, State, StoreError,
        StoreState, StoreUnavailable,
    },
    reject::Rejected,
};

pub(crate) use self::{
    build::layer_rule,
    state::{DOWN, Refusal, RuleState, Source, Totals},
};
use crate::{
    config::{self, Config, Identifier as Counts, LimitStrategy, Mode, Switch, Unit},
    exchange::Exchange,
    headers::{LIMIT, POLICY},
    identity::{Caller, Identifier, Identities, Kind},
    watcher::RuleView,
};

/// Who may ask how often.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    gate: RateLimit,
    handle: Handle,
    rules: Arc<[config::Rule]>,
    store: Option<RedisStore>,
    wait_up_to: Duration,
}

/// How the rule stands that leaves a caller least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct First {
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    /// Seconds.
    pub(crate) reset: u64,
}

/// The outcome of a reset.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reset {
    /// How many rules had counted.
    pub(crate) rules: usize,
    pub(crate) source: Source,
    /// Whether the store could not be asked: what it counts stands.
    pub(crate) failed: bool,
}

impl Limits {
    /// Expects a configuration without mistakes.
    pub(crate) fn new(
        config: &Config,
        identities: &Identities,
        store: Option<RedisStore>,
    ) -> Result<Self, BoxError> {
        let rules: Arc<[config::Rule]> = match config.rate_limit {
            Switch::Default => config.rate_limits.clone().into(),
            Switch::Off => Arc::default(),
        };
        let built = rules
            .iter()
            .map(|rule| layer_rule(rule, config, identities));
        let built: Vec<_> = built.collect::<Result<_, _>>()?;
        let mut gate = RateLimit::rules(built)?.named("gateway");
        if !config.wait_up_to.is_zero() {
            gate = gate.wait_up_to(config.wait_up_to, config.waiting);
        }
        if let Some(store) = &store {
            gate = gate.store(store)?;
        }
        Ok(Self {
            handle: gate.handle(),
            gate,
            rules,
            store,
            wait_up_to: config.wait_up_to,
        })
    }

    pub(crate) fn gate(&self) -> &RateLimit {
        &self.gate
    }

    fn rule(&self, name: &str) -> Option<&config::Rule> {
        self.rules.iter().find(|rule| rule.name == name)
    }

    /// What `llm_rate_limit_hits_total` calls what the rule counts by.
    pub(crate) fn kind(&self, rule: &str, caller: &Caller) -> &'static str {
        match self.rule(rule).map(|rule| rule.identifier) {
            Some(Counts::Global) | None => "global",
            Some(Counts::Ip) => Kind::Address.name(),
            Some(Counts::User | Counts::Premium) => caller.kind.name(),
            Some(Counts::Key) => Kind::ApiKey.name(),
            Some(Counts::Model) => "model",
        }
    }

    /// Refuses if a rule leaves this caller no room at all, as far as this process knows. Takes nothing.
    pub(crate) fn peek(&self, head: &RequestHead<'_>) -> Option<Rejected> {
        if self.rules.is_empty() {
            return None;
        }
        let waits = !self.wait_up_to.is_zero();
        if waits {
            // Who may still wait is not refused, nor counted as that.
            let too_long =
                |state: &State| state.remaining == 0 && state.retry_after > self.wait_up_to;
            if !self.handle.peek_all(head).iter().any(too_long) {
                return None;
            }
        }
        let refused = self.handle.preview(head).err()?;
        let is_final = refused.delay().is_none_or(|delay| delay > self.wait_up_to);
        (!waits || is_final).then_some(refused)
    }

    /// Adds how this caller stands to an answer that no rule has seen.
    pub(crate) fn describe(&self, exchange: &Arc<Exchange>, headers: &mut HeaderMap) {
        let mut request = Request::new(());
        request.extensions_mut().insert(exchange.clone());
        self.handle.describe(&RequestHead::from(&request), headers);
    }

    /// What the first item of a `RateLimit` header says of a rule that counts by this.
    pub(crate) fn first(&self, headers: &HeaderMap, unit: Unit) -> Option<First> {
        let is_counted =
            |rule: &config::Rule| rule.unit == unit && rule.strategy != LimitStrategy::InFlight;
        // Most gateways count one unit, and need not look for the other.
        if !self.rules.iter().any(is_counted) {
            return None;
        }
        let text = |name: HeaderName| headers.get(name)?.to_str().ok();
        let is_meant = |item: &&str| {
            let rule = name(item).and_then(|name| self.rule(name));
            rule.is_some_and(is_counted)
        };
        let standing = text(LIMIT)?.split(',').find(is_meant)?;
        let is_same = |item: &&str| name(item) == name(standing);
        let policy = text(POLICY)?.split(',').find(is_same)?;
        let limit = number(policy, "palisade-burst=").or_else(|| number(policy, "q="));
        Some(First {
            limit: limit?,
            remaining: number(standing, "r=")?,
            reset: number(standing, "t=").unwrap_or(0),
        })
    }

    /// What a refusal says about the rule that it names.
    pub(crate) fn explain(&self, rejected: &Rejected) -> Option<Refusal> {
        let source = std::error::Error::source(rejected)?;
        let unit = |rule: &str| self.rule(rule).map_or(Unit::default(), |rule| rule.unit);
        if let Some(limited) = source.downcast_ref::<RateLimited>() {
            Some(Refusal::limited(limited, unit(&limited.rule)))
        } else if let Some(error) = source.downcast_ref::<CostExceedsQuota>() {
            Some(Refusal::too_dear(error, unit(&error.rule)))
        } else {
            let error = source.downcast_ref::<StoreUnavailable>()?;
            Some(Refusal::unknown(&error.rule, rejected.delay()))
        }
    }

    /// How an identifier stands with every rule.
    pub(crate) async fn states(
        &self,
        identities: &Identities,
        identifier: &Identifier,
    ) -> Vec<(&str, RuleState)> {
        let mut states = Vec::with_capacity(self.rules.len());
        let keys = identities.keys(identifier);
        for rule in &*self.rules {
            let is_counted = identifier.is_counted_by(rule.identifier);
            let applies = is_counted || rule.identifier == Counts::Global;
            // Nobody is counted by nothing: as untouched.
            let nobody = [Key::from("")];
            let keys = if is_counted { &keys[..] } else { &nobody };
            let mut found: Option<RuleState> = None;
            for key in keys {
                let Some(state) = self.state(rule, key, applies).await else {
                    continue;
                };
                // Of the tiers that a user comes in, the one that has used most.
                if found
                    .as_ref()
                    .is_none_or(|found| state.used() > found.used())
                {
                    found = Some(state);
                }
            }
            states.extend(found.map(|state| (&*rule.name, state)));
        }
        states
    }

    async fn state(&self, rule: &config::Rule, key: &Key<'_>, applies: bool) -> Option<RuleState> {
        let here = || self.handle.peek(&rule.name, key);
        let (state, source, is_down) = match self.source(rule) {
            // Nothing that anybody would have counted.
            source if !applies => (here()?, source, false),
            Source::Local => (here()?, Source::Local, false),
            Source::Redis => match self.handle.peek_store(&rule.name, key).await {
                Ok(state) => (state?, Source::Redis, false),
                Err(_) => (here()?, Source::Local, true),
            },
        };
        Some(RuleState::new(rule, &state, applies, source, is_down))
    }

    /// Where a rule is counted while the store can be asked.
    fn source(&self, rule: &config::Rule) -> Source {
        // What is only tried is not worth a question.
        let is_shared = self.store.is_some() && !rule.local && rule.mode == Mode::Enforce;
        if is_shared {
            Source::Redis
        } else {
            Source::Local
        }
    }

    /// Gives an identifier all of its quota again, or `None` if there is no such rule.
    pub(crate) async fn reset(
        &self,
        rule: Option<&str>,
        identities: &Identities,
        identifier: &Identifier,
    ) -> Option<Reset> {
        if let Some(rule) = rule {
            self.rule(rule)?;
        }
        let mut reset = Reset {
            rules: 0,
            source: Source::Local,
            failed: false,
        };
        let keys = identities.keys(identifier);
        for found in &*self.rules {
            let is_global = *identifier == Identifier::Global && found.identifier == Counts::Global;
            let is_meant = is_global || identifier.is_counted_by(found.identifier);
            if !is_meant || rule.is_some_and(|rule| rule != found.name) {
                continue;
            }
            if self.source(found) == Source::Redis {
                reset.source = Source::Redis;
            }
            let mut held = false;
            let mut heard = |answer: Result<bool, StoreError>| match answer {
                Ok(any) => held |= any,
                Err(_) => reset.failed = true,
            };
            if is_global {
                heard(self.handle.reset_shared_store(&found.name).await);
            }
            for key in &keys {
                let many = self.handle.reset_store(Some(&found.name), key).await;
                heard(many.map(|many| many > 0));
            }
            reset.rules += usize::from(held);
        }
        if reset.failed {
            reset.source = Source::Local;
        }
        Some(reset)
    }

    /// The names of all rules.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.rules.iter().map(|rule| &*rule.name).collect()
    }

    /// What each rule has refused since the start.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = RuleView> + use<> {
        let rules = self.handle.snapshot().rules.into_iter();
        rules.map(|held| RuleView {
            name: held.rule,
            refused: held.refused,
        })
    }

    /// How the store does, if there is one.
    pub(crate) fn store_state(&self) -> Option<StoreState> {
        self.store.as_ref().map(RedisStore::state)
    }

    /// What all rules hold and have done; `None` when there are none.
    pub(crate) fn totals(&self) -> Option<Totals<'_>> {
        if self.rules.is_empty() {
            return None;
        }
        let snapshot = self.handle.snapshot();
        let store = self.store_state();
        let rules = self.rules.iter().zip(snapshot.rules);
        let rules = rules.map(|(rule, held)| (rule, held, self.source(rule)));
        Some(Totals::new(rules, snapshot.waiting, store))
    }
}

/// The name of an item of a `RateLimit` header.
fn name(item: &str) -> Option<&str> {
    let name = item.trim_start().strip_prefix('"')?;
    name.get(..memchr(b'"', name.as_bytes())?)
}

/// A parameter of an item.
fn number(item: &str, parameter: &str) -> Option<u64> {
    let mut starts = memchr_iter(b';', item.as_bytes()).map(|end| end + 1);
    let value = starts.find_map(|start| item.get(start..)?.trim_start().strip_prefix(parameter))?;
    let end = value.find(|after: char| !after.is_ascii_digit());
    value[..end.unwrap_or(value.len())].parse().ok()
}

fn caller<'a>(head: &RequestHead<'a>) -> Option<&'a Caller> {
    let exchange: &Arc<Exchange> = head.extensions.get()?;
    Some(&exchange.caller)
}

#[cfg(test)]
mod tests;
