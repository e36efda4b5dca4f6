//! Streams of events on their way to the caller.
//!
//! Whole events pass, as soon as they are whole and without a copy when a frame holds nothing else. So a stream that
//! breaks off is broken off between two events, and is ended with one that says why.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::Response;
use http_body::{Body, Frame};
use memchr::{memchr_iter, memmem};
use palisade::BoxError;
use pin_project::pin_project;
use serde::{Deserialize, de::IgnoredAny};
use tokio::time::{Interval, MissedTickBehavior, interval_at};

/// How often a caller hears that the first event is still to come.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(10);

const PING: Bytes = Bytes::from_static(b": ping\n\n");

/// The longest event that is held until it is whole.
const LONGEST_EVENT: usize = 256 * 1024;

/// Whether the caller gets the event that counts the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UsageEvent {
    /// Asked for.
    Keep,
    /// Asked for by the gateway only.
    Remove,
}

/// Tells a caller in one event why there will be no more.
pub(crate) trait Farewell {
    /// The data of the event: one line of JSON.
    fn data(&self, error: BoxError) -> String;
}

/// An answer that was not there in time for its head: its stream, or why there is none.
pub(crate) type Late<B> = Pin<Box<dyn Future<Output = Result<Response<B>, String>> + Send>>;

/// The body of a stream of events.
#[pin_project]
pub(crate) struct Relay<B, F> {
    #[pin]
    source: Source<B>,
    events: Events,
    farewell: F,
}

#[pin_project(project = SourceProj)]
enum Source<B> {
    Waiting {
        answer: Late<B>,
        pings: Box<Interval>,
    },
    Streaming {
        #[pin]
        body: B,
    },
    Over,
}

impl<B, F: Farewell> Relay<B, F> {
    /// Relays a stream that has begun.
    pub(crate) fn new(body: B, usage: UsageEvent, farewell: F) -> Self {
        Self {
            source: Source::Streaming { body },
            events: Events::new(usage),
            farewell,
        }
    }

    /// Keeps the connection alive until there is an answer, which has been waited for as long as a ping takes.
    pub(crate) fn waiting(answer: Late<B>, usage: UsageEvent, farewell: F) -> Self {
        let mut pings = interval_at(palisade::time::now(), PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            source: Source::Waiting {
                answer,
                pings: Box::new(pings),
            },
            events: Events::new(usage),
            farewell,
        }
    }
}

impl<B, F> Body for Relay<B, F>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    F: Farewell,
{
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut this = self.project();
        loop {
            let body = match this.source.as_mut().project() {
                SourceProj::Over => return Poll::Ready(None),
                SourceProj::Streaming { body } => body,
                SourceProj::Waiting { answer, pings } => {
                    match answer.as_mut().poll(cx) {
                        Poll::Ready(Ok(response)) => {
                            let body = response.into_body();
                            this.source.set(Source::Streaming { body });
                        }
                        Poll::Ready(Err(told)) => {
                            this.source.set(Source::Over);
                            let data = this.events.break_off(&told);
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                        Poll::Pending => {
                            ready!(pings.poll_tick(cx));
                            return Poll::Ready(Some(Ok(Frame::data(PING))));
                        }
                    }
                    continue;
                }
            };
            let data = match ready!(body.poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.events.pass(data),
                    // Trailers mean nothing to readers of events.
                    Err(_) => continue,
                },
                Some(Err(error)) => {
                    this.source.set(Source::Over);
                    let told = this.farewell.data(error.into());
                    this.events.break_off(&told)
                }
                None => {
                    this.source.set(Source::Over);
                    this.events.rest()
                }
            };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Over)
    }
}

/// Cuts a stream into whole events.
#[derive(Debug)]
struct Events {
    usage: UsageEvent,
    /// The beginning of an event.
    carry: BytesMut,
    /// Inside an event that was too long to wait for.
    flushing: bool,
    /// The last bytes that were passed on.
    tail: [u8; 3],
}

