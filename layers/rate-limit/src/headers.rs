//! What callers are told about their quotas: the one place that knows the names and the syntax of
//! `draft-ietf-httpapi-ratelimit-headers-11`.

use std::{cmp::Reverse, fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    limits::Limit,
    meter::Standing,
    quota::Quota,
    rule::{Rule, Strategy},
};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// What callers are told about their quotas, on answers and refusals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Headers {
    /// `RateLimit-Policy` with all rules, and `RateLimit` with those that the request took from, most constrained
    /// first. Costs one allocation, and what `HeaderMap` needs to hold them.
    #[default]
    Standard,
    /// Nothing, which costs nothing.
    Off,
}

/// Writes the headers of one set of rules.
#[derive(Debug)]
pub(crate) struct Writer {
    /// For who is in no tier.
    policy: ArcSwapOption<HeaderValue>,
}

impl Writer {
    pub(crate) fn new(limits: &[Limit]) -> Self {
        let writer = Self {
            policy: ArcSwapOption::empty(),
        };
        writer.renew(limits);
        writer
    }

    /// Says other quotas from now on.
    pub(crate) fn renew(&self, limits: &[Limit]) {
        let policy = (!limits.is_empty())
            .then(|| text(|to| write_policy(to, limits, &|limit| limit.quota(0))));
        // The first clone of a value allocates what all clones share.
        let policy = policy.inspect(|policy| drop(policy.clone()));
        self.policy.store(policy.map(Arc::new));
    }

    pub(crate) fn write_policy(&self, headers: &mut HeaderMap) {
        if let Some(policy) = &*self.policy.load() {
            // Beside what a limit further in has said: both fields are lists.
            headers.append(POLICY, HeaderValue::clone(policy));
        }
    }

    /// `quota` tells those of a request that is in a tier. `delay` is what a refusal names: no effective window may
    /// end later.
    pub(crate) fn write<'a>(
        &self,
        limits: &[Limit],
        applying: impl Iterator<Item = (&'a Limit, Quota, Standing)>,
        quota: Option<&dyn Fn(&Limit) -> Quota>,
        delay: Option<Duration>,
        headers: &mut HeaderMap,
    ) {
        match quota {
            None => self.write_policy(headers),
            Some(quota) => {
                headers.append(POLICY, text(|to| write_policy(to, limits, quota)));
            }
        }
        let mut standings = [None; Rule::MOST];
        let mut many = 0;
        for (place, standing) in standings.iter_mut().zip(applying) {
            *place = Some(standing);
            many += 1;
        }
        let standings = &mut standings[..many];
        // So few are sorted where they are.
        standings.sort_by_key(|standing| {
            standing.map(|(limit, quota, standing)| strain(limit, quota, &standing))
        });
        if many > 0 {
            headers.append(LIMIT, text(|to| write_standings(to, standings, delay)));
        }
    }
}

/// The longest wait first, then the smallest share that is left.
fn strain(limit: &Limit, quota: Quota, standing: &Standing) -> (Reverse<u64>, u128) {
    let left = u128::from(standing.remaining) << 64;
    (
        Reverse(standing.retry_after),
        left / u128::from(limit.held_by(quota).max(1)),
    )
}

fn write_policy(
    to: &mut dyn fmt::Write,
    limits: &[Limit],
    quota: &dyn Fn(&Limit) -> Quota,
) -> fmt::Result {
    for (index, limit) in limits.iter().enumerate() {
        let (name, quota) = (&limit.rule.name, quota(limit));
        separate(to, index)?;
        write!(to, "\"{name}\";q={}", quota.limit())?;
        if limit.rule.strategy == Strategy::InFlight {
            to.write_str(";qu=\"concurrent-requests\"")?;
            continue;
        }
        // The field knows whole seconds only.
        if quota.window().subsec_nanos() == 0 {
            write!(to, ";w={}", quota.window().as_secs())?;
        }
        if let Some(unit) = limit.rule.unit.name() {
            write!(to, ";palisade-unit=\"{unit}\"")?;
        }
        let holds = limit.held_by(quota);
        if limit.rule.strategy == Strategy::TokenBucket && holds != quota.limit() {
            write!(to, ";palisade-burst={holds}")?;
        }
    }
    Ok(())
}

fn write_standings(
    to: &mut dyn fmt::Write,
    standings: &[Option<(&Limit, Quota, Standing)>],
    delay: Option<Duration>,
) -> fmt::Result {
    for (index, (limit, quota, standing)) in standings.iter().flatten().enumerate() {
        separate(to, index)?;
        write!(to, "\"{}\";r={}", limit.rule.name, standing.remaining)?;
        // Places come back when others end, which nobody knows.
        if limit.rule.strategy == Strategy::InFlight {
            continue;
        }
        let mut window = effective_window(limit, *quota, standing);
        if let Some(delay) = delay {
            window = window.min(delay);
        }
        let seconds = window.as_secs() + u64::from(window.subsec_nanos() > 0);
        write!(to, ";t={seconds}")?;
    }
    Ok(())
}

/// How long the caller should make do with what remains.
///
/// A client divides the one by the other, so that a whole quota with a second left of its window would invite all of
/// it into that second: the share of the window that belongs to what remains is the least. A fixed window gives no
/// more before it ends.
fn effective_window(limit: &Limit, quota: Quota, standing: &Standing) -> Duration {
    let nanos = match standing.remaining {
        0 => standing.retry_after,
        remaining => {
            let paced = u128::from(remaining) * u128::from(quota.nanos())
                / u128::from(quota.limit().max(1));
            let paced = u64::try_from(paced).unwrap_or(u64::MAX);
            match limit.rule.strategy {
                Strategy::FixedWindow => paced.max(standing.reset_after),
                _ => paced,
            }
        }
    };
    Duration::from_nanos(nanos)
}

fn separate(to: &mut dyn fmt::Write, index: usize) -> fmt::Result {
    to.write_str(if index == 0 { "" } else { ", " })
}

/// Written twice, first to see how long it is: one allocation.
fn text(write: impl Fn(&mut dyn fmt::Write) -> fmt::Result) -> HeaderValue {
    let mut length = Length(0);
    let mut text = String::new();
    write(&mut length)
        .and_then(|()| {
            text.reserve_exact(length.0);
            write(&mut text)
        })
        .expect("texts and lengths can always be written");
    HeaderValue::try_from(text).expect("names are checked, and the rest is ASCII")
}

struct Length(usize);

impl fmt::Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}
