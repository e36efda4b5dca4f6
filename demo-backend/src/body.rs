//! The body of every answer: whole, or damaged on purpose.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body as Inner;
use bytes::Bytes;
use http::{StatusCode, header::CONTENT_LENGTH, response::Parts};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::{fault::Kind, server::Link, ticket::Ticket};

/// The body of an answer of a [`MockBackend`](crate::MockBackend). The request ends when this ends or is dropped.
pub struct AnswerBody {
    inner: Inner,
    damage: Damage,
    /// Whether its length is known, as that of JSON is and that of a stream is not.
    sized: bool,
    /// How many frames came whole.
    frames: u32,
    status: StatusCode,
    ticket: Option<Ticket>,
}

enum Damage {
    None,
    Reset {
        after: u32,
        link: Option<Arc<Link>>,
        step: Step,
    },
    Stall {
        after: u32,
        step: Step,
    },
    Malformed {
        after: u32,
    },
    Length {
        flushed: bool,
    },
    Drip {
        bytes: usize,
        every: Duration,
        rest: Bytes,
        sleep: Option<Pin<Box<Sleep>>>,
    },
}

#[derive(PartialEq, Eq)]
enum Step {
    /// What comes is passed on.
    Passing,
    /// What was passed on gets its chance to be written.
    Flushing,
    /// It is time.
    Now,
}

impl AnswerBody {
    /// Some damage is done in the head.
    pub(crate) fn new(
        inner: Inner,
        head: &mut Parts,
        fault: Option<&Kind>,
        link: Option<Arc<Link>>,
        ticket: Ticket,
    ) -> Self {
        let exact = inner.size_hint().exact();
        let mut claim = |length: u64| head.headers.insert(CONTENT_LENGTH, length.into());
        let damage = match fault {
            Some(Kind::Reset { after }) => Damage::Reset {
                after: *after,
                link,
                step: Step::Passing,
            },
            Some(Kind::Stall { after }) => Damage::Stall {
                after: *after,
                step: Step::Passing,
            },
            Some(Kind::Malformed { after }) => Damage::Malformed { after: *after },
            Some(Kind::Drip { bytes, every }) => Damage::Drip {
                bytes: bytes.get() as usize,
                every: *every,
                rest: Bytes::new(),
                sleep: None,
            },
            Some(Kind::ContentLength { by }) => {
                claim(match exact {
                    Some(length) => length.saturating_add_signed(*by),
                    None => by.unsigned_abs(),
                });
                Damage::Length { flushed: false }
            }
            _ => Damage::None,
        };
        match (&damage, exact) {
            (Damage::Reset { .. } | Damage::Stall { .. }, Some(length)) => drop(claim(length)),
            (Damage::Malformed { .. }, Some(length)) => drop(claim(length / 2)),
            _ => {}
        }
        Self {
            inner,
            damage,
            sized: exact.is_some(),
            frames: 0,
            status: head.status,
            ticket: Some(ticket),
        }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        self.frames += 1;
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }

    /// Passes frames on up to the place of the damage. Ready with none when that is reached.
    fn poll_before(
        &mut self,
        after: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if !self.sized && self.frames >= after {
            return Poll::Ready(None);
        }
        let frame = ready!(self.poll_inner(cx));
        let sized = self.sized;
        Poll::Ready(frame.map(|frame| frame.map(|frame| if sized { half(frame) } else { frame })))
    }
}

/// The first half of a frame.
fn half(frame: Frame<Bytes>) -> Frame<Bytes> {
    frame.map_data(|data| data.slice(..data.len() / 2))
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let mut damage = std::mem::replace(&mut this.damage, Damage::None);
        let polled = this.poll_damaged(&mut damage, cx);
        this.damage = damage;
        let frame = ready!(polled);
        let status = this.status;
        match (&frame, &mut this.ticket) {
            (None, Some(ticket)) => ticket.complete(status),
            (Some(Err(_)), Some(ticket)) => ticket.break_off(),
            _ => return Poll::Ready(frame),
        }
        // Before the connection hears of it, so that who has read the end finds it in the books.
        this.ticket = None;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.damage {
            Damage::None => self.inner.is_end_stream(),
            Damage::Drip { rest, .. } => rest.is_empty() && self.inner.is_end_stream(),
            _ => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.damage {
            Damage::None | Damage::Drip { .. } => self.inner.size_hint(),
            // Hyper would hold the length in the header against it.
            _ => SizeHint::default(),
        }
    }
}

impl AnswerBody {
    fn poll_damaged(
        &mut self,
        damage: &mut Damage,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match damage {
            Damage::None => self.poll_inner(cx),
            Damage::Length { flushed } => {
                let frame = ready!(self.poll_inner(cx));
                if frame.is_none() && !*flushed {
                    // Hyper drops what it has not written when the end comes too early.
                    *flushed = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(frame)
            }
            Damage::Malformed { after } => {
                let frame = ready!(self.poll_inner(cx));
                let cut = self.sized || self.frames == *after + 1;
                let ends_event = !self.sized;
                Poll::Ready(frame.map(|frame| {
                    frame.map(|frame| match cut {
                        true if ends_event => half(frame).map_data(with_blank_line),
                        true => half(frame),
                        false => frame,
                    })
                }))
            }
            Damage::Reset { after, link, step } => loop {
                match step {
                    Step::Passing => match ready!(self.poll_before(*after, cx)) {
                        Some(frame) => {
                            if self.sized {
                                *step = Step::Flushing;
                            }
                            return Poll::Ready(Some(frame));
                        }
                        None => *step = Step::Flushing,
                    },
                    Step::Flushing => {
                        // Hyper writes what it has when the body is pending.
                        *step = Step::Now;
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Step::Now => {
                        if let Some(link) = link {
                            link.reset();
                        }
                        let error = io::Error::new(io::ErrorKind::ConnectionReset, "a fault");
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            },
            Damage::Stall { after, step } => {
                if *step == Step::Passing {
                    if let Some(frame) = ready!(self.poll_before(*after, cx)) {
                        if self.sized {
                            *step = Step::Now;
                        }
                        return Poll::Ready(Some(frame));
                    }
                    *step = Step::Now;
                }
                // For ever: the client has to go.
                Poll::Pending
            }
            Damage::Drip {
                bytes,
                every,
                rest,
                sleep: pause,
            } => {
                if rest.is_empty() {
                    match ready!(self.poll_inner(cx)) {
                        Some(Ok(frame)) => match frame.into_data() {
                            Ok(data) => *rest = data,
                            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                        },
                        end => return Poll::Ready(end),
                    }
                }
                if let Some(pause) = pause {
                    ready!(pause.as_mut().poll(cx));
                }
                *pause = Some(Box::pin(sleep(*every)));
                let piece = rest.split_to((*bytes).min(rest.len()));
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
        }
    }
}

/// So that only this event is broken, and not the one after it.
fn with_blank_line(data: Bytes) -> Bytes {
    [&data[..], b"\n\n"].concat().into()
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if let Some(ticket) = &mut self.ticket
            && match &self.damage {
                Damage::Reset { .. } | Damage::Stall { .. } => false,
                // The last frame was handed over, and hyper did not ask for more.
                Damage::None | Damage::Malformed { .. } | Damage::Length { .. } => {
                    self.inner.is_end_stream()
                }
                Damage::Drip { rest, .. } => rest.is_empty() && self.inner.is_end_stream(),
            }
        {
            ticket.complete(self.status);
        }
    }
}

impl std::fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerBody")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}
