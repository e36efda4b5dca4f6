//! Timeouts as headers say them.

use std::{io::Write as _, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};

/// A header that says how long its sender is willing to wait.
///
/// From a name alone: `grpc-timeout` is read as gRPC writes it, a name that ends in `-ms` in milliseconds, such as
/// Envoy's `x-envoy-expected-rq-timeout-ms`, and any other in seconds, such as `x-request-timeout` and
/// `request-timeout`.
///
/// What is malformed says nothing: text, a sign, an exponent, more digits than fit. Zero is a time that has passed
/// already, and what no clock can reach is no limit. Of several values the first counts.
///
/// ```
/// use std::time::Duration;
/// use palisade_deadline::TimeoutHeader;
///
/// let mut headers = http::HeaderMap::new();
/// headers.insert("x-request-timeout-ms", "1500".parse()?);
/// let header = TimeoutHeader::from("x-request-timeout-ms");
/// assert_eq!(header.read(&headers), Some(Duration::from_millis(1500)));
/// # Ok::<(), http::header::InvalidHeaderValue>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeoutHeader {
    name: HeaderName,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Grpc,
    Millis,
    Seconds,
}

impl TimeoutHeader {
    /// `grpc-timeout`: at most eight digits, and one of the units `H`, `M`, `S`, `m`, `u`, `n`.
    pub fn grpc() -> Self {
        Self {
            name: HeaderName::from_static("grpc-timeout"),
            unit: Unit::Grpc,
        }
    }

    /// A whole number of milliseconds.
    pub fn millis(name: HeaderName) -> Self {
        let unit = Unit::Millis;
        Self { name, unit }
    }

    /// A number of seconds, read with its fraction, and written with one below a second.
    pub fn seconds(name: HeaderName) -> Self {
        let unit = Unit::Seconds;
        Self { name, unit }
    }

    /// What the header says, unless it is missing or not a timeout.
    pub fn read(&self, headers: &HeaderMap) -> Option<Duration> {
        let text = headers.get(&self.name)?.to_str().ok()?.trim();
        match self.unit {
            Unit::Grpc => grpc(text),
            Unit::Millis => digits(text).map(Duration::from_millis),
            Unit::Seconds => seconds(text),
        }
    }

    /// Says what is left: rounded down and never up, so that nobody further on waits longer than the sender. Less than a
    /// millisecond is none where milliseconds are counted. Allocates the value, and its place if there was none.
    pub fn write(&self, headers: &mut HeaderMap, remaining: Duration) {
        let mut buffer = [0; 24];
        let mut rest = &mut buffer[..];
        let written = match self.unit {
            Unit::Grpc => {
                let (number, unit) = largest(remaining);
                write!(rest, "{number}{unit}")
            }
            Unit::Millis => write!(rest, "{}", saturating(remaining.as_millis())),
            // A whole second would be more than there is.
            Unit::Seconds if remaining.as_secs() == 0 => {
                write!(rest, "0.{:09}", remaining.subsec_nanos())
            }
            Unit::Seconds => write!(rest, "{}", remaining.as_secs()),
        };
        let length = 24 - rest.len();
        if let (Ok(()), Ok(value)) = (written, HeaderValue::from_bytes(&buffer[..length])) {
            headers.insert(self.name.clone(), value);
        }
    }
}

/// By the name alone.
///
/// # Panics
///
/// If the name is not that of a header in lower case, as [`HeaderName::from_static`] does.
impl From<&'static str> for TimeoutHeader {
    fn from(name: &'static str) -> Self {
        HeaderName::from_static(name).into()
    }
}

/// By the name alone.
impl From<HeaderName> for TimeoutHeader {
    fn from(name: HeaderName) -> Self {
        match name.as_str() {
            "grpc-timeout" => Self::grpc(),
            text if text.ends_with("-ms") => Self::millis(name),
            _ => Self::seconds(name),
        }
    }
}

fn digits(text: &str) -> Option<u64> {
    // `parse` would take a sign.
    let all = text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().ok())?
}

fn seconds(text: &str) -> Option<Duration> {
    // `parse` would take signs, exponents and words.
    let plain = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    let seconds = text.bytes().all(plain).then(|| text.parse().ok())??;
    Duration::try_from_secs_f64(seconds).ok()
}