impl Events {
    fn new(usage: UsageEvent) -> Self {
        Self {
            usage,
            carry: BytesMut::new(),
            flushing: false,
            // As if an event had just ended.
            tail: *b"\n\n\n",
        }
    }

    /// What of the stream may go on, now that `data` has come.
    fn pass(&mut self, data: Bytes) -> Bytes {
        if self.carry.is_empty() && !self.flushing && ends_event(&data) {
            let data = self.without_usage(data);
            return self.passed(data);
        }
        self.carry.extend_from_slice(&data);
        let Some(end) = last_event_end(&self.carry) else {
            if self.flushing || self.carry.len() > LONGEST_EVENT {
                self.flushing = true;
                let data = self.carry.split().freeze();
                return self.passed(data);
            }
            return Bytes::new();
        };
        let mut whole = self.carry.split_to(end).freeze();
        if !std::mem::take(&mut self.flushing) {
            whole = self.without_usage(whole);
        }
        self.passed(whole)
    }

    /// What is left when the stream has ended by itself.
    fn rest(&mut self) -> Bytes {
        let rest = self.carry.split().freeze();
        self.passed(rest)
    }

    /// The last event of a stream that breaks off: what was not whole is not sent.
    fn break_off(&mut self, data: &str) -> Bytes {
        self.carry.clear();
        let gap = match self.tail {
            tail if ends_event(&tail) => "",
            [.., b'\n'] => "\n",
            _ => "\n\n",
        };
        format!("{gap}event: error\ndata: {data}\n\n").into()
    }

    fn passed(&mut self, data: Bytes) -> Bytes {
        let from = data.len().saturating_sub(self.tail.len());
        for byte in &data[from..] {
            self.tail.rotate_left(1);
            self.tail[2] = *byte;
        }
        data
    }

    /// Takes the event out that only counts tokens, if the caller did not ask for it.
    fn without_usage(&self, events: Bytes) -> Bytes {
        if self.usage == UsageEvent::Keep || memmem::find(&events, b"\"usage\"").is_none() {
            return events;
        }
        let mut kept = BytesMut::with_capacity(events.len());
        let mut rest = &events[..];
        let mut all = true;
        while !rest.is_empty() {
            let end = first_event_end(rest).unwrap_or(rest.len());
            let (event, after) = rest.split_at(end);
            if only_counts(event) {
                all = false;
            } else {
                kept.extend_from_slice(event);
            }
            rest = after;
        }
        if all { events } else { kept.freeze() }
    }
}

/// Whether an event holds a usage and no choice.
fn only_counts(event: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Chunk {
        #[serde(default)]
        choices: Vec<IgnoredAny>,
        usage: Option<Counts>,
    }

    #[derive(Deserialize)]
    struct Counts {}

    let lines = event.split(|byte| *byte == b'\n');
    let mut data = lines.filter_map(|line| line.strip_prefix(b"data:"));
    let chunk = data.next().map(serde_json::from_slice::<Chunk>);
    matches!(chunk, Some(Ok(chunk)) if chunk.choices.is_empty() && chunk.usage.is_some())
}

fn ends_event(data: &[u8]) -> bool {
    data.ends_with(b"\n\n") || data.ends_with(b"\n\r\n")
}

fn first_event_end(data: &[u8]) -> Option<usize> {
    memchr_iter(b'\n', data).find_map(|at| end_at(data, at))
}

fn last_event_end(data: &[u8]) -> Option<usize> {
    memchr_iter(b'\n', data)
        .rev()
        .find_map(|at| end_at(data, at))
}

