//! Ending a stream in the words that its reader understands.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    Response,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use pin_project::pin_project;

use super::answer::Answer;
use crate::BoxError;

/// The response body of [`Respond`](super::Respond): that of the service, or the answer to its error.
///
/// A stream of events that fails ends with an event that says why, a gRPC stream with trailers that say so. Any other
/// body that fails stays an error, for one that is cut short must not look whole.
#[pin_project]
pub struct RespondBody<B> {
    #[pin]
    source: Source<B>,
    manner: Manner,
}

#[pin_project(project = SourceProj)]
enum Source<B> {
    Service(#[pin] B),
    Answer(Full<Bytes>),
    Over,
}

/// How a body that fails is ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// With the error.
    Plain,
    /// With an event, set off from what was sent last.
    Event { answer: Answer, tail: Tail },
    /// With trailers.
    Trailers,
}

impl<B: Body> RespondBody<B> {
    pub(super) fn service(response: Response<B>, answer: Answer) -> Response<Self> {
        let manner = Manner::of(&response, answer);
        response.map(|body| Self {
            source: Source::Service(body),
            manner,
        })
    }
}

impl<B> RespondBody<B> {
    pub(super) fn answer(response: Response<Full<Bytes>>) -> Response<Self> {
        response.map(|body| Self {
            source: Source::Answer(body),
            manner: Manner::Plain,
        })
    }
}

impl Manner {
    fn of<B: Body>(response: &Response<B>, answer: Answer) -> Self {
        let (headers, body) = (response.headers(), response.body());
        let is = |kind: &[u8]| {
            let value = headers.get(CONTENT_TYPE);
            value.is_some_and(|value| is_kind(value.as_bytes(), kind))
        };
        // What has said how long it is, or is compressed, has no room for words of ours.
        let is_closed = headers.contains_key(CONTENT_LENGTH)
            || headers.contains_key(CONTENT_ENCODING)
            || body.size_hint().exact().is_some();
        match answer {
            Answer::Grpc if is(b"application/grpc") => Self::Trailers,
            _ if is_closed || !is(b"text/event-stream") => Self::Plain,
            _ => Self::Event {
                answer,
                tail: Tail::default(),
            },
        }
    }
}

/// Whether a content type is `kind`, with a suffix as in `application/grpc+proto` or parameters: not
/// `application/grpc-web`, which has its trailers in the body.
fn is_kind(value: &[u8], kind: &[u8]) -> bool {
    let Some((start, rest)) = value.split_at_checked(kind.len()) else {
        return false;
    };
    start.eq_ignore_ascii_case(kind) && matches!(rest, [] | [b';' | b'+' | b' ' | b'\t', ..])
}

impl<B> Body for RespondBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let body = match this.source.as_mut().project() {
            SourceProj::Service(body) => body,
            SourceProj::Answer(body) => {
                return Pin::new(body)
                    .poll_frame(cx)
                    .map_err(|never| match never {});
            }
            SourceProj::Over => return Poll::Ready(None),
        };
        let frame = match ready!(body.poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                let error = error.into();
                // What has failed is let go before anybody hears of it.
                this.source.set(Source::Over);
                return Poll::Ready(Some(this.manner.end(error)));
            }
            None => return Poll::Ready(None),
        };
        match this.manner {
            Manner::Event { tail, .. } => {
                if let Some(data) = frame.data_ref() {
                    tail.push(data);
                }
            }
            // The status is said: whatever fails after it changes nothing.
            Manner::Trailers if frame.is_trailers() => this.source.set(Source::Over),
            Manner::Trailers | Manner::Plain => {}
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Service(body) => body.is_end_stream(),
            Source::Answer(body) => body.is_end_stream(),
            Source::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.source, self.manner) {
            (Source::Service(body), Manner::Plain) => body.size_hint(),
            // It may end early, and an event may come on top.
            (Source::Service(_), _) => SizeHint::default(),
            (Source::Answer(body), _) => body.size_hint(),
            (Source::Over, _) => SizeHint::with_exact(0),
        }
    }
}

