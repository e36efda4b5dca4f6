//! What was read comes again as it was.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::HeaderName};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use palisade_balance::{Affinity, PromptAffinityLayer};
use palisade_core::testing::{Step, Steps};
use proptest::prelude::*;
use tokio_test::{assert_ready, task};

use super::{CHAT, by_prompt, call, reader, reader_by};

#[test]
fn errors_of_the_body_come_where_it_is_read() {
    let (mut service, remote) = reader();
    let body = Steps::new([Step::Data("{\"pro"), Step::Error("broken")]);
    assert_ready!(call(&mut service, body).poll()).unwrap();
    let mut request = remote.take();
    assert_eq!(request.extensions().get::<Affinity>(), None);
    assert!(!request.body().is_end_stream());
    assert_eq!(request.body().size_hint().upper(), None);
    let frame = assert_ready!(task::spawn(request.body_mut().frame()).poll());
    assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "{\"pro");
    assert!(
        !request.body().is_end_stream(),
        "the error is still to come"
    );
    assert_eq!(request.body().size_hint().upper(), None);
    let mut frame = || assert_ready!(task::spawn(request.body_mut().frame()).poll());
    assert_eq!(frame().unwrap().unwrap_err().to_string(), "broken");
    assert!(frame().is_none());
    assert!(request.body().is_end_stream());
}

#[test]
fn trailers_and_empty_frames_come_where_they_were() {
    let trailers = HeaderMap::from_iter([(
        HeaderName::from_static("x-checksum"),
        HeaderValue::from_static("7"),
    )]);
    let body = Steps::new([
        Step::Data(""),
        Step::Data("text"),
        Step::Trailers(trailers.clone()),
    ]);
    let (mut service, remote) = reader();
    assert_ready!(call(&mut service, body).poll()).unwrap();
    let mut request = remote.take();
    assert_eq!(
        request.extensions().get(),
        by_prompt("text").as_ref(),
        "the end makes it whole"
    );
    let mut frame = || assert_ready!(task::spawn(request.body_mut().frame()).poll());
    assert_eq!(frame().unwrap().unwrap().into_data().unwrap(), "");
    assert_eq!(frame().unwrap().unwrap().into_data().unwrap(), "text");
    assert_eq!(frame().unwrap().unwrap().into_trailers().unwrap(), trailers);
    assert!(frame().is_none());
}

#[test]
fn a_body_of_dust_has_no_affinity_and_all_of_its_frames() {
    let (mut service, remote) = reader();
    let body = Steps::new((0..300).map(|_| Step::Data("x")));
    assert_ready!(call(&mut service, body).poll()).unwrap();
    let request = remote.take();
    assert_eq!(request.extensions().get::<Affinity>(), None);
    let whole = assert_ready!(task::spawn(request.into_body().collect()).poll()).unwrap();
    assert_eq!(whole.to_bytes(), "x".repeat(300));
}

/// A body of known length in frames of these sizes, which is pending before each if asked to be.
struct Cut {
    frames: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    pauses: bool,
    paused: bool,
    polls: Arc<AtomicUsize>,
}

impl Body for Cut {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.polls.fetch_add(1, SeqCst);
        if self.pauses && !std::mem::replace(&mut self.paused, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.paused = false;
        if let Some(data) = self.frames.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = self
            .trailers
            .take()
            .map(|trailers| Ok(Frame::trailers(trailers)));
        Poll::Ready(trailers)
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.frames.iter().map(|data| data.len() as u64).sum())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn bodies_come_as_they_were_whatever_their_cuts(
        text in prop_oneof![
            Just(CHAT.to_owned()),
            "\\{\"prompt\":\"[a-z]{0,40}\"[a-z{}\\[\\]\",:]{0,40}",
            "[ -~]{1,80}",
        ],
        cuts in proptest::collection::vec(0usize..12, 1..20),
        (trailers, pauses) in (any::<bool>(), any::<bool>()),
        (read, prefix) in (1usize..100, 1usize..50),
    ) {
        let body = Bytes::from(text);
        let mut frames = VecDeque::new();
        let mut rest = body.clone();
        for cut in cuts {
            frames.push_back(rest.split_to(cut.min(rest.len())));
        }
        frames.push_back(rest);
        let trailers = trailers.then(HeaderMap::new);
        let polls = Arc::new(AtomicUsize::new(0));
        let cut = Cut { frames: frames.clone(), trailers: trailers.clone(), pauses, paused: false, polls: polls.clone() };

        let layer = PromptAffinityLayer::new().read(read).prefix(prefix);
        let (mut service, remote) = reader_by(layer);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let mut response = call(&mut service, cut);
        runtime.block_on(async { (&mut response).await.unwrap() });
        let limit = 2 * (frames.len() + 2);
        prop_assert!(polls.load(SeqCst) <= limit, "it spins");
        let (head, sent) = remote.take().into_parts();

        // The affinity of one piece.
        let (mut service, remote) = reader_by(layer);
        assert_ready!(call(&mut service, Full::new(body.clone())).poll()).unwrap();
        prop_assert_eq!(head.extensions.get::<Affinity>().copied(), remote.affinity());

        // The same frames, of the same memory.
        let mut sent = pin!(sent);
        let mut cx = Context::from_waker(Waker::noop());
        let mut left = body.len() as u64;
        for frame in frames {
            prop_assert_eq!(sent.size_hint().exact(), Some(left));
            let polled = loop {
                if let Poll::Ready(polled) = sent.as_mut().poll_frame(&mut cx) {
                    break polled;
                }
            };
            let data = polled.unwrap().unwrap().into_data().unwrap();
            prop_assert_eq!((&data, data.as_ptr()), (&frame, frame.as_ptr()));
            left -= data.len() as u64;
        }
        if let Some(trailers) = trailers {
            prop_assert!(!sent.is_end_stream());
            let polled = loop {
                if let Poll::Ready(polled) = sent.as_mut().poll_frame(&mut cx) {
                    break polled;
                }
            };
            prop_assert_eq!(polled.unwrap().unwrap().into_trailers().unwrap(), trailers);
        }
        prop_assert!(sent.is_end_stream());
    }
}
