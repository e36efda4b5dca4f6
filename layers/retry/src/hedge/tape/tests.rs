use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Wake,
};

use http::HeaderMap;
use http_body_util::{BodyExt, channel::Channel};
use palisade_core::testing::{Step, Steps};
use proptest::prelude::*;

use super::{
    reel::{LEAST, READERS},
    *,
};

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

fn poll<B>(body: &mut HedgeBody<B>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
}

/// The data, the trailers and the error that are there, and whether it is over.
fn rest<B>(body: &mut HedgeBody<B>) -> (Vec<u8>, Option<HeaderMap>, Option<String>, bool)
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let (mut data, mut trailers, mut error) = (Vec::new(), None, None);
    loop {
        match poll(body) {
            Poll::Pending => return (data, trailers, error, false),
            Poll::Ready(None) => return (data, trailers, error, true),
            Poll::Ready(Some(Err(ended))) => {
                error = Some(ended.to_string());
                return (data, trailers, error, true);
            }
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(piece) => data.extend_from_slice(&piece),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
        }
    }
}

fn trailers() -> HeaderMap {
    [(
        http::HeaderName::from_static("checksum"),
        http::HeaderValue::from_static("7"),
    )]
    .into_iter()
    .collect()
}

#[test]
fn all_attempts_read_the_same_with_its_trailers() {
    let steps = [
        Step::Data("hel"),
        Step::Data("lo"),
        Step::Trailers(trailers()),
    ];
    let tape = Tape::new(Steps::new(steps), Some(1000));
    let mut first = tape.play(0);
    assert!(matches!(poll(&mut first), Poll::Ready(Some(Ok(_)))));
    assert!(!tape.is_read() && tape.gather() && tape.is_read());
    let (mut second, mut third) = (tape.play(1), tape.play(2));
    let all = (b"hello".to_vec(), Some(trailers()), None, true);
    assert_eq!(rest(&mut second), all);
    assert_eq!(rest(&mut first).0, b"lo");
    assert_eq!(rest(&mut third), all);
    assert!(first.is_end_stream() && second.is_end_stream());
}

#[tokio::test]
async fn a_body_that_still_streams_is_not_whole_and_its_reader_is_woken() {
    let (mut send, channel) = Channel::<Bytes, BoxError>::new(8);
    let tape = Tape::new(channel, Some(1000));
    let mut first = tape.play(0);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    let mut cx = Context::from_waker(&waker);
    assert!(Pin::new(&mut first).poll_frame(&mut cx).is_pending());
    assert!(!tape.gather());
    // We have taken the place of its waker in the source.
    assert_eq!(wakes.0.load(Relaxed), 1);
    assert!(Pin::new(&mut first).poll_frame(&mut cx).is_pending());
    send.send_data("hello".into()).await.unwrap();
    assert_eq!(wakes.0.load(Relaxed), 2);
    drop(send);
    assert!(tape.gather());
    assert_eq!(rest(&mut first).0, b"hello");
    assert_eq!(rest(&mut tape.play(1)).0, b"hello");
}

#[test]
fn what_does_not_fit_is_read_by_the_first_and_kept_for_nobody() {
    let steps = [Step::Data("hello"), Step::Data("world"), Step::Data("!")];
    let tape = Tape::new(Steps::new(steps), Some(2 * LEAST));
    let mut first = tape.play(0);
    assert!(!tape.gather());
    assert_eq!(
        rest(&mut first),
        (b"helloworld!".to_vec(), None, None, true)
    );
}

#[test]
fn an_error_of_the_body_is_the_first_attempts_and_no_other_follows() {
    let tape = Tape::new(
        Steps::new([Step::Data("a"), Step::Error("cut")]),
        Some(1000),
    );
    let mut first = tape.play(0);
    assert!(!tape.gather());
    assert_eq!(
        rest(&mut first),
        (b"a".to_vec(), None, Some("cut".into()), true)
    );
}

