//! The words for a fault, in one line and in JSON.

use std::{error::Error, fmt, num::NonZero, str::FromStr, time::Duration};

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{AFTER, Fault, Kind, Latency, Target};
use crate::span::{self, Span};

/// Read from one line: the name, then `key=value` after commas.
impl FromStr for Fault {
    type Err = InvalidFault;

    fn from_str(line: &str) -> Result<Self, InvalidFault> {
        let mut parts = line.split(',');
        let name = parts.next().unwrap_or_default();
        let fault = Name::read(name).ok_or_else(|| {
            let names = NAMES.map(Name::word).join(", ");
            InvalidFault::at(1, format!("{name:?} is no fault; there are {names}"))
        })?;
        let mut spec = Spec::new(fault);
        let mut column = name.chars().count() + 2;
        for part in parts {
            spec.read(part)
                .map_err(|what| InvalidFault::at(column, what))?;
            column += part.chars().count() + 1;
        }
        Self::try_from(spec)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        for (key, value) in Spec::from(self.clone()).pairs() {
            write!(f, ",{}={value}", key.replace('_', "-"))?;
        }
        Ok(())
    }
}

/// What is wrong with the words for a fault, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidFault {
    column: Option<usize>,
    what: String,
}

impl InvalidFault {
    pub(super) fn new(what: String) -> Self {
        let column = None;
        Self { column, what }
    }

    fn at(column: usize, what: String) -> Self {
        let column = Some(column);
        Self { column, what }
    }
}

impl fmt::Display for InvalidFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(column) = self.column {
            write!(f, "column {column}: ")?;
        }
        f.write_str(&self.what)
    }
}

impl Error for InvalidFault {}

/// The words for a fault, before they are checked together.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    fault: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delay: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    median: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sigma: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(
        default,
        alias = "retry-after",
        skip_serializing_if = "Option::is_none"
    )]
    retry_after: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<NonZero<u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    every: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    share: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Span>,
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    lasting: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on: Option<Target>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Name {
    Latency,
    Error,
    #[serde(alias = "rate_limit")]
    RateLimit,
    Hang,
    Refuse,
    Reset,
    Stall,
    Drip,
    Malformed,
    #[serde(alias = "content_length")]
    ContentLength,
    Crash,
}

const NAMES: [Name; 11] = [
    Name::Latency,
    Name::Error,
    Name::RateLimit,
    Name::Hang,
    Name::Refuse,
    Name::Reset,
    Name::Stall,
    Name::Drip,
    Name::Malformed,
    Name::ContentLength,
    Name::Crash,
];

/// The index of latencies.
pub(crate) const LATENCY: usize = Name::Latency as usize;

/// The names of all faults, in the order of [`Kind::index`].
pub(crate) const WORDS: [&str; NAMES.len()] = {
    let mut words = [""; NAMES.len()];
    let mut index = 0;
    while index < NAMES.len() {
        words[index] = NAMES[index].word();
        index += 1;
    }
    words
};

impl Name {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Error => "error",
            Self::RateLimit => "rate-limit",
            Self::Hang => "hang",
            Self::Refuse => "refuse",
            Self::Reset => "reset",
            Self::Stall => "stall",
            Self::Drip => "drip",
            Self::Malformed => "malformed",
            Self::ContentLength => "content-length",
            Self::Crash => "crash",
        }
    }

    fn read(word: &str) -> Option<Self> {
        let word = word.trim().replace('_', "-");
        NAMES.into_iter().find(|name| name.word() == word)
    }
}

impl Spec {
    fn new(fault: Name) -> Self {
        Self {
            fault,
            delay: None,
            min: None,
            max: None,
            median: None,
            sigma: None,
            status: None,
            retry_after: None,
            after: None,
            bytes: None,
            every: None,
            by: None,
            share: None,
            from: None,
            lasting: None,
            on: None,
        }
    }