impl Manner {
    fn end(self, error: BoxError) -> Result<Frame<Bytes>, BoxError> {
        match self {
            Self::Plain => Err(error),
            Self::Event { answer, tail } => {
                let gap = tail.gap();
                let data = answer.event(&*error);
                Ok(Frame::data(format!("{gap}{}", Event(&data)).into()))
            }
            Self::Trailers => Ok(Frame::trailers(Answer::trailers(&*error))),
        }
    }
}

/// The last event of a stream that has failed.
pub(super) struct Event<'a>(pub(super) &'a str);

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event: error\ndata: {}\n\n", self.0)
    }
}

/// The last bytes that were sent, as if an event had ended before them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tail([u8; 3]);

impl Default for Tail {
    fn default() -> Self {
        Self(*b"\n\n\n")
    }
}

impl Tail {
    fn push(&mut self, data: &[u8]) {
        for byte in &data[data.len().saturating_sub(self.0.len())..] {
            self.0.rotate_left(1);
            self.0[2] = *byte;
        }
    }

    /// What ends the event that was being sent, if there was one. An empty line more would change nothing, one fewer
    /// would make one event of two.
    fn gap(self) -> &'static str {
        match self.0 {
            [_, b'\n', b'\n'] | [b'\n', b'\r', b'\n'] | [_, b'\r', b'\r'] => "",
            [.., b'\n'] => "\n",
            // After a lone `\r` the first `\n` is still the end of the same line.
            _ => "\n\n",
        }
    }
}

impl<B> fmt::Debug for RespondBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.source {
            Source::Service(_) => "service",
            Source::Answer(_) => "answer",
            Source::Over => "over",
        };
        f.debug_struct("RespondBody")
            .field("source", &source)
            .field("manner", &self.manner)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of each event that a browser would dispatch, by the parsing rules of the HTML standard.
    fn events(stream: &str) -> Vec<String> {
        let lines = stream.replace("\r\n", "\n").replace('\r', "\n");
        let (mut events, mut data) = (Vec::new(), String::new());
        let whole = lines.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.split('\n') {
            if let Some(text) = line.strip_prefix("data:") {
                data.push_str(text.trim_start());
            } else if line.is_empty() && !data.is_empty() {
                events.push(std::mem::take(&mut data));
            }
        }
        events
    }

    #[test]
    fn the_last_event_stands_alone_wherever_the_stream_was_cut() {
        for end in ["\n", "\r\n", "\r"] {
            let stream =
                format!(": ping{end}{end}event: x{end}data: one{end}{end}data: two{end}{end}");
            for cut in 0..=stream.len() {
                let mut sent = stream[..cut].to_owned();
                let mut tail = Tail::default();
                // However the frames were cut.
                sent.as_bytes().chunks(2).for_each(|frame| tail.push(frame));
                sent.push_str(tail.gap());
                sent.push_str(&Event("last").to_string());
                let events = events(&sent);
                assert_eq!(events.last().unwrap(), "last", "{sent:?}");
            }
        }
    }

    #[test]
    fn no_empty_line_is_sent_where_an_event_has_ended() {
        for (sent, gap) in [
            ("", ""),
            ("data: x\n\n", ""),
            ("data: x\r\n\r\n", ""),
            ("data: x\r\r", ""),
            ("data: x\n", "\n"),
            ("data: x\r\n", "\n"),
            ("data: x\r", "\n\n"),
            ("data: x", "\n\n"),
            ("x", "\n\n"),
        ] {
            let mut tail = Tail::default();
            tail.push(sent.as_bytes());
            assert_eq!(tail.gap(), gap, "{sent:?}");
        }
    }

    #[test]
    fn kinds_are_told_apart_by_their_whole_name() {
        for (value, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC;x", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grp", false),
        ] {
            assert_eq!(
                is_kind(value.as_bytes(), b"application/grpc"),
                is,
                "{value}"
            );
        }
    }
}
