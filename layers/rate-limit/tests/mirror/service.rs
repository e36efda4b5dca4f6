//! A service with a limit of 100 a minute.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use palisade_core::time::{now, to_wall_clock};
use tokio::time::{Instant, sleep};
use tower::{Service, service_fn};

pub(crate) const LIMIT: u64 = 100;
const WINDOW: u64 = 60;

/// How it says what is left.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Says {
    Standard,
    Triple,
    /// With the date of its reset.
    Epoch,
    /// Only by refusing: with seconds, or one of the three dates of HTTP.
    RetryAfter,
    HttpDate,
    OldDate,
    CDate,
}

#[derive(Clone)]
pub(crate) struct Counts(Arc<Mutex<Counted>>);

struct Counted {
    says: Says,
    /// How wrong its clock is.
    ahead: Duration,
    began: Instant,
    window: u64,
    used: u64,
    passed: u64,
    refused: u64,
}

impl Counts {
    pub(crate) fn new(says: Says) -> Self {
        Self(Arc::new(Mutex::new(Counted {
            says,
            ahead: Duration::ZERO,
            // Windows that turn 20 s after the start.
            began: now() - Duration::from_secs(40),
            window: 0,
            used: 0,
            passed: 0,
            refused: 0,
        })))
    }

    pub(crate) fn clock_ahead(self, ahead: Duration) -> Self {
        self.0.lock().unwrap().ahead = ahead;
        self
    }

    pub(crate) fn passed(&self) -> u64 {
        self.0.lock().unwrap().passed
    }

    pub(crate) fn refused(&self) -> u64 {
        self.0.lock().unwrap().refused
    }

    /// 50 ms away, both ways.
    pub(crate) fn service(
        &self,
    ) -> impl Service<
        Request<()>,
        Response = Response<Empty<Bytes>>,
        Error = Infallible,
        Future: Send,
    >
    + Clone
    + Send
    + 'static
    + use<> {
        let counts = self.clone();
        service_fn(move |_: Request<()>| {
            let counts = counts.clone();
            async move {
                sleep(Duration::from_millis(50)).await;
                let answer = counts.count();
                sleep(Duration::from_millis(50)).await;
                Ok(answer)
            }
        })
    }

    fn count(&self) -> Response<Empty<Bytes>> {
        let mut counted = self.0.lock().unwrap();
        let since = now() - counted.began;
        let window = since.as_secs() / WINDOW;
        if counted.window != window {
            counted.window = window;
            counted.used = 0;
        }
        let fits = counted.used < LIMIT;
        if fits {
            counted.used += 1;
            counted.passed += 1;
        } else {
            counted.refused += 1;
        }
        let left = Duration::from_secs((window + 1) * WINDOW) - since;
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        let remaining = LIMIT - counted.used;
        // A clock that is wrong, and that shows whole seconds.
        let present = to_wall_clock(now()) + counted.ahead;
        let reset = present + left + Duration::from_secs(1);
        let epoch = reset
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let date = httpdate::HttpDate::from(reset).to_string();
        let status = if fits {
            StatusCode::OK
        } else {
            StatusCode::TOO_MANY_REQUESTS
        };
        let answer = Response::builder()
            .status(status)
            .header("date", httpdate::HttpDate::from(present).to_string());
        let answer = match counted.says {
            Says::Standard => answer
                .header("ratelimit-policy", r#""minute";q=100;w=60"#)
                .header("ratelimit", format!("\"minute\";r={remaining};t={seconds}")),
            Says::Triple => answer
                .header("ratelimit-limit", LIMIT)
                .header("ratelimit-remaining", remaining)
                .header("ratelimit-reset", seconds),
            Says::Epoch => answer
                .header("x-ratelimit-limit", LIMIT)
                .header("x-ratelimit-remaining", remaining)
                .header("x-ratelimit-reset", epoch),
            _ if fits => answer,
            Says::RetryAfter => answer.header("retry-after", seconds),
            Says::HttpDate => answer.header("retry-after", date),
            Says::OldDate => answer.header("retry-after", rfc850(&date)),
            Says::CDate => answer.header("retry-after", asctime(&date)),
        };
        answer.body(Empty::new()).unwrap()
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as `Sunday, 06-Nov-94 08:49:37 GMT`.
fn rfc850(date: &str) -> String {
    const DAYS: [&str; 7] = [
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
    ];
    let day = DAYS.iter().find(|day| day.starts_with(&date[..3])).unwrap();
    let (of_month, month, year, time) = (&date[5..7], &date[8..11], &date[14..16], &date[17..25]);
    format!("{day}, {of_month}-{month}-{year} {time} GMT")
}

/// The same as `Sun Nov  6 08:49:37 1994`.
fn asctime(date: &str) -> String {
    let day: u8 = date[5..7].parse().unwrap();
    let (weekday, month, year, time) = (&date[..3], &date[8..11], &date[12..16], &date[17..25]);
    format!("{weekday} {month} {day:2} {time} {year}")
}
