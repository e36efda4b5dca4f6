//! The mechanism of a body that can be sent again: what was read of it, and who may read.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use crate::BoxError;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// What a frame is charged at least: its place in the list of frames.
pub(crate) const LEAST: usize = size_of::<Bytes>();

/// What the attempts share.
pub(crate) struct Reel<B> {
    /// What is left of the caller's body; `None` when it is over.
    pub(crate) source: Option<B>,
    pub(crate) frames: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    /// How much more may be kept.
    room: usize,
    pub(crate) keeps: Keeps,
    /// The attempt that may read.
    pub(crate) epoch: u32,
    /// The frame that it reads next.
    at: usize,
    trailers_read: bool,
    /// Of the attempt that waits for the source.
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// All that was ever read.
    All,
    /// What the last attempt has still to read.
    Unread,
    /// The rest, when there was too much of it or the caller's body failed: no other attempt can follow.
    Nothing,
}

impl<B> Reel<B> {
    pub(crate) fn new(source: B, cap: usize) -> Self {
        Self {
            source: Some(source),
            frames: Vec::new(),
            trailers: None,
            room: cap,
            keeps: Keeps::All,
            epoch: 0,
            at: 0,
            trailers_read: false,
            waker: None,
        }
    }

    /// Gives the waker of the attempt that can read no longer.
    pub(crate) fn next_epoch(&mut self) -> Option<Waker> {
        self.epoch = self.epoch.wrapping_add(1);
        self.at = 0;
        self.trailers_read = false;
        self.waker.take()
    }

    pub(crate) fn keep_unread(&mut self) {
        if self.keeps == Keeps::All {
            self.keeps = Keeps::Unread;
            self.frames.drain(..self.at);
            self.at = 0;
        }
    }

    /// Takes the body away from whoever reads it, for good.
    pub(crate) fn break_off(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.keep_nothing();
    }

    fn keep_nothing(&mut self) {
        self.keeps = Keeps::Nothing;
        self.frames = Vec::new();
        self.at = 0;
    }

    /// Called with everything read, so that nothing unread is thrown away.
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_ref() {
            self.trailers_read = true;
            let size = trailers
                .iter()
                .map(|(name, value)| name.as_str().len() + value.len());
            if self.keeps == Keeps::All && self.make_room(size.sum()) {
                self.trailers = Some(trailers.clone());
            }
        } else if let Some(data) = frame.data_ref()
            && self.keeps == Keeps::All
            && self.make_room(data.len())
        {
            self.frames.push(data.clone());
            self.at = self.frames.len();
        }
    }

    fn make_room(&mut self, size: usize) -> bool {
        let Some(room) = self.room.checked_sub(size.max(LEAST)) else {
            self.keep_nothing();
            return false;
        };
        self.room = room;
        true
    }
}

impl<B> Reel<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    pub(crate) fn poll_frame(
        &mut self,
        epoch: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if epoch != self.epoch {
            return Poll::Ready(Some(Err(GivenUp.into())));
        }
        if let Some(data) = self.frames.get_mut(self.at) {
            self.at += 1;
            let data = match self.keeps {
                Keeps::All => data.clone(),
                Keeps::Unread | Keeps::Nothing => std::mem::take(data),
            };
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let Some(source) = &mut self.source else {
            return Poll::Ready(self.read_trailers().map(Ok));
        };
        let Poll::Ready(read) = Pin::new(&mut *source).poll_frame(cx) else {
            self.wait(cx);
            return Poll::Pending;
        };
        let over = source.is_end_stream();
        match read {
            Some(Ok(frame)) => {
                if over || frame.is_trailers() {
                    self.source = None;
                }
                self.keep(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.source = None;
                self.keep_nothing();
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                self.source = None;
                Poll::Ready(None)
            }
        }
    }

    fn read_trailers(&mut self) -> Option<Frame<Bytes>> {
        if std::mem::replace(&mut self.trailers_read, true) {
            return None;
        }
        self.trailers.clone().map(Frame::trailers)
    }

    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    pub(crate) fn is_end_stream(&self, epoch: u32) -> bool {
        if epoch != self.epoch || self.at < self.frames.len() {
            return false;
        }
        match &self.source {
            Some(source) => source.is_end_stream(),
            None => self.trailers.is_none() || self.trailers_read,
        }
    }

    pub(crate) fn size_hint(&self, epoch: u32) -> SizeHint {
        if epoch != self.epoch {
            return SizeHint::default();
        }
        let rest = match &self.source {
            Some(source) => source.size_hint(),
            // With an exact size, HTTP/1 would leave trailers out.
            None if self.trailers.is_some() && !self.trailers_read => SizeHint::default(),
            None => SizeHint::with_exact(0),
        };
        let kept: usize = self.frames[self.at..].iter().map(Bytes::len).sum();
        let mut all = SizeHint::new();
        let sum = |rest: u64| rest.saturating_add(kept as u64);
        if let Some(upper) = rest.upper() {
            all.set_upper(sum(upper));
        }
        all.set_lower(sum(rest.lower()));
        all
    }
}

/// What an attempt reads once it was given up.
#[derive(Debug)]
struct GivenUp;

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the attempt was given up")
    }
}

impl Error for GivenUp {}
