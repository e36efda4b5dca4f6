//! A request body that can be sent again, for layers that send a request more than once.

mod reel;

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use crate::BoxError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use self::reel::{Keeps, Reel};

/// The request body that the inner service gets.
///
/// While an attempt reads it, what it reads is kept, up to the cap; the next attempt reads that first and then goes on
/// where the one before was. Only the newest attempt can read: one that was given up gets an error instead, and is
/// woken to see it.
#[pin_project]
pub struct ReplayBody<B> {
    #[pin]
    kind: Kind<B>,
}

#[pin_project(project = KindProj)]
enum Kind<B> {
    /// Of a request that will not be sent again.
    Plain(#[pin] B),
    Empty,
    Reader {
        reel: Arc<Mutex<Reel<B>>>,
        epoch: u32,
    },
}

impl<B> ReplayBody<B> {
    /// A body that is sent once: nothing is kept.
    pub fn plain(body: B) -> Self {
        let kind = Kind::Plain(body);
        Self { kind }
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            KindProj::Plain(body) => body.poll_frame(cx).map_err(Into::into),
            KindProj::Empty => Poll::Ready(None),
            KindProj::Reader { reel, epoch } => lock(reel).poll_frame(*epoch, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Plain(body) => body.is_end_stream(),
            Kind::Empty => true,
            Kind::Reader { reel, epoch } => lock(reel).is_end_stream(*epoch),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Plain(body) => body.size_hint(),
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Reader { reel, epoch } => lock(reel).size_hint(*epoch),
        }
    }
}

/// The body of a request that may be sent again, and what was read of it.
///
/// Dropped, it ends the attempt that reads: nothing is sent for a caller that has left. One that is empty allocates
/// nothing.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::{BodyExt, Full};
/// use palisade_core::replay::Tape;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), palisade_core::BoxError> {
/// let tape = Tape::new(Full::<Bytes>::from("hello"), 1024);
/// for _ in 0..2 {
///     assert!(tape.can_replay());
///     assert_eq!(tape.play().collect().await?.to_bytes(), "hello");
/// }
/// # Ok(())
/// # }
/// ```
pub struct Tape<B>(Option<Arc<Mutex<Reel<B>>>>);

impl<B: Body> Tape<B> {
    /// Keeps up to `cap` bytes.
    pub fn new(body: B, cap: usize) -> Self {
        if body.is_end_stream() {
            return Self(None);
        }
        Self(Some(Arc::new(Mutex::new(Reel::new(body, cap)))))
    }

    /// Whether another attempt can be given what this one was.
    pub fn can_replay(&self) -> bool {
        let reel = self.0.as_ref();
        reel.is_none_or(|reel| lock(reel).keeps == Keeps::All)
    }

    /// Takes the body away from the attempt that has it.
    pub fn rewind(&self) {
        if let Some(reel) = &self.0 {
            let waker = lock(reel).next_epoch();
            wake(waker);
        }
    }

    /// The whole body, from its start.
    pub fn play(&self) -> ReplayBody<B> {
        let Some(reel) = &self.0 else {
            return ReplayBody { kind: Kind::Empty };
        };
        let mut now = lock(reel);
        let waker = now.next_epoch();
        let epoch = now.epoch;
        drop(now);
        wake(waker);
        let reel = reel.clone();
        ReplayBody {
            kind: Kind::Reader { reel, epoch },
        }
    }

    /// Leaves the body to the attempt that has it: there will be no other.
    pub fn leave(mut self) {
        if let Some(reel) = self.0.take() {
            lock(&reel).keep_unread();
        }
    }
}

impl<B> Drop for Tape<B> {
    fn drop(&mut self) {
        let Some(reel) = &self.0 else {
            return;
        };
        let mut now = lock(reel);
        let waker = now.next_epoch();
        now.keeps = Keeps::Nothing;
        // Users' code: not under the lock.
        let source = now.source.take();
        let frames = std::mem::take(&mut now.frames);
        drop(now);
        drop((source, frames));
        wake(waker);
    }
}

/// A body that panicked in there is lost: who reads on gets an error, and no other attempt follows.
fn lock<B>(reel: &Mutex<Reel<B>>) -> MutexGuard<'_, Reel<B>> {
    reel.lock().unwrap_or_else(|poisoned| {
        let mut reel = poisoned.into_inner();
        reel.break_off();
        reel
    })
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl<B> fmt::Debug for Tape<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tape")
            .field("empty", &self.0.is_none())
            .finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Plain(_) => "plain",
            Kind::Empty => "empty",
            Kind::Reader { .. } => "kept",
        };
        f.debug_tuple("ReplayBody").field(&kind).finish()
    }
}

#[cfg(test)]
mod tests;
