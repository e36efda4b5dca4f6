use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use http::HeaderMap;
use proptest::prelude::*;

use self::reel::LEAST;
use super::*;

/// A caller's body: frames that are there or not yet there, then trailers or an error or nothing.
#[derive(Default)]
struct Caller {
    steps: VecDeque<Step>,
    says_end: bool,
    polls_after_end: Arc<AtomicUsize>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Data(Bytes),
    Pending,
    Trailers(HeaderMap),
    Error,
}

impl Body for Caller {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        Poll::Ready(match self.steps.pop_front() {
            Some(Step::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Step::Pending) => return Poll::Pending,
            Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Step::Error) => Some(Err("the caller's body broke")),
            None => {
                self.polls_after_end.fetch_add(1, Relaxed);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.says_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(data(&self.steps).map(|data| data.len() as u64).sum())
    }
}

fn data<'a>(steps: impl IntoIterator<Item = &'a Step>) -> impl Iterator<Item = &'a Bytes> {
    steps.into_iter().filter_map(|step| match step {
        Step::Data(data) => Some(data),
        _ => None,
    })
}

fn caller(steps: impl IntoIterator<Item = Step>) -> Caller {
    Caller {
        steps: steps.into_iter().collect(),
        ..Caller::default()
    }
}

fn bytes(text: &'static str) -> Step {
    Step::Data(Bytes::from_static(text.as_bytes()))
}

fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("checksum", "123".parse().unwrap());
    trailers
}

/// Reads up to `polls` times, and gives what was read and whether the body is over.
fn read(body: &mut ReplayBody<Caller>, polls: usize) -> (Vec<Step>, bool) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut steps = Vec::new();
    for _ in 0..polls {
        match Pin::new(&mut *body).poll_frame(&mut cx) {
            Poll::Pending => {}
            Poll::Ready(None) => return (steps, true),
            Poll::Ready(Some(Err(_))) => {
                steps.push(Step::Error);
                return (steps, true);
            }
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => steps.push(Step::Data(data)),
                Err(frame) => steps.push(Step::Trailers(frame.into_trailers().unwrap())),
            },
        }
    }
    (steps, false)
}

const ALL: usize = usize::MAX;

#[test]
fn an_empty_body_costs_nothing_and_can_always_be_sent_again() {
    let tape = Tape::new(
        Caller {
            says_end: true,
            ..caller([])
        },
        0,
    );
    assert!(tape.0.is_none() && tape.can_replay());
    for _ in 0..3 {
        let body = tape.play();
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
    }
}

#[test]
fn nothing_is_read_before_an_attempt_reads() {
    let tape = Tape::new(caller([bytes("one"), bytes("two")]), 0);
    let mut first = tape.play();
    assert!(tape.can_replay(), "not one byte is over the cap yet");
    let mut second = tape.play();
    assert_eq!(read(&mut first, 1), (vec![Step::Error], true));
    assert_eq!(read(&mut second, 1).0, [bytes("one")]);
    assert!(!tape.can_replay());
    assert_eq!(
        read(&mut second, ALL),
        (vec![bytes("two")], true),
        "goes on over the cap"
    );
}

#[test]
fn a_body_of_exactly_the_cap_can_be_sent_again_and_one_byte_more_cannot() {
    for (cap, fits) in [(64, true), (63, false)] {
        let one = Step::Data(Bytes::from(vec![b'x'; 64]));
        let tape = Tape::new(caller([one.clone()]), cap);
        assert_eq!(read(&mut tape.play(), ALL), (vec![one.clone()], true));
        assert_eq!(tape.can_replay(), fits);
        if fits {
            assert_eq!(read(&mut tape.play(), ALL), (vec![one], true));
        }
    }
}

#[test]
fn tiny_frames_are_charged_their_place() {
    let tape = Tape::new(caller((0..100).map(|_| bytes("x"))), 50 * LEAST);
    let mut body = tape.play();
    read(&mut body, 50);
    assert!(tape.can_replay());
    read(&mut body, 1);
    assert!(!tape.can_replay());
    assert_eq!(read(&mut body, ALL).0.len(), 49);
}