#[test]
fn who_has_lost_reads_no_more() {
    let mut tape = Tape::new(Steps::new([Step::Data("a"), Step::Data("b")]), Some(1000));
    let (mut first, mut second) = (tape.play(0), tape.play(1));
    assert!(tape.gather());
    assert!(matches!(poll(&mut first), Poll::Ready(Some(Ok(_)))));
    tape.leave(1);
    drop(tape);
    assert_eq!(rest(&mut first).2.unwrap(), "the attempt was given up");
    assert_eq!(rest(&mut second).0, b"ab");
}

#[test]
fn nobody_reads_once_the_caller_has_left() {
    for cut in 0..3 {
        let tape = Tape::new(Steps::new([Step::Data("a"), Step::Data("b")]), Some(1000));
        let mut first = tape.play(0);
        for _ in 0..cut {
            assert!(matches!(poll(&mut first), Poll::Ready(Some(Ok(_)))));
        }
        tape.only(0);
        drop(tape);
        assert_eq!(rest(&mut first).2.unwrap(), "the attempt was given up");
    }
}

#[test]
fn a_body_that_panics_ends_with_an_error() {
    let tape = Tape::new(Steps::new([Step::Data("a"), Step::Panic]), Some(1000));
    let mut first = tape.play(0);
    let gathered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tape.gather()));
    assert!(gathered.is_err());
    assert_eq!(rest(&mut first).2.unwrap(), "the request body panicked");
    assert!(!tape.gather());
}

#[tokio::test]
async fn sizes_are_told_and_trailers_are_not_left_out() {
    let tape = Tape::new(http_body_util::Full::<Bytes>::from("hello"), Some(1000));
    let first = tape.play(0);
    assert_eq!(first.size_hint().exact(), Some(5));
    assert!(tape.gather());
    assert_eq!(tape.play(1).size_hint().exact(), Some(5));
    assert_eq!(first.collect().await.unwrap().to_bytes(), "hello");

    let steps = [Step::Data("hello"), Step::Trailers(trailers())];
    let tape = Tape::new(Steps::new(steps), Some(1000));
    assert!(tape.gather());
    assert_eq!(tape.play(1).size_hint().exact(), None);
    assert!(
        Tape::new(Steps::new([]).saying_its_end(), None)
            .play(0)
            .is_end_stream()
    );
}

proptest! {
    /// Whatever is read when: bytes are the same, in order, once for each reader.
    #[test]
    fn each_reader_gets_a_prefix_and_the_last_one_all(
        pieces in proptest::collection::vec(0_usize..40, 0..20),
        has_trailers: bool,
        cap in 0_usize..1500,
        steps in proptest::collection::vec(0_u8..5, 0..60),
        winner in 0_usize..3,
    ) {
        let text = "x".repeat(40).leak();
        let all: usize = pieces.iter().sum();
        let mut body: Vec<_> = pieces.iter().map(|&size| Step::Data(&text[..size])).collect();
        if has_trailers {
            body.push(Step::Trailers(trailers()));
        }
        let mut tape = Tape::new(Steps::new(body), Some(cap));
        let mut readers = vec![tape.play(0)];
        let mut read = [0; READERS];
        for step in steps {
            match step {
                3 => {
                    tape.gather();
                }
                4 if tape.gather() && readers.len() < READERS => {
                    readers.push(tape.play(readers.len()));
                }
                reader => {
                    if let Some(body) = readers.get_mut(usize::from(reader))
                        && let Poll::Ready(Some(frame)) = poll(body)
                    {
                        let frame = frame.unwrap();
                        read[usize::from(reader)] += frame.data_ref().map_or(0, Bytes::len);
                    }
                }
            }
            prop_assert!(read.iter().all(|&read| read <= all));
        }
        let winner = winner % readers.len();
        tape.leave(winner);
        for (reader, body) in readers.iter_mut().enumerate() {
            let (data, _, error, _) = rest(body);
            if reader == winner {
                prop_assert_eq!((read[reader] + data.len(), error), (all, None));
            } else {
                prop_assert!(error.is_some() && data.is_empty());
            }
        }
    }
}
