//! The mechanism of a body that several attempts read at once: what was read of it, and who may read.

use std::{
    collections::VecDeque,
    error::Error,
    fmt, mem,
    task::{Context, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use palisade_core::BoxError;

use super::Reader;

pub(crate) const READERS: usize = 3;
/// What a frame is charged at least: its place in the list of frames.
pub(crate) const LEAST: usize = size_of::<Bytes>();

/// What the attempts share.
pub(crate) struct Reel<B> {
    pub(crate) source: Source<B>,
    pub(crate) frames: VecDeque<Bytes>,
    /// Frames that came before these and are not kept.
    gone: usize,
    trailers: Option<HeaderMap>,
    /// What the source ended with, until it is read.
    pub(crate) error: Option<BoxError>,
    room: usize,
    /// Whether another attempt can be given all that was read.
    pub(crate) keeps: bool,
    pub(crate) may_read: MayRead,
    /// The frame that each reads next.
    at: [usize; READERS],
    trailers_read: [bool; READERS],
    /// Of the first attempt: the others do not wait.
    pub(crate) waker: Option<Waker>,
}

pub(crate) enum Source<B> {
    Here(B),
    /// Being polled outside of the lock.
    Lent,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MayRead {
    All,
    Only(Reader),
    Nobody,
}

impl MayRead {
    fn includes(self, reader: Reader) -> bool {
        match self {
            Self::All => true,
            Self::Only(one) => one == reader,
            Self::Nobody => false,
        }
    }
}

impl<B> Reel<B> {
    pub(crate) fn new(source: B, cap: Option<usize>) -> Self {
        Self {
            source: Source::Here(source),
            frames: VecDeque::new(),
            gone: 0,
            trailers: None,
            error: None,
            room: cap.unwrap_or(0),
            keeps: cap.is_some(),
            may_read: MayRead::All,
            at: [0; READERS],
            trailers_read: [false; READERS],
            waker: None,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.source, Source::Over)
    }

    /// What is there for a reader; `None` when it has to ask the source.
    pub(crate) fn next(
        &mut self,
        reader: Reader,
    ) -> Option<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.may_read.includes(reader) {
            return Some(Some(Err(GivenUp.into())));
        }
        self.keep_unread(reader);
        let at = self.at[reader] - self.gone;
        if at < self.frames.len() {
            self.at[reader] += 1;
            let data = if self.keeps {
                self.frames.get(at).cloned()
            } else {
                self.gone += 1;
                self.frames.pop_front()
            };
            return data.map(|data| Some(Ok(Frame::data(data))));
        }
        if !self.is_over() {
            return None;
        }
        if let Some(error) = self.error.take() {
            return Some(Some(Err(error)));
        }
        if mem::replace(&mut self.trailers_read[reader], true) {
            return Some(None);
        }
        let trailers = if self.keeps {
            self.trailers.clone()
        } else {
            self.trailers.take()
        };
        Some(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    /// Forgets what the only reader has read.
    pub(crate) fn keep_unread(&mut self, reader: Reader) {
        if self.may_read != MayRead::All {
            self.keeps = false;
        }
        if !self.keeps {
            let read = self.at[reader] - self.gone;
            self.frames.drain(..read);
            self.gone = self.at[reader];
        }
    }

    pub(crate) fn keep(&mut self, frame: Frame<Bytes>) {
        let size = match frame.into_data() {
            Ok(data) => {
                let size = data.len();
                self.frames.push_back(data);
                size
            }
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else {
                    return;
                };
                let sizes = trailers
                    .iter()
                    .map(|(name, value)| name.as_str().len() + value.len());
                let size = sizes.sum();
                self.trailers = Some(trailers);
                self.source = Source::Over;
                size
            }
        };
        match self.room.checked_sub(size.max(LEAST)) {
            Some(room) => self.room = room,
            // Nothing that was read is lost, but no other attempt can read all of it.
            None => self.keeps = false,
        }
    }
}

impl<B: Body> Reel<B> {
    pub(crate) fn is_end_stream(&self, reader: Reader) -> bool {
        if !self.may_read.includes(reader) || self.at[reader] < self.gone + self.frames.len() {
            return false;
        }
        match &self.source {
            Source::Here(source) => source.is_end_stream(),
            Source::Lent => false,
            Source::Over => {
                self.error.is_none() && (self.trailers.is_none() || self.trailers_read[reader])
            }
        }
    }

    pub(crate) fn size_hint(&self, reader: Reader) -> SizeHint {
        if !self.may_read.includes(reader) {
            return SizeHint::default();
        }
        let unread = self.frames.iter().skip(self.at[reader] - self.gone);
        let kept = unread.map(|data| data.len() as u64).sum();
        let rest = match &self.source {
            Source::Here(source) => source.size_hint(),
            // With an exact size, HTTP/1 would leave trailers out.
            Source::Over if self.trailers.is_none() && self.error.is_none() => {
                SizeHint::with_exact(0)
            }
            Source::Lent | Source::Over => SizeHint::default(),
        };
        let mut all = SizeHint::new();
        if let Some(upper) = rest.upper() {
            all.set_upper(upper.saturating_add(kept));
        }
        all.set_lower(rest.lower().saturating_add(kept));
        all
    }
}

impl<B> Reel<B> {
    pub(crate) fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }
}

/// What an attempt reads once another has won.
#[derive(Debug)]
struct GivenUp;

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the attempt was given up")
    }
}

impl Error for GivenUp {}

/// What is read of a body that has panicked.
#[derive(Debug)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request body panicked")
    }
}

impl Error for Broken {}