#[test]
fn trailers_are_sent_again_and_count() {
    let steps = [bytes("one"), Step::Trailers(trailers())];
    for (cap, fits) in [(2 * LEAST, true), (2 * LEAST - 1, false)] {
        let tape = Tape::new(caller(steps.clone()), cap);
        assert_eq!(read(&mut tape.play(), ALL), (steps.to_vec(), true));
        assert_eq!(tape.can_replay(), fits);
        if fits {
            let mut body = tape.play();
            read(&mut body, 1);
            assert!(!body.is_end_stream());
            assert_eq!(read(&mut body, 1).0, [Step::Trailers(trailers())]);
            assert!(body.is_end_stream());
        }
    }
}

#[test]
fn a_length_is_not_promised_while_trailers_are_still_to_be_sent() {
    let tape = Tape::new(caller([bytes("one"), Step::Trailers(trailers())]), 1024);
    read(&mut tape.play(), ALL);
    let mut body = tape.play();
    let hint = body.size_hint();
    assert_eq!((hint.lower(), hint.upper()), (3, None));
    read(&mut body, ALL);
    assert_eq!(body.size_hint().exact(), Some(0));
}

#[test]
fn a_body_that_broke_is_not_sent_again() {
    let tape = Tape::new(caller([bytes("one"), Step::Error]), 1024);
    let mut body = tape.play();
    assert_eq!(
        read(&mut body, ALL),
        (vec![bytes("one"), Step::Error], true)
    );
    assert!(!tape.can_replay());
    assert_eq!(read(&mut body, ALL), (vec![], true));
}

#[test]
fn an_attempt_that_is_given_up_is_woken_to_hear_of_it() {
    for act in [Tape::rewind, |tape: &Tape<Caller>| drop(tape.play())] {
        let tape = Tape::new(caller([Step::Pending, bytes("one")]), 1024);
        let mut body = tokio_test::task::spawn(tape.play());
        assert!(body.enter(|cx, body| body.poll_frame(cx)).is_pending());
        act(&tape);
        assert!(body.is_woken());
        let read = body.enter(|cx, body| body.poll_frame(cx));
        assert!(matches!(read, Poll::Ready(Some(Err(_)))));
        assert!(!body.is_end_stream());
        assert_eq!(body.size_hint().exact(), None);
    }
}

#[test]
fn when_the_caller_leaves_its_body_is_dropped_and_the_attempt_woken() {
    let source = caller([bytes("one"), Step::Pending]);
    let held = source.polls_after_end.clone();
    let tape = Tape::new(source, 1024);
    let mut body = tokio_test::task::spawn(tape.play());
    assert!(body.enter(|cx, body| body.poll_frame(cx)).is_ready());
    assert!(body.enter(|cx, body| body.poll_frame(cx)).is_pending());
    drop(tape);
    assert!(body.is_woken());
    assert_eq!(
        Arc::strong_count(&held),
        1,
        "though the attempt is still there"
    );
    let read = body.enter(|cx, body| body.poll_frame(cx));
    assert!(matches!(read, Poll::Ready(Some(Err(_)))));
}

#[test]
fn the_last_attempt_reads_what_was_kept_and_frees_it() {
    let tape = Tape::new(caller([bytes("one"), bytes("two"), bytes("three")]), 1024);
    read(&mut tape.play(), 2);
    let mut last = tape.play();
    assert_eq!(read(&mut last, 1).0, [bytes("one")]);
    let reel = tape.0.clone().unwrap();
    tape.leave();
    assert_eq!(lock(&reel).frames, ["two"]);
    assert_eq!(last.size_hint().exact(), Some(8));
    assert_eq!(
        read(&mut last, ALL),
        (vec![bytes("two"), bytes("three")], true)
    );
    assert!(
        lock(&reel).frames.iter().all(Bytes::is_empty),
        "nothing more is kept"
    );
}

