//! What callers are told about their quotas: the one place that knows the names and the syntax of
//! `draft-ietf-httpapi-ratelimit-headers-11`.

use std::{cmp::Reverse, fmt, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    limits::Limit,
    meter::Standing,
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
    policy: Option<HeaderValue>,
}

impl Writer {
    pub(crate) fn new(limits: &[Limit]) -> Self {
        let policy = (!limits.is_empty()).then(|| text(|to| write_policy(to, limits)));
        // The first clone of a value allocates what all clones share.
        let policy = policy.inspect(|policy| drop(policy.clone()));
        Self { policy }
    }

    pub(crate) fn write_policy(&self, headers: &mut HeaderMap) {
        if let Some(policy) = &self.policy {
            // Beside what a limit further in has said: both fields are lists.
            headers.append(POLICY, policy.clone());
        }
    }

    /// `delay` is what a refusal names: no effective window may end later.
    pub(crate) fn write<'a>(
        &self,
        applying: impl Iterator<Item = (&'a Limit, Standing)>,
        delay: Option<Duration>,
        headers: &mut HeaderMap,
    ) {
        self.write_policy(headers);
        let mut standings = [None; Rule::MOST];
        let mut many = 0;
        for (place, standing) in standings.iter_mut().zip(applying) {
            *place = Some(standing);
            many += 1;
        }
        let standings = &mut standings[..many];
        // So few are sorted where they are.
        standings
            .sort_by_key(|standing| standing.map(|(limit, standing)| strain(limit, &standing)));
        if many > 0 {
            headers.append(LIMIT, text(|to| write_standings(to, standings, delay)));
        }
    }
}

/// The longest wait first, then the smallest share that is left.
fn strain(limit: &Limit, standing: &Standing) -> (Reverse<u64>, u128) {
    let left = u128::from(standing.remaining) << 64;
    (
        Reverse(standing.retry_after),
        left / u128::from(limit.holds().max(1)),
    )
}

fn write_policy(to: &mut dyn fmt::Write, limits: &[Limit]) -> fmt::Result {
    for (index, limit) in limits.iter().enumerate() {
        let Rule { name, quota, .. } = &limit.rule;
        separate(to, index)?;
        write!(to, "\"{name}\";q={}", quota.limit())?;
        // The field knows whole seconds only.
        if quota.window().subsec_nanos() == 0 {
            write!(to, ";w={}", quota.window().as_secs())?;
        }
        if limit.rule.strategy == Strategy::TokenBucket && limit.holds() != quota.limit() {
            write!(to, ";palisade-burst={}", limit.holds())?;
        }
    }
    Ok(())
}

fn write_standings(
    to: &mut dyn fmt::Write,
    standings: &[Option<(&Limit, Standing)>],
    delay: Option<Duration>,
) -> fmt::Result {
    for (index, (limit, standing)) in standings.iter().flatten().enumerate() {
        separate(to, index)?;
        let mut window = effective_window(limit, standing);
        if let Some(delay) = delay {
            window = window.min(delay);
        }
        let seconds = window.as_secs() + u64::from(window.subsec_nanos() > 0);
        write!(
            to,
            "\"{}\";r={};t={seconds}",
            limit.rule.name, standing.remaining
        )?;
    }
    Ok(())
}

/// How long the caller should make do with what remains.
///
/// A client divides the one by the other, so that a whole quota with a second left of its window would invite all of
/// it into that second: the share of the window that belongs to what remains is the least. A fixed window gives no
/// more before it ends.
fn effective_window(limit: &Limit, standing: &Standing) -> Duration {
    let Rule {
        quota, strategy, ..
    } = &limit.rule;
    let nanos = match standing.remaining {
        0 => standing.retry_after,
        remaining => {
            let paced = u128::from(remaining) * u128::from(quota.nanos())
                / u128::from(quota.limit().max(1));
            let paced = u64::try_from(paced).unwrap_or(u64::MAX);
            match strategy {
                Strategy::FixedWindow => paced.max(standing.reset_after),
                Strategy::TokenBucket | Strategy::SlidingWindow => paced,
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