    /// One `key=value`.
    fn read(&mut self, part: &str) -> Result<(), String> {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is not of the form key=value"))?;
        let key = key.trim().replace('-', "_");
        let value = value.trim();
        let invalid = |what: String| format!("{}: {what}", key.replace('_', "-"));
        let number = |kind: &str| invalid(format!("{value:?} is no {kind}"));
        let span = || match span::parse(value) {
            Ok(span) => Ok(Some(Span(span))),
            Err(error) => Err(invalid(error.to_string())),
        };
        let float = || value.parse().map(Some).map_err(|_| number("number"));
        match key.as_str() {
            "delay" => self.delay = span()?,
            "min" => self.min = span()?,
            "max" => self.max = span()?,
            "median" => self.median = span()?,
            "sigma" => self.sigma = float()?,
            "status" => {
                let status = value
                    .parse()
                    .ok()
                    .filter(|status| (400..600).contains(status));
                self.status = Some(status.ok_or_else(|| number("number from 400 to 599"))?);
            }
            "retry_after" => self.retry_after = span()?,
            "after" => self.after = Some(value.parse().map_err(|_| number("whole number"))?),
            "bytes" => {
                let bytes = value.parse().map_err(|_| number("whole number above 0"))?;
                self.bytes = Some(bytes);
            }
            "every" => self.every = span()?,
            "by" => self.by = Some(value.parse().map_err(|_| number("whole number"))?),
            "share" => {
                self.share = float()?.map(checked_share).transpose()?;
            }
            "from" => self.from = span()?,
            "for" => self.lasting = span()?,
            "on" => {
                self.on = Some(match value {
                    "requests" => Target::Requests,
                    "health" => Target::Health,
                    "all" => Target::All,
                    _ => return Err(invalid(format!("{value:?} is not requests, health or all"))),
                });
            }
            _ => return Err(format!("no fault has a key {:?}", key.replace('_', "-"))),
        }
        Ok(())
    }

    /// What is set, but for the name.
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let text = |span: Option<Span>| span.map(|span| span.to_string());
        let on = self.on.map(|on| match on {
            Target::Requests => "requests",
            Target::Health => "health",
            Target::All => "all",
        });
        [
            ("delay", text(self.delay)),
            ("min", text(self.min)),
            ("max", text(self.max)),
            ("median", text(self.median)),
            ("sigma", self.sigma.map(|sigma| sigma.to_string())),
            ("status", self.status.map(|status| status.to_string())),
            ("retry_after", text(self.retry_after)),
            ("after", self.after.map(|after| after.to_string())),
            ("bytes", self.bytes.map(|bytes| bytes.to_string())),
            ("every", text(self.every)),
            ("by", self.by.map(|by| by.to_string())),
            ("share", self.share.map(|share| share.to_string())),
            ("from", text(self.from)),
            ("for", text(self.lasting)),
            ("on", on.map(str::to_owned)),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
    }

    fn latency(&mut self) -> Result<Latency, String> {
        let constant = self.delay.take();
        let uniform = (self.min.take(), self.max.take());
        let normal = (self.median.take(), self.sigma.take());
        match (constant, uniform, normal) {
            (Some(Span(delay)), (None, None), (None, None)) => Ok(Latency::Constant(delay)),
            (None, (Some(Span(min)), Some(Span(max))), (None, None)) if min <= max => {
                Ok(Latency::Uniform { min, max })
            }
            (None, (Some(min), Some(max)), (None, None)) => {
                Err(format!("min {min} is longer than max {max}"))
            }
            (None, (None, None), (Some(Span(median)), Some(sigma)))
                if sigma.is_finite() && sigma >= 0.0 =>
            {
                Ok(Latency::LogNormal { median, sigma })
            }
            (None, (None, None), (Some(_), Some(sigma))) => {
                Err(format!("sigma: {sigma} is no number of at least 0"))
            }
            _ => Err("latency takes either delay, or min and max, or median and sigma".into()),
        }
    }
}

impl TryFrom<Spec> for Fault {
    type Error = InvalidFault;

