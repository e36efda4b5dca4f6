//! Requests that end as a test says.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use palisade::classify::{Usage, Verdict};

use crate::{
    config::Config,
    exchange::{Ended, Exchange, Operation},
    identity::Identities,
    record::{Entry, Observe, Observers, Record, Recording},
};

/// How a request ends.
pub(crate) struct Told {
    pub(crate) verdict: Verdict,
    pub(crate) status: StatusCode,
    pub(crate) usage: Option<Usage>,
    pub(crate) first_token: Option<Duration>,
    pub(crate) asks: bool,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            verdict: Verdict::Success,
            status: StatusCode::OK,
            usage: None,
            first_token: None,
            asks: true,
        }
    }
}

/// Tells somebody of a request.
pub(crate) fn tell(to: &Arc<impl Observe + 'static>, told: Told) {
    let mut observers = Observers::default();
    observers.add(to.clone());
    let peer = (Ipv4Addr::LOCALHOST, 4711).into();
    let entry = Entry::new(
        HeaderValue::from_static("r-1"),
        peer,
        Method::POST,
        Uri::from_static("/generate"),
    );
    let entry = Arc::new(entry);
    if told.asks {
        let caller = Identities::new(&Config::default()).unknown(peer, &HeaderMap::new());
        let exchange = Arc::new(Exchange::new(
            Arc::new(caller),
            Operation::Generate,
            entry.since(),
        ));
        exchange.ended(Ended {
            verdict: told.verdict,
            usage: told.usage,
            first_data: told.first_token,
        });
        entry.asks(&exchange);
    }
    let mut recording = Recording::new(entry, observers);
    recording.answered(told.status);
    recording.is_whole();
}

/// The record of such a request.
pub(crate) fn record(told: Told) -> Record {
    #[derive(Default)]
    struct One(std::sync::Mutex<Option<Record>>);

    impl Observe for One {
        fn ended(&self, record: &Record) {
            *self.0.lock().unwrap() = Some(record.clone());
        }
    }

    let one = Arc::new(One::default());
    tell(&one, told);
    one.0.lock().unwrap().take().unwrap()
}
