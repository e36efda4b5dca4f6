//! When a server asks to be asked again.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, header::RETRY_AFTER};

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The delay that an HTTP answer asks for: `retry-after-ms`, or `Retry-After` in seconds or as a date.
///
/// All three forms of dates are read, against `now`; one that is past is no delay at all, which is zero. A number that
/// no clock can hold is the longest there is, and not nothing.
///
/// ```
/// # use std::time::{Duration, SystemTime};
/// use palisade_core::retry_after::retry_after;
///
/// let mut headers = http::HeaderMap::new();
/// headers.insert("retry-after", "Thu, 01 Jan 1970 00:01:30 GMT".parse()?);
/// let delay = retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(60));
/// assert_eq!(delay, Some(Duration::from_secs(30)));
/// # Ok::<(), http::header::InvalidHeaderValue>(())
/// ```
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if let Some(millis) = text(headers, &RETRY_AFTER_MS).and_then(digits) {
        return Some(Duration::from_millis(millis));
    }
    let value = text(headers, &RETRY_AFTER)?;
    if let Some(seconds) = digits(value) {
        return Some(Duration::from_secs(seconds));
    }
    let date = date(value, now)?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// RFC 9110 has digits and nothing else: no sign, no fraction.
fn digits(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn date(text: &str, now: SystemTime) -> Option<SystemTime> {
    match of_two_digits(text, now) {
        Some(date) => httpdate::parse_http_date(&date).ok(),
        None => httpdate::parse_http_date(text).ok(),
    }
}

/// A date of RFC 850 with its year in full. RFC 9110, 5.6.7: of those that two digits may mean, the latest that is no
/// more than fifty years ahead.
fn of_two_digits(text: &str, now: SystemTime) -> Option<String> {
    let (day, rest) = text.split_once(", ")?;
    let (date, time) = rest.split_once(' ')?;
    let [date, month, year] = date.split('-').collect::<Vec<_>>().try_into().ok()?;
    let year = digits(year).filter(|_| year.len() == 2)?;
    let today = httpdate::fmt_http_date(now);
    let latest = digits(today.get(12..16)?)? + 50;
    let year = latest - (latest - year) % 100;
    Some(format!("{}, {date} {month} {year} {time}", day.get(..3)?))
}

/// What a gRPC server says about another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Not before this long.
    After(Duration),
    /// Not at all.
    Never,
}

impl Pushback {
    /// The delay, unless there should be no other attempt.
    pub fn delay(self) -> Option<Duration> {
        match self {
            Self::After(delay) => Some(delay),
            Self::Never => None,
        }
    }
}

/// What `grpc-retry-pushback-ms` says: a value that is negative or no number asks not to retry, and so do several.
pub fn pushback(headers: &HeaderMap) -> Option<Pushback> {
    let mut values = headers.get_all(GRPC_PUSHBACK).iter();
    let value = values.next()?;
    let only = values.next().is_none().then_some(value);
    let text = only.and_then(|value| value.to_str().ok());
    let millis = text.and_then(|value| digits(value.trim()));
    Some(millis.map_or(Pushback::Never, |millis| {
        Pushback::After(Duration::from_millis(millis))
    }))
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        [(HeaderName::from_static(name), value.parse().unwrap())]
            .into_iter()
            .collect()
    }

    #[test]
    fn all_three_dates_of_http_are_read() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 10);
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            let delay = retry_after(&headers("retry-after", date), now);
            assert_eq!(delay, Some(Duration::from_secs(10)), "{date}");
        }
    }

    #[test]
    fn a_year_of_two_digits_is_no_more_than_fifty_years_ahead() {
        const YEAR: u64 = 31_557_600;
        // The first hours of 2026.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(56 * YEAR);
        for (date, years) in [
            ("Tuesday, 06-Jan-26 00:00:00 GMT", 0),
            ("Tuesday, 01-Jan-36 00:00:00 GMT", 10),
            ("Tuesday, 01-Jan-75 00:00:00 GMT", 49),
            ("Friday, 01-Jan-99 00:00:00 GMT", 0),
            // Four digits mean what they say.
            ("Mon, 01 Jan 2120 00:00:00 GMT", 94),
        ] {
            let delay = retry_after(&headers("retry-after", date), now).expect(date);
            let whole = (delay.as_secs() + YEAR / 2) / YEAR;
            assert_eq!(whole, years, "{date}: {delay:?}");
        }
    }

    #[test]
    fn a_number_that_no_clock_can_hold_is_the_longest_delay() {
        for name in ["retry-after", "retry-after-ms"] {
            let delay = retry_after(
                &headers(name, "99999999999999999999999"),
                SystemTime::UNIX_EPOCH,
            );
            assert!(delay.unwrap() >= Duration::from_millis(u64::MAX), "{name}");
        }
    }

    #[test]
    fn nonsense_is_no_delay() {
        for text in [
            "",
            "-1",
            "+1",
            "soon",
            "1.5",
            "1 2",
            "0x10",
            "Sun, 99 Nov 1994 08:49:37 GMT",
        ] {
            let delay = retry_after(&headers("retry-after", text), SystemTime::UNIX_EPOCH);
            assert_eq!(delay, None, "{text}");
        }
    }

    #[test]
    fn a_pushback_that_is_not_a_number_of_milliseconds_asks_not_to_retry() {
        for (text, says) in [
            ("250", Pushback::After(Duration::from_millis(250))),
            ("-1", Pushback::Never),
            ("+5", Pushback::Never),
            ("", Pushback::Never),
            ("later", Pushback::Never),
        ] {
            assert_eq!(
                pushback(&headers("grpc-retry-pushback-ms", text)),
                Some(says)
            );
        }
    }

    #[test]
    fn a_pushback_that_is_said_twice_asks_not_to_retry() {
        let mut headers = headers("grpc-retry-pushback-ms", "250");
        headers.append(GRPC_PUSHBACK, "500".parse().unwrap());
        assert_eq!(pushback(&headers), Some(Pushback::Never));
    }
}
