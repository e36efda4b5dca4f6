//! Spans of time in text: `250ms`, `1.5s`, `2m`.

use std::{error::Error, fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const UNITS: [(&str, f64); 7] = [
    // Longer names first: `s` ends all of them.
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// The span that a text names: a number with `ns`, `us`, `ms`, `s`, `m` or `h`; zero needs no unit.
///
/// ```
/// # use std::time::Duration;
/// assert_eq!(demo_backend::span::parse("1.5s"), Ok(Duration::from_millis(1500)));
/// assert!(demo_backend::span::parse("10").is_err());
/// ```
pub fn parse(text: &str) -> Result<Duration, InvalidSpan> {
    let invalid = || InvalidSpan(text.to_owned());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .ok_or_else(invalid)?;
    if !number.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(invalid());
    }
    let number: f64 = number.parse().map_err(|_| invalid())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| invalid())
}

/// A text that names no span of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidSpan(String);

impl fmt::Display for InvalidSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no span of time such as 250ms, 1.5s or 2m",
            self.0
        )
    }
}

impl Error for InvalidSpan {}

/// A span that is read from text, or from a number of seconds, and written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        match nanos {
            0 => f.write_str("0s"),
            _ if nanos.is_multiple_of(1_000_000_000) => write!(f, "{}s", nanos / 1_000_000_000),
            _ if nanos.is_multiple_of(1_000_000) => write!(f, "{}ms", nanos / 1_000_000),
            _ if nanos.is_multiple_of(1_000) => write!(f, "{}us", nanos / 1_000),
            _ => write!(f, "{nanos}ns"),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a span of time such as \"250ms\", or a number of seconds")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                parse(text).map(Span).map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Span, E> {
                Ok(Span(Duration::from_secs(seconds)))
            }

            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Span, E> {
                Duration::try_from_secs_f64(seconds)
                    .map(Span)
                    .map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spans_are_read_in_all_units() {
        for (text, micros) in [
            ("0", 0),
            ("0s", 0),
            ("7us", 7),
            ("7µs", 7),
            ("2ms", 2_000),
            ("0.25s", 250_000),
            ("2m", 120_000_000),
            ("1h", 3_600_000_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_micros(micros)), "{text}");
        }
    }

    #[test]
    fn what_is_no_span_says_so() {
        for text in [
            "", "s", "10", "-1s", "+1s", "1 s", "1d", "infs", "nans", "1e300h",
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("no span of time"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(micros in 0_u64..1_000_000_000_000) {
            let span = Duration::from_micros(micros);
            let read = parse(&Span(span).to_string()).unwrap();
            // Beyond 2^53 ns a float has no room for the last digits.
            prop_assert!(read.abs_diff(span) < Duration::from_micros(1));
        }
    }
}