/// PROTOCOL-HTTP2.md of gRPC: `TimeoutValue` is at most eight digits.
fn grpc(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number = digits(number).filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The largest unit that says it exactly, otherwise the finest, in which eight digits are enough.
fn largest(remaining: Duration) -> (u64, char) {
    const NANOS: [(u128, char); 6] = [
        (3_600_000_000_000, 'H'),
        (60_000_000_000, 'M'),
        (1_000_000_000, 'S'),
        (1_000_000, 'm'),
        (1_000, 'u'),
        (1, 'n'),
    ];
    const MOST: u128 = 99_999_999;

    let nanos = remaining.as_nanos();
    let mut fit = NANOS.iter().filter(|(unit, _)| nanos / unit <= MOST);
    let exact = fit.clone().find(|(unit, _)| nanos.is_multiple_of(*unit));
    let (unit, name) = exact.or(fit.next_back()).unwrap_or(&NANOS[0]);
    (saturating((nanos / unit).min(MOST)), *name)
}

fn saturating(number: u128) -> u64 {
    number.try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(header: &TimeoutHeader, text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(header.name.clone(), text.parse().unwrap());
        header.read(&headers)
    }

    #[test]
    fn all_units_of_grpc_are_read() {
        let grpc = TimeoutHeader::from("grpc-timeout");
        for (text, nanos) in [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("30S", 30_000_000_000),
            ("250m", 250_000_000),
            ("7u", 7_000),
            ("99999999n", 99_999_999),
            ("00000001S", 1_000_000_000),
            ("0S", 0),
        ] {
            assert_eq!(
                read(&grpc, text),
                Some(Duration::from_nanos(nanos)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_a_timeout_of_grpc_is_none() {
        let grpc = TimeoutHeader::grpc();
        for text in [
            "",
            "S",
            "10",
            "1.5S",
            "-1S",
            "+1S",
            "100000000n",
            "1s",
            "1 S",
            "1SS",
        ] {
            assert_eq!(read(&grpc, text), None, "{text}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(
            "grpc-timeout",
            HeaderValue::from_bytes(b"1\xc3\xa9").unwrap(),
        );
        assert_eq!(grpc.read(&headers), None);
        assert_eq!(grpc.read(&HeaderMap::new()), None);
    }

    #[test]
    fn the_name_says_the_unit() {
        let millis = TimeoutHeader::from("x-request-timeout-ms");
        assert_eq!(read(&millis, "1500"), Some(Duration::from_millis(1500)));
        for text in ["1.5", "-1", "+1", "", "18446744073709551616"] {
            assert_eq!(read(&millis, text), None, "{text}");
        }
        let envoy = TimeoutHeader::from("x-envoy-expected-rq-timeout-ms");
        assert_eq!(read(&envoy, "0"), Some(Duration::ZERO));
        assert_eq!(read(&envoy, "15000"), Some(Duration::from_secs(15)));
        let plain = TimeoutHeader::from("request-timeout");
        assert_eq!(read(&plain, "5"), Some(Duration::from_secs(5)));
        let seconds = TimeoutHeader::from("x-request-timeout");
        assert_eq!(read(&seconds, "1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(read(&seconds, " 600 "), Some(Duration::from_secs(600)));
        for text in [
            "-1",
            "+1",
            "NaN",
            "inf",
            "1e3",
            "1e300",
            "soon",
            ".",
            "1.2.3",
            "",
            "99999999999999999999",
        ] {
            assert_eq!(read(&seconds, text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_no_more_and_loses_less_than_one_in_a_thousand(
            // Up to where eight digits of hours end.
            nanos in 1_u64..=u64::MAX,
        ) {
            let remaining = Duration::from_nanos(nanos);
            let mut headers = HeaderMap::new();
            let grpc = TimeoutHeader::grpc();
            grpc.write(&mut headers, remaining);
            let read = grpc.read(&headers).unwrap();
            prop_assert!(read <= remaining);
            prop_assert!(remaining - read <= remaining / 1000);

            let millis = TimeoutHeader::from("timeout-ms");
            millis.write(&mut headers, remaining);
            let read = millis.read(&headers).unwrap();
            prop_assert!(read <= remaining);
            prop_assert!(remaining - read < Duration::from_millis(1));

            let seconds = TimeoutHeader::from("timeout");
            seconds.write(&mut headers, remaining);
            let read = seconds.read(&headers).unwrap();
            prop_assert!(read <= remaining);
            prop_assert!(remaining - read < Duration::from_secs(1));
            prop_assert!(read == remaining || remaining >= Duration::from_secs(1));
        }
    }

    #[test]
    fn the_ends_of_the_range_are_written() {
        for (remaining, text) in [
            (Duration::ZERO, "0H"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_001), "100000u"),
            (Duration::from_millis(100), "100m"),
            (Duration::from_secs(30), "30S"),
            (Duration::from_secs(90), "90S"),
            (Duration::from_secs(3600), "1H"),
            (Duration::new(3600, 1), "3600000m"),
            (Duration::MAX, "99999999H"),
        ] {
            let mut headers = HeaderMap::new();
            TimeoutHeader::grpc().write(&mut headers, remaining);
            assert_eq!(headers["grpc-timeout"], text);
        }
        let mut headers = HeaderMap::new();
        TimeoutHeader::from("timeout").write(&mut headers, Duration::MAX);
        TimeoutHeader::from("timeout-ms").write(&mut headers, Duration::MAX);
        assert_eq!(headers["timeout"], u64::MAX.to_string());
        assert_eq!(headers["timeout-ms"], u64::MAX.to_string());

        let little = Duration::from_micros(900);
        TimeoutHeader::from("timeout").write(&mut headers, little);
        TimeoutHeader::from("timeout-ms").write(&mut headers, little);
        assert_eq!(headers["timeout"], "0.000900000");
        assert_eq!(headers["timeout-ms"], "0");
    }
}
