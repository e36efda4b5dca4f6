//! What the headers of an answer tell of quotas: the one place that knows their names.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{
    HeaderMap, HeaderName,
    header::{AGE, DATE},
};
use palisade_core::{retry_after::retry_after, time::wall_clock};

use super::{
    fields::{self, Bare, Item},
    known::{At, LONGEST, QuotaUnit, Refill, SECOND, nanos},
    when,
};

/// Quotas that are read from one answer, and kept of one key.
pub(super) const MOST: usize = 16;

/// Members of the field that are looked up among the policies: a service that sends thousands of both is not worth the
/// time that it would take to hold each against each.
const LOOKED_AT: usize = 2 * MOST;

const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Which of its quotas GitHub tells of.
const RESOURCE: HeaderName = HeaderName::from_static("x-ratelimit-resource");

/// How one quota stands, as one answer tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Told<'a> {
    pub(super) policy: Name<'a>,
    pub(super) partition: Option<&'a str>,
    pub(super) unit: QuotaUnit,
    pub(super) refill: Refill,
    pub(super) remaining: u64,
    pub(super) limit: Option<u64>,
    pub(super) window: Option<At>,
    /// From when the answer was written until there is more; of a quota that refills evenly, until there is all.
    pub(super) reset: At,
}

/// The name of a policy, with the escapes that it has in the header.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Name<'a>(&'a str);

impl Name<'_> {
    #[cfg(test)]
    pub(super) fn new(name: &'static str) -> Self {
        Self(name)
    }

    pub(super) fn is(self, name: &str) -> bool {
        fields::says(self.0, name)
    }

    pub(super) fn keep(self) -> Arc<str> {
        fields::unescaped(self.0).collect::<String>().into()
    }
}

/// All that one answer tells.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Reading<'a> {
    quotas: [Option<Told<'a>>; MOST],
    many: usize,
    pub(super) retry_after: Option<At>,
}

impl<'a> Reading<'a> {
    /// Of an answer that a cache has kept, nothing: it tells of another time.
    pub(super) fn of(headers: &'a HeaderMap) -> Self {
        let mut reading = Self::default();
        let families = Families::of(headers);
        let cached = || {
            text(headers, &AGE)
                .and_then(count)
                .is_some_and(|age| age > 0)
        };
        if families == Families::default() || cached() {
            return reading;
        }
        // Dates are those of the service's clock, and so is what tells the present.
        let present = || {
            let date = text(headers, &DATE).and_then(|date| httpdate::parse_http_date(date).ok());
            date.unwrap_or_else(wall_clock)
        };
        if families.draft {
            reading.standard(headers);
        }
        // Who sends the standard field sends older ones with the same numbers.
        let older = if reading.many == 0 { &OLDER[..] } else { &[] };
        if let Some(family) = older.iter().find(|family| family.is_in(headers)) {
            reading.family(family, headers, present);
        }
        let openai = OPENAI.iter().filter(|_| families.x);
        for family in openai.chain(ANTHROPIC.iter().filter(|_| families.anthropic)) {
            reading.family(family, headers, present);
        }
        if families.retry_after {
            reading.retry_after = retry_after(headers, present()).map(nanos);
        }
        reading
    }