    fn try_from(mut spec: Spec) -> Result<Self, InvalidFault> {
        let after = spec.after.unwrap_or(AFTER);
        let retry_after = spec.retry_after;
        let kind = match spec.fault {
            Name::Latency => Kind::Latency(spec.latency().map_err(InvalidFault::new)?),
            Name::Error => {
                let status = spec.status.take().unwrap_or(500);
                spec.retry_after = None;
                let status = StatusCode::from_u16(status)
                    .ok()
                    .filter(|status| status.is_client_error() || status.is_server_error())
                    .ok_or_else(|| {
                        InvalidFault::new(format!("status: {status} is not from 400 to 599"))
                    })?;
                let retry_after = retry_after.map(|Span(span)| span);
                Kind::Error {
                    status,
                    retry_after,
                }
            }
            Name::RateLimit => {
                spec.retry_after = None;
                let retry_after = retry_after.map_or(Duration::from_secs(1), |Span(span)| span);
                Kind::RateLimit { retry_after }
            }
            Name::Hang => Kind::Hang,
            Name::Refuse => Kind::Refuse,
            Name::Reset => {
                spec.after = None;
                Kind::Reset { after }
            }
            Name::Stall => {
                spec.after = None;
                Kind::Stall { after }
            }
            Name::Drip => Kind::Drip {
                bytes: spec.bytes.take().unwrap_or(NonZero::<u32>::MIN),
                every: spec
                    .every
                    .take()
                    .map_or(Duration::from_millis(100), |Span(every)| every),
            },
            Name::Malformed => {
                spec.after = None;
                Kind::Malformed { after }
            }
            Name::ContentLength => match spec.by.take().unwrap_or(16) {
                0 => return Err(InvalidFault::new("by: 0 would be the right length".into())),
                by => Kind::ContentLength { by },
            },
            Name::Crash => Kind::Crash,
        };
        let share = spec.share.take().unwrap_or(1.0);
        let fault = Self {
            share: checked_share(share).map_err(InvalidFault::new)?,
            from: spec.from.take().map_or(Duration::ZERO, |Span(from)| from),
            lasting: spec.lasting.take().map(|Span(lasting)| lasting),
            on: match kind {
                // Strikes connections, which have no path.
                Kind::Refuse => Target::All,
                _ => spec.on.take().unwrap_or_default(),
            },
            kind,
        };
        match spec.pairs().first() {
            Some((key, _)) => {
                let (key, name) = (key.replace('_', "-"), fault.name());
                Err(InvalidFault::new(format!("{name} has no key {key:?}")))
            }
            None => Ok(fault),
        }
    }
}

impl From<Fault> for Spec {
    fn from(fault: Fault) -> Self {
        let mut spec = Self::new(fault.kind.name());
        match fault.kind {
            Kind::Latency(Latency::Constant(delay)) => spec.delay = Some(Span(delay)),
            Kind::Latency(Latency::Uniform { min, max }) => {
                (spec.min, spec.max) = (Some(Span(min)), Some(Span(max)));
            }
            Kind::Latency(Latency::LogNormal { median, sigma }) => {
                (spec.median, spec.sigma) = (Some(Span(median)), Some(sigma));
            }
            Kind::Error {
                status,
                retry_after,
            } => {
                spec.status = Some(status.as_u16());
                spec.retry_after = retry_after.map(Span);
            }
            Kind::RateLimit { retry_after } => spec.retry_after = Some(Span(retry_after)),
            Kind::Reset { after } | Kind::Stall { after } | Kind::Malformed { after } => {
                spec.after = Some(after);
            }
            Kind::Drip { bytes, every } => {
                (spec.bytes, spec.every) = (Some(bytes), Some(Span(every)));
            }
            Kind::ContentLength { by } => spec.by = Some(by),
            Kind::Hang | Kind::Refuse | Kind::Crash => {}
        }
        spec.share = Some(fault.share);
        spec.from = Some(Span(fault.from));
        spec.lasting = fault.lasting.map(Span);
        if spec.fault != Name::Refuse {
            spec.on = Some(fault.on);
        }
        spec
    }
}

pub(super) fn checked_share(share: f64) -> Result<f64, String> {
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err(format!("share: {share} is not from 0 to 1"))
    }
}

#[cfg(test)]
mod tests;
