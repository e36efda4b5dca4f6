use std::{
    net::Ipv4Addr,
    sync::{Mutex, PoisonError},
};

use http_body_util::{BodyExt, Full};
use palisade::BoxError;

use super::*;
use crate::{config::Config, exchange::Ended, identity::Identities};

#[derive(Default)]
struct All(Mutex<Vec<Record>>);

impl Observe for All {
    fn ended(&self, record: &Record) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(record.clone());
    }
}

fn peer() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 4711).into()
}

fn entry(path: &'static str) -> Arc<Entry> {
    let uri = Uri::from_static(path);
    let id = HeaderValue::from_static("r-1");
    Arc::new(Entry::new(id, peer(), Method::POST, uri))
}

fn exchange() -> Arc<Exchange> {
    let identities = Identities::new(&Config::default());
    let caller = identities.unknown(peer(), &http::HeaderMap::new());
    Arc::new(Exchange::new(
        Arc::new(caller),
        Operation::Chat,
        time::now(),
    ))
}

/// The only record of what this does with a request.
fn one(entry: &Arc<Entry>, request: impl FnOnce(Recording)) -> Record {
    let all = Arc::new(All::default());
    let mut observers = Observers::default();
    observers.add(all.clone());
    request(Recording::new(entry.clone(), observers));
    let mut all = all.0.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn read<B: Body<Data = Bytes, Error: fmt::Debug> + Unpin>(mut body: B) {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    while let Poll::Ready(Some(frame)) = Pin::new(&mut body).poll_frame(&mut cx) {
        frame.unwrap();
    }
}

fn ends(verdict: Verdict) -> Ended {
    Ended {
        verdict,
        usage: None,
        first_data: Some(Duration::from_millis(5)),
    }
}

#[test]
fn an_answer_that_was_read_is_a_success_and_one_that_was_dropped_is_canceled() {
    let answered = |read_it: bool| {
        one(&entry("/health"), |mut recording| {
            recording.answered(StatusCode::OK);
            let body = Recorded::new(Full::from("all of it"), recording);
            if read_it {
                read(body);
            }
        })
    };
    let read = answered(true);
    assert_eq!((read.verdict, read.why), (Verdict::Success, None));
    assert_eq!((read.operation, read.reason), (None, None));
    let dropped = answered(false);
    assert_eq!(dropped.verdict, Verdict::Canceled);
    assert_eq!(dropped.why.unwrap(), "the caller left before the end");
}

#[test]
fn an_answer_without_a_body_is_over_at_once() {
    let record = one(&entry("/health"), |mut recording| {
        recording.answered(StatusCode::OK);
        drop(Recorded::new(Full::<Bytes>::default(), recording));
    });
    assert_eq!(record.verdict, Verdict::Success);
}

#[test]
fn whoever_leaves_before_an_answer_has_status_499() {
    let record = one(&entry("/generate"), drop);
    assert_eq!(record.status.as_u16(), 499);
    assert_eq!(record.verdict, Verdict::Canceled);
    assert_eq!(record.reason, Some("canceled"));
}

#[test]
fn what_the_gateway_says_against_a_request_is_kept_with_its_code() {
    let record = one(&entry("/generate"), |mut recording| {
        let error = ApiError::bad_request("`prompt` is empty");
        recording.failed(&error);
        recording.answered(error.status());
    });
    assert_eq!(record.verdict, Verdict::CallerFault);
    assert_eq!(record.reason, Some("invalid_request"));
    assert_eq!(record.why.unwrap(), "`prompt` is empty");
}

#[test]
fn a_refusal_names_its_reason_and_its_rule() {
    let entry = entry("/v1/chat/completions");
    let exchange = exchange();
    entry.asks(&exchange);
    let error: BoxError = Rejected::new(Reason::Overloaded, "too much").into();
    exchange.because(Cause::of_error(&error));
    let record = one(&entry, |mut recording| {
        recording.answered(StatusCode::SERVICE_UNAVAILABLE);
    });
    assert_eq!(record.verdict, Verdict::Refused(Reason::Overloaded));
    assert_eq!(record.reason, Some("overloaded"));
    assert_eq!(record.why.unwrap(), "too much");
    assert_eq!(record.caller.unwrap().shown(), "ip:127.0.0.1");
    assert_eq!(record.operation, Some(Operation::Chat));
}

#[test]
fn the_layers_have_the_last_word_about_how_it_ended() {
    for (verdict, expected) in [
        (Verdict::Success, Verdict::Success),
        (Verdict::Canceled, Verdict::Canceled),
        (Verdict::TimedOut, Verdict::TimedOut),
    ] {
        let entry = entry("/v1/chat/completions");
        let exchange = exchange();
        entry.asks(&exchange);
        exchange.ended(ends(verdict));
        let record = one(&entry, |mut recording| {
            recording.answered(StatusCode::OK);
        });
        assert_eq!(record.verdict, expected);
        assert_eq!(record.why.is_none(), expected == Verdict::Success);
    }
}

#[test]
fn a_good_answer_of_a_backend_that_the_gateway_cannot_pass_on_is_a_failure() {
    let entry = entry("/generate");
    let exchange = exchange();
    entry.asks(&exchange);
    exchange.ended(ends(Verdict::Success));
    exchange.because(Cause::of_answer(&ApiError::bad_gateway("without a text")));
    let record = one(&entry, |mut recording| {
        recording.answered(StatusCode::BAD_GATEWAY);
    });
    assert_eq!(record.verdict, Verdict::Failure);
    assert_eq!(record.why.unwrap(), "without a text");
}

#[test]
fn guards_inside_the_body_settle_before_the_record_is_made() {
    struct Inside(Arc<Exchange>);
    impl Drop for Inside {
        fn drop(&mut self) {
            self.0.ended(ends(Verdict::Canceled));
        }
    }
    let entry = entry("/v1/chat/completions");
    let exchange = exchange();
    entry.asks(&exchange);
    let record = one(&entry, |mut recording| {
        recording.answered(StatusCode::OK);
        let inside = Inside(exchange.clone());
        let body = Full::from("x").map_frame(move |frame: Frame<Bytes>| {
            let _held = &inside;
            frame
        });
        drop(Recorded::new(body, recording));
    });
    assert_eq!(record.verdict, Verdict::Canceled);
    assert_eq!(exchange.end().unwrap().verdict, Verdict::Canceled);
}

#[test]
fn a_batch_is_told_apart_from_what_came_in_it() {
    let whole = entry("/generate/batch");
    let exchange = exchange();
    whole.asks(&exchange);
    exchange.becomes_batch();
    let item = whole.item(HeaderValue::from_static("r-1-0"), self::exchange());
    let item = one(&Arc::new(item), drop);
    assert_eq!((item.part, item.id), (Part::Item, "r-1-0".parse().unwrap()));
    assert_eq!(one(&whole, drop).part, Part::Batch);
}

#[test]
fn an_identifier_in_a_path_is_not_told() {
    for (path, shown) in [
        ("/rate-limits/api_key:secret", "/rate-limits/"),
        (
            "/admin/reset-rate-limit/api_key:s",
            "/admin/reset-rate-limit/",
        ),
        ("/v1/models/m", "/v1/models/m"),
    ] {
        assert_eq!(one(&entry(path), drop).path(), shown);
    }
}

#[test]
fn a_sentence_that_repeats_what_the_caller_has_sent_is_bounded() {
    let sent = "\u{e9}".repeat(100_000);
    let entry = entry("/v1/chat/completions");
    let error = ApiError::bad_request(sent.clone());
    let record = one(&entry, |mut recording| {
        recording.failed(&error);
        recording.answered(error.status());
    });
    assert_eq!(record.why.unwrap(), sent[..LONGEST_WHY]);
    for error in [BoxError::from(sent.clone()), format!("a{sent}").into()] {
        let why = Cause::of_error(&error).why;
        assert!(matches!(why.len(), 1023 | 1024), "{}", why.len());
    }
}

#[test]
fn what_the_gateway_itself_took_is_known_when_a_request_is_told() {
    use crate::metrics::{Measured, Meters, Overhead};

    let entry = entry("/generate");
    entry.asks(&exchange());
    let meters = Arc::new(Meters::new(&Config::default()));
    let record = one(&entry, |mut recording| {
        recording.answered(StatusCode::OK);
        let mut overhead = Overhead::new(meters, entry.clone());
        overhead.answered(StatusCode::OK);
        let body = Recorded::new(Full::new(Bytes::from("ok")), recording);
        drop(Measured::new(body, overhead));
    });
    assert!(record.own.is_some());
    // Nothing is known of one that nobody has measured.
    let entry = self::entry("/generate");
    assert_eq!(one(&entry, drop).own, None);
}