    pub(super) fn quotas(&self) -> impl Iterator<Item = &Told<'a>> {
        self.quotas.iter().flatten()
    }

    #[cfg(test)]
    pub(super) fn with(told: Told<'a>) -> Self {
        let mut reading = Self::default();
        reading.push(told);
        reading
    }

    fn push(&mut self, told: Told<'a>) {
        if let Some(place) = self.quotas.get_mut(self.many) {
            *place = Some(told);
            self.many += 1;
        }
    }

    /// `RateLimit` of `draft-ietf-httpapi-ratelimit-headers`: a list since version 08, a dictionary in 07.
    fn standard(&mut self, headers: &'a HeaderMap) {
        let mut members = 0;
        for line in lines(headers, &LIMIT) {
            let list = fields::list(line, |item| {
                members += 1;
                if members <= LOOKED_AT
                    && let Some(told) = standing(item, headers)
                {
                    self.push(told);
                }
            });
            if list.is_none() {
                self.dictionary(line);
            }
        }
    }

    fn dictionary(&mut self, line: &'a str) {
        let (mut limit, mut remaining, mut reset) = (None, None, None);
        let read = fields::dictionary(line, |key, item| {
            let number = match item.value {
                Bare::Integer(number) => u64::try_from(number).ok(),
                _ => None,
            };
            match key {
                "limit" => limit = number,
                "remaining" => remaining = number,
                "reset" => reset = number,
                _ => {}
            }
        });
        if let (Some(()), Some(remaining), Some(reset)) = (read, remaining, reset) {
            self.push(Told {
                policy: Name("ratelimit"),
                partition: None,
                unit: QuotaUnit::Requests,
                refill: Refill::AtReset,
                remaining,
                limit,
                window: None,
                reset: seconds(reset),
            });
        }
    }

    fn family(
        &mut self,
        family: &Family,
        headers: &'a HeaderMap,
        present: impl Fn() -> SystemTime,
    ) {
        let remaining = text(headers, &family.remaining).and_then(count);
        let reset = text(headers, &family.reset).and_then(|text| when::delay(text, present));
        if let (Some(remaining), Some(reset)) = (remaining, reset) {
            self.push(Told {
                policy: Name(family.policy),
                partition: text(headers, &RESOURCE).filter(|_| family.has_resources),
                unit: family.unit,
                refill: family.refill,
                remaining,
                limit: text(headers, &family.limit).and_then(count),
                window: None,
                reset: nanos(reset),
            });
        }
    }
}

fn standing<'a>(item: Item<'a>, headers: &'a HeaderMap) -> Option<Told<'a>> {
    let policy = name(&item)?;
    let partition = partition(&item);
    let remaining = item.count("r")?;
    let mut limit = item.count("q");
    let mut window = item.count("w");
    let mut unit = None;
    for line in lines(headers, &POLICY) {
        // What is malformed says nothing.
        let _ = fields::list(line, |described| {
            let same = name(&described) == Some(policy);
            if same && self::partition(&described).is_none_or(|other| partition == Some(other)) {
                limit = limit.or(described.count("q"));
                window = window.or(described.count("w"));
                unit = unit
                    .or(described.get("qu"))
                    .or(described.get("palisade-unit"));
            }
        });
    }
    let unit = match unit {
        // Places, not a count over time: each end of a request frees one.
        Some(Bare::Text("concurrent-requests")) => return None,
        Some(Bare::Text("tokens")) => QuotaUnit::Tokens,
        None if policy.0.contains("token") => QuotaUnit::Tokens,
        _ => QuotaUnit::Requests,
    };
    let window = window.filter(|window| *window > 0).map(seconds);
    let reset = match item.get("t") {
        Some(Bare::Integer(reset)) => seconds(u64::try_from(reset).ok()?),
        Some(Bare::Decimal(reset)) => nanos(Duration::from_millis(reset.try_into().ok()?)),
        // At the end of the window at the latest.
        None => window?,
        Some(_) => return None,
    };
    Some(Told {
        policy,
        partition,
        unit,
        refill: Refill::AtReset,
        remaining,
        limit,
        window,
        reset,
    })
}

/// Which headers there are at all: most answers have none, and looking for each by its name would take a microsecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Families {
    draft: bool,
    x: bool,
    anthropic: bool,
    retry_after: bool,
}

impl Families {
    fn of(headers: &HeaderMap) -> Self {
        let mut families = Self::default();
        for name in headers.keys().map(HeaderName::as_str) {
            families.draft |= name.starts_with("ratelimit");
            families.x |= name.starts_with("x-rate");
            families.anthropic |= name.starts_with("anthropic-ratelimit");
            families.retry_after |= name.starts_with("retry-after");
        }
        families
    }
}

/// A string, as the draft has it, or a token, as its versions 08 and 09 have.
fn name<'a>(item: &Item<'a>) -> Option<Name<'a>> {
    match item.value {
        Bare::Text(name) | Bare::Token(name) => Some(Name(name)),
        _ => None,
    }
}