#[test]
fn a_body_that_panics_wedges_nobody() {
    struct Panics;
    impl Body for Panics {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            panic!("on purpose")
        }
    }
    let tape = Tape::new(Panics, 1024);
    let mut body = tape.play();
    let poll = std::panic::AssertUnwindSafe(|| {
        let mut cx = Context::from_waker(Waker::noop());
        drop(Pin::new(&mut body).poll_frame(&mut cx));
    });
    assert!(std::panic::catch_unwind(poll).is_err());
    assert!(!tape.can_replay());
    tape.rewind();
}

#[test]
fn a_body_that_panicked_is_never_sent_as_if_it_were_whole() {
    /// One frame, a panic, and then nothing more, as of a generator that has panicked.
    struct Panics(u8);
    impl Body for Panics {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.0 += 1;
            match self.0 {
                1 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"half"))))),
                2 => panic!("on purpose"),
                _ => Poll::Ready(None),
            }
        }
    }
    let tape = Tape::new(Panics(0), 1024);
    let mut body = tape.play();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut body).poll_frame(&mut cx).is_ready());
    let poll = std::panic::AssertUnwindSafe(|| drop(Pin::new(&mut body).poll_frame(&mut cx)));
    assert!(std::panic::catch_unwind(poll).is_err());
    drop(body);
    let mut again = tape.play();
    assert!(!tape.can_replay());
    let end = loop {
        match Pin::new(&mut again).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(_))) => {}
            end => break end,
        }
    };
    assert!(
        matches!(end, Poll::Ready(Some(Err(_)))),
        "half of it looks whole: {end:?}"
    );
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(|data| Step::Data(data.into())),
        1 => Just(Step::Pending),
    ];
    let end = prop_oneof![
        Just(None),
        Just(Some(Step::Trailers(trailers()))),
        Just(Some(Step::Error)),
    ];
    (proptest::collection::vec(step, 0..12), end).prop_map(|(mut steps, end)| {
        steps.extend(end);
        steps
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// However the body is cut, whatever the cap, wherever the attempts before were dropped.
    #[test]
    fn each_attempt_that_may_follow_reads_the_same(
        steps in steps(),
        says_end: bool,
        cap in 0_usize..800,
        drops in proptest::collection::vec(0_usize..16, 0..4),
    ) {
        let body = Caller { says_end, ..caller(steps.clone()) };
        let after_end = body.polls_after_end.clone();
        let tape = Tape::new(body, cap);
        let whole: Vec<_> = steps.into_iter().filter(|step| *step != Step::Pending).collect();
        let length: usize = data(&whole).map(Bytes::len).sum();
        let has_trailers = matches!(whole.last(), Some(Step::Trailers(_)));
        let tells = |body: &ReplayBody<_>| {
            let hint = body.size_hint();
            hint.lower() == length as u64 && (has_trailers || hint.exact().is_some())
        };
        for polls in drops {
            let mut body = tape.play();
            prop_assert!(tells(&body));
            let (got, over) = read(&mut body, polls);
            prop_assert_eq!(&got[..], &whole[..got.len()]);
            prop_assert!(!over || got.len() == whole.len());
            if !tape.can_replay() {
                let (rest, _) = read(&mut body, ALL);
                prop_assert_eq!(&rest[..], &whole[got.len()..]);
                return Ok(());
            }
        }
        let mut last = tape.play();
        tape.leave();
        prop_assert!(tells(&last));
        let (got, over) = read(&mut last, ALL);
        prop_assert_eq!(got, whole);
        prop_assert!(over && after_end.load(Relaxed) <= 1);
    }

    /// The dumbest model: all that was ever read must fit.
    #[test]
    fn what_is_kept_never_exceeds_the_cap(steps in steps(), cap in 0_usize..400) {
        let tape = Tape::new(Caller { says_end: false, ..caller(steps) }, cap);
        read(&mut tape.play(), ALL);
        let reel = lock(tape.0.as_ref().unwrap());
        let kept: usize = reel.frames.iter().map(|data| data.len().max(LEAST)).sum();
        prop_assert!(kept <= cap);
        prop_assert_eq!(kept == 0 || reel.keeps == Keeps::All, true);
    }
}