/// Where the event ends whose last line ends at `at`.
fn end_at(data: &[u8], at: usize) -> Option<usize> {
    match &data[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use palisade_core::testing::{Step, Steps};

    use super::*;

    const CHUNK: &str =
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\\n\"}}],\"usage\":null}\n\n";
    const USAGE: &str =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    struct Words;

    impl Farewell for Words {
        fn data(&self, error: BoxError) -> String {
            error.to_string()
        }
    }

    fn split(usage: UsageEvent, stream: &str, size: usize) -> String {
        let mut events = Events::new(usage);
        let pieces = stream.as_bytes().chunks(size);
        let mut passed: Vec<u8> = Vec::new();
        for piece in pieces {
            passed.extend(events.pass(Bytes::copy_from_slice(piece)));
        }
        passed.extend(events.rest());
        String::from_utf8(passed).unwrap()
    }

    async fn frames(body: Relay<Steps, Words>) -> Vec<String> {
        let mut body = Box::pin(body);
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            frames.push(String::from_utf8(data.to_vec()).unwrap());
        }
        frames
    }

    #[test]
    fn what_the_caller_did_not_ask_for_is_taken_out_wherever_frames_are_cut() {
        let stream = format!("{CHUNK}{CHUNK}{USAGE}{DONE}");
        for size in 1..=stream.len() {
            let removed = split(UsageEvent::Remove, &stream, size);
            assert_eq!(removed, format!("{CHUNK}{CHUNK}{DONE}"), "cut by {size}");
            assert_eq!(
                split(UsageEvent::Keep, &stream, size),
                stream,
                "cut by {size}"
            );
        }
        let windows = stream.replace('\n', "\r\n");
        let expected = format!("{CHUNK}{CHUNK}{DONE}").replace('\n', "\r\n");
        assert_eq!(split(UsageEvent::Remove, &windows, 7), expected);
    }

    #[test]
    fn a_usage_beside_choices_stays() {
        let both = "data: {\"choices\":[{}],\"usage\":{\"prompt_tokens\":1}}\n\n";
        assert_eq!(split(UsageEvent::Remove, both, 1000), both);
    }

    #[test]
    fn a_whole_frame_passes_without_a_copy() {
        let mut events = Events::new(UsageEvent::Remove);
        let data = Bytes::from(CHUNK);
        assert_eq!(events.pass(data.clone()).as_ptr(), data.as_ptr());
    }

    #[test]
    fn an_event_without_an_end_is_passed_on_when_it_is_too_long() {
        let mut events = Events::new(UsageEvent::Remove);
        let half = Bytes::from(vec![b'x'; LONGEST_EVENT / 2 + 1]);
        assert!(events.pass(half.clone()).is_empty());
        assert_eq!(events.pass(half.clone()).len(), 2 * half.len());
        assert_eq!(events.pass(Bytes::from("y")), "y");
        assert!(events.break_off("{}").starts_with(b"\n\nevent: error\n"));
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_ends_with_an_error_event_of_its_own() {
        for (last, expected) in [
            ("", "event: error\ndata: reset\n\n"),
            // Not whole, so it is not passed on.
            ("data: {\"cho", "event: error\ndata: reset\n\n"),
        ] {
            let steps = Steps::new([Step::Data(CHUNK), Step::Data(last), Step::Error("reset")]);
            let frames = frames(Relay::new(steps, UsageEvent::Remove, Words)).await;
            assert_eq!(frames, [CHUNK, expected]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_waits_hears_pings_and_then_the_events() {
        let answer: Late<Steps> = Box::pin(async {
            tokio::time::sleep(Duration::from_secs(25)).await;
            Ok(Response::new(Steps::new([Step::Data(DONE)])))
        });
        let relay = Relay::waiting(answer, UsageEvent::Remove, Words);
        let frames = frames(relay).await;
        assert_eq!(frames, [": ping\n\n", ": ping\n\n", ": ping\n\n", DONE]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_comes_late_is_an_event() {
        let answer: Late<Steps> = Box::pin(async { Err("{}".to_owned()) });
        let frames = frames(Relay::waiting(answer, UsageEvent::Remove, Words)).await;
        assert_eq!(frames, ["event: error\ndata: {}\n\n"]);
    }
}
