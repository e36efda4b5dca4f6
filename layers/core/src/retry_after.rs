//! When a server asks to be asked again.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, header::RETRY_AFTER};

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The delay that an HTTP answer asks for: `retry-after-ms`, or `Retry-After` in seconds or as a date.
///
/// All three forms of dates are read, against `now`; one that is past is no delay at all, which is zero.
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
    if let Some(millis) = text(headers, &RETRY_AFTER_MS).and_then(|text| text.parse().ok()) {
        return Some(Duration::from_millis(millis));
    }
    let value = text(headers, &RETRY_AFTER)?;
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
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

/// What `grpc-retry-pushback-ms` says: a value that is negative or no number asks not to retry.
pub fn pushback(headers: &HeaderMap) -> Option<Pushback> {
    let value = headers.get(GRPC_PUSHBACK)?;
    let millis = value.to_str().ok().and_then(|value| value.parse().ok());
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
    fn nonsense_is_no_delay() {
        for text in ["", "-1", "soon", "1.5", "99999999999999999999999"] {
            let delay = retry_after(&headers("retry-after", text), SystemTime::UNIX_EPOCH);
            assert_eq!(delay, None, "{text}");
        }
    }

    #[test]
    fn a_pushback_that_is_not_a_number_of_milliseconds_asks_not_to_retry() {
        for (text, says) in [
            ("250", Pushback::After(Duration::from_millis(250))),
            ("-1", Pushback::Never),
            ("later", Pushback::Never),
        ] {
            assert_eq!(
                pushback(&headers("grpc-retry-pushback-ms", text)),
                Some(says)
            );
        }
    }
}