fn partition<'a>(item: &Item<'a>) -> Option<&'a str> {
    match item.get("pk")? {
        Bare::Bytes(key) | Bare::Text(key) | Bare::Token(key) => Some(key),
        _ => None,
    }
}

/// Three headers that tell of one quota.
struct Family {
    policy: &'static str,
    limit: HeaderName,
    remaining: HeaderName,
    reset: HeaderName,
    unit: QuotaUnit,
    refill: Refill,
    has_resources: bool,
}

impl Family {
    const fn at_reset(policy: &'static str, names: [&'static str; 3]) -> Self {
        Self::new(policy, names, QuotaUnit::Requests, Refill::AtReset)
    }

    const fn new(
        policy: &'static str,
        [limit, remaining, reset]: [&'static str; 3],
        unit: QuotaUnit,
        refill: Refill,
    ) -> Self {
        Self {
            policy,
            limit: HeaderName::from_static(limit),
            remaining: HeaderName::from_static(remaining),
            reset: HeaderName::from_static(reset),
            unit,
            refill,
            has_resources: matches!(refill, Refill::AtReset),
        }
    }

    fn is_in(&self, headers: &HeaderMap) -> bool {
        headers.contains_key(&self.remaining)
    }
}

/// Of one answer only the first of these counts: they tell of the same quota.
static OLDER: [Family; 3] = [
    // The draft up to version 06.
    Family::at_reset(
        "ratelimit",
        ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"],
    ),
    Family::at_reset(
        "x-ratelimit",
        [
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
        ],
    ),
    Family::at_reset(
        "x-rate-limit",
        [
            "x-rate-limit-limit",
            "x-rate-limit-remaining",
            "x-rate-limit-reset",
        ],
    ),
];

/// OpenAI's resets say when all is back, and it comes back evenly until then.
static OPENAI: [Family; 2] = [
    Family::new(
        "x-ratelimit-requests",
        [
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
        ],
        QuotaUnit::Requests,
        Refill::Evenly,
    ),
    Family::new(
        "x-ratelimit-tokens",
        [
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
        ],
        QuotaUnit::Tokens,
        Refill::Evenly,
    ),
];

/// Anthropic's say the same.
static ANTHROPIC: [Family; 4] = [
    Family::new(
        "anthropic-ratelimit-requests",
        [
            "anthropic-ratelimit-requests-limit",
            "anthropic-ratelimit-requests-remaining",
            "anthropic-ratelimit-requests-reset",
        ],
        QuotaUnit::Requests,
        Refill::Evenly,
    ),
    Family::new(
        "anthropic-ratelimit-tokens",
        [
            "anthropic-ratelimit-tokens-limit",
            "anthropic-ratelimit-tokens-remaining",
            "anthropic-ratelimit-tokens-reset",
        ],
        QuotaUnit::Tokens,
        Refill::Evenly,
    ),
    Family::new(
        "anthropic-ratelimit-input-tokens",
        [
            "anthropic-ratelimit-input-tokens-limit",
            "anthropic-ratelimit-input-tokens-remaining",
            "anthropic-ratelimit-input-tokens-reset",
        ],
        QuotaUnit::Tokens,
        Refill::Evenly,
    ),
    Family::new(
        "anthropic-ratelimit-output-tokens",
        [
            "anthropic-ratelimit-output-tokens-limit",
            "anthropic-ratelimit-output-tokens-remaining",
            "anthropic-ratelimit-output-tokens-reset",
        ],
        QuotaUnit::Tokens,
        Refill::Evenly,
    ),
];

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok())
}

/// The first number of a header: some add their windows to it, some a fraction that says nothing.
fn count(text: &str) -> Option<u64> {
    let first = text.split([',', ';']).next()?.trim();
    let (whole, fraction) = first.split_once('.').unwrap_or((first, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(whole) && digits(fraction)).then(|| whole.parse().ok())?
}

fn seconds(seconds: u64) -> At {
    let longest = (LONGEST / SECOND) as u64;
    seconds.min(longest) as At * SECOND
}

#[cfg(test)]
mod tests;
