//! From rules as they are configured to rules as the layer keeps them.

use palisade::{
    head::RequestHead,
    key::{ClientAddress, ExtractKey, Key},
    rate_limit::{Adaptive, Estimate, MissingKey, Price, Prices, Quota, Rule, Tokens},
    ratio::Ratio,
};

use super::caller;
use crate::{
    config::{self, Amount, Config, Identifier as Counts, LimitStrategy, PREMIUM, Unit, told},
    exchange::{Exchange, Operation},
    identity::{Identifier, Identities, is_in_tier},
};

/// Whose price is for models that have none.
const OTHERS: &str = "default";

/// A rule as the layer keeps it. Tells what the layer cannot keep.
pub(crate) fn layer_rule(
    rule: &config::Rule,
    config: &Config,
    identities: &Identities,
) -> Result<Rule, String> {
    let quota = |amount, burst| quota(rule, amount, burst);
    let all = quota(rule.max_requests, rule.burst)?;
    let mut built = match rule.unit {
        Unit::Requests => Rule::new(&rule.name, all),
        Unit::Tokens => Rule::tokens(&rule.name, all).cost(asks_a_model),
        Unit::Money => Rule::money(&rule.name, all, prices(config)?).cost(asks_a_model),
    };
    built = match rule.strategy {
        LimitStrategy::Adaptive => built.adaptive(adaptive(rule)?),
        strategy => built.strategy(strategy.into()),
    };
    built = built
        .missing_key(MissingKey::Skip)
        .mode(rule.mode.into())
        .on_store_error(rule.on_store_error.into());
    built = match rule.identifier {
        Counts::Global => built,
        Counts::Ip => built.key(Address(identities.address_key().clone())),
        Counts::User if rule.knows_premium() => built.key(subject),
        Counts::User => built.key(not_premium),
        Counts::Premium => built.key(premium),
        Counts::Key => built.key(api_key),
        Counts::Model => built.key(model),
    };
    if rule.estimate == Some(config::Estimate::Learned) {
        built = built.estimate(Estimate::Learned);
    }
    if rule.growing {
        built = built.growing();
    }
    if let Some(period) = rule.warm_up {
        built = built.warm_up(period);
    }
    if rule.drain_on_overload {
        built = built.drain_on_overload();
    }
    if let Some(batch) = rule.lease {
        built = built.leased(batch);
    }
    if rule.strict {
        built = built.strict();
    }
    if rule.local {
        built = built.local();
    }
    if let Some(capacity) = rule.capacity {
        built = built.capacity(capacity);
    }
    for tier in &rule.tiers {
        let (name, quota) = (tier.name.clone(), quota(tier.max_requests, tier.burst)?);
        built = built.tier(&tier.name, quota, move |key| is_in_tier(key, &name));
    }
    for exception in &rule.exceptions {
        let quota = quota(exception.max_requests, exception.burst)?;
        let Ok(who) = Identifier::parse(&exception.identifier) else {
            return Err(format!("`{}` is nobody", exception.identifier));
        };
        for key in identities.keys(&who) {
            built = built.exception(key, quota);
        }
    }
    Ok(built)
}

fn quota(rule: &config::Rule, amount: Amount, burst: Option<u64>) -> Result<Quota, String> {
    let limit = count(amount, rule.unit)?;
    if rule.strategy == LimitStrategy::InFlight {
        return Ok(Quota::per_second(limit));
    }
    let quota = Quota::new(limit, rule.window.unwrap_or_default());
    let quota = quota.map_err(|error| told(&error))?;
    Ok(match burst {
        Some(burst) => quota.burst(burst),
        None => quota,
    })
}

fn count(amount: Amount, unit: Unit) -> Result<u64, String> {
    amount
        .count(unit)
        .ok_or_else(|| format!("{amount} cannot be counted"))
}

fn prices(config: &Config) -> Result<Prices, String> {
    let price = |price: &config::Price| {
        Price::per_million(price.prompt, price.completion).map_err(|error| told(&error))
    };
    let models = config.prices.iter();
    let mut models = models.filter(|(model, _)| *model != OTHERS);
    match config.prices.get(OTHERS) {
        Some(others) => models.try_fold(Prices::all(price(others)?), |prices, (model, own)| {
            Ok(prices.model(model.as_str(), price(own)?))
        }),
        None => {
            let models = models.map(|(model, own)| Ok((model.as_str(), price(own)?)));
            let models: Vec<_> = models.collect::<Result<_, String>>()?;
            Prices::of(models).map_err(|error| told(&error))
        }
    }
}

fn adaptive(rule: &config::Rule) -> Result<Adaptive, String> {
    let numbers = rule.adaptive.unwrap_or_default();
    let threshold = Ratio::new(numbers.threshold).map_err(|error| told(&error))?;
    let limit = |limit: u64| count(limit.into(), rule.unit);
    let built = || {
        Adaptive::new()
            .threshold(threshold)
            .grow(numbers.grow)?
            .shrink(numbers.shrink)?
            .interval(numbers.interval)?
            .samples(numbers.samples)
    };
    let mut built = built().map_err(|error| told(&error))?;
    if let Some(least) = numbers.least {
        built = built.least(limit(least)?).map_err(|error| told(&error))?;
    }
    if let Some(most) = numbers.most {
        built = built.most(limit(most)?).map_err(|error| told(&error))?;
    }
    Ok(built)
}

/// A list of models costs neither tokens nor money.
fn asks_a_model(head: &RequestHead<'_>) -> u64 {
    let exchange: Option<&std::sync::Arc<Exchange>> = head.extensions.get();
    let is_list = exchange.is_some_and(|exchange| exchange.operation == Operation::Models);
    u64::from(!is_list)
}

/// The address, as far as one caller is given it.
struct Address(ClientAddress);

impl ExtractKey for Address {
    fn key<'a>(&self, head: &RequestHead<'a>) -> Option<Key<'a>> {
        Some(self.0.key_of(caller(head)?.address))
    }
}

fn subject<'a>(head: &RequestHead<'a>) -> Option<Key<'a>> {
    caller(head)?.subject()
}

fn not_premium<'a>(head: &RequestHead<'a>) -> Option<Key<'a>> {
    caller(head)
        .filter(|caller| *caller.tier != *PREMIUM)?
        .subject()
}

fn premium<'a>(head: &RequestHead<'a>) -> Option<Key<'a>> {
    caller(head)
        .filter(|caller| *caller.tier == *PREMIUM)?
        .subject()
}

fn api_key<'a>(head: &RequestHead<'a>) -> Option<Key<'a>> {
    caller(head)?.key()
}

/// Not known before the body is.
fn model<'a>(head: &RequestHead<'a>) -> Option<Key<'a>> {
    let tokens: &Tokens = head.extensions.get()?;
    Some(tokens.model.as_bytes().into())
}
