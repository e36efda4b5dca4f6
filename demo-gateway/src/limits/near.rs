//! Who is near a limit.

use std::{sync::Arc, time::Duration};

use http::Request;
use palisade::{head::RequestHead, rate_limit::Tokens, time};

use super::Limits;
use crate::{
    config::{Identifier as Counts, LimitStrategy, Unit},
    exchange::{Exchange, Operation},
    identity::Caller,
};

/// How somebody stands with a rule, as far as this process knows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Standing {
    pub(crate) rule: Arc<str>,
    /// As `/rate-limits/{identifier}` takes it.
    pub(crate) identifier: String,
    pub(crate) unit: Unit,
    /// In the unit of the rule.
    pub(crate) used: f64,
    /// What can be taken at once: the burst of a bucket, or else the limit.
    pub(crate) holds: f64,
    /// `in_flight` has none.
    pub(crate) window: Option<Duration>,
}

impl Limits {
    /// How many rules there are.
    pub(crate) fn count(&self) -> usize {
        self.rules.len()
    }

    /// Requests that wait for their rate.
    pub(crate) fn waiting(&self) -> usize {
        match self.wait_up_to.is_zero() {
            true => 0,
            false => self.handle.snapshot().waiting,
        }
    }

    /// How this caller stands with every rule that counts what it asks. Takes nothing.
    pub(crate) fn standings(
        &self,
        caller: &Arc<Caller>,
        model: Option<&Arc<str>>,
    ) -> Vec<Standing> {
        let mut request = Request::new(());
        let exchange = Exchange::new(caller.clone(), Operation::Generate, time::now());
        request.extensions_mut().insert(Arc::new(exchange));
        if let Some(model) = model {
            request
                .extensions_mut()
                .insert(Tokens::new(model.clone(), 0));
        }
        let states = self.handle.peek_all(&RequestHead::from(&request));
        let standings = states.into_iter().filter_map(|state| {
            let rule = self.rule(&state.rule)?;
            let amount = |count: u64| match rule.unit {
                Unit::Money => count as f64 / 1e6,
                Unit::Requests | Unit::Tokens => count as f64,
            };
            Some(Standing {
                identifier: self.identifier(&state.rule, caller, model)?,
                unit: rule.unit,
                used: amount(state.holds.saturating_sub(state.remaining)),
                holds: amount(state.holds),
                window: (rule.strategy != LimitStrategy::InFlight).then_some(state.window),
                rule: state.rule,
            })
        });
        standings.collect()
    }

    /// Whom a rule counts, as `/rate-limits/{identifier}` takes it.
    pub(crate) fn identifier(
        &self,
        rule: &str,
        caller: &Caller,
        model: Option<&Arc<str>>,
    ) -> Option<String> {
        Some(match self.rule(rule)?.identifier {
            Counts::Global => "global".into(),
            Counts::Ip => format!("ip:{}", caller.address),
            Counts::User | Counts::Premium => caller.shown().into_owned(),
            Counts::Key => caller.shown_key()?.into_owned(),
            Counts::Model => format!("model:{}", model?),
        })
    }
}
