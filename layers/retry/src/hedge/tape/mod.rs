//! A request body that several attempts read at once.

mod reel;

use std::{
    fmt, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::BoxError;
use pin_project::pin_project;

use self::reel::{Broken, MayRead, Reel, Source};

/// Which attempt reads: the first, or one of two hedges.
pub(crate) type Reader = usize;
pub(crate) const FIRST: Reader = 0;

/// The request body that the inner service gets.
///
/// The first attempt reads the body as it comes, and what it reads is kept, up to the cap. A hedge reads the same from
/// its start, and there is one only when all of it has come. As soon as one attempt has won, the others get an error
/// instead of the rest.
#[pin_project]
pub struct HedgeBody<B> {
    #[pin]
    kind: BodyKind<B>,
}

#[pin_project(project = BodyKindProj)]
enum BodyKind<B> {
    /// Of a request that is sent once.
    Plain(#[pin] B),
    Empty,
    Shared {
        reel: Arc<Mutex<Reel<B>>>,
        reader: Reader,
    },
}

impl<B> HedgeBody<B> {
    pub(crate) fn plain(body: B) -> Self {
        let kind = BodyKind::Plain(body);
        Self { kind }
    }
}

impl<B> Body for HedgeBody<B>
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
            BodyKindProj::Plain(body) => body.poll_frame(cx).map_err(Into::into),
            BodyKindProj::Empty => Poll::Ready(None),
            BodyKindProj::Shared { reel, reader } => read(reel, *reader, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::Plain(body) => body.is_end_stream(),
            BodyKind::Empty => true,
            BodyKind::Shared { reel, reader } => lock(reel).is_end_stream(*reader),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Plain(body) => body.size_hint(),
            BodyKind::Empty => SizeHint::with_exact(0),
            BodyKind::Shared { reel, reader } => lock(reel).size_hint(*reader),
        }
    }
}

/// The body of a request that may be hedged. Dropped, it ends all attempts that read. Of one that is empty there is
/// nothing.
pub(crate) struct Tape<B> {
    reel: Option<Arc<Mutex<Reel<B>>>>,
    /// Whether who reads may go on without it.
    is_left: bool,
}

impl<B: Body> Tape<B> {
    /// Keeps up to `cap` bytes; nothing at all without a cap.
    pub(crate) fn new(body: B, cap: Option<usize>) -> Self {
        if body.is_end_stream() {
            return Self::none();
        }
        let reel = Some(Arc::new(Mutex::new(Reel::new(body, cap))));
        let is_left = false;
        Self { reel, is_left }
    }

    /// The whole body, from its start.
    pub(crate) fn play(&self, reader: Reader) -> HedgeBody<B> {
        let kind = match &self.reel {
            None => BodyKind::Empty,
            Some(reel) => BodyKind::Shared {
                reel: reel.clone(),
                reader,
            },
        };
        HedgeBody { kind }
    }

    /// Whether somebody has read it to its end, so that nothing more is sent.
    pub(crate) fn is_read(&self) -> bool {
        let reel = self.reel.as_ref();
        reel.is_none_or(|reel| lock(reel).is_over())
    }
}

impl<B> Tape<B> {
    /// There is none.
    pub(crate) fn none() -> Self {
        Self {
            reel: None,
            is_left: false,
        }
    }

    /// Nobody else can read from now on, and nothing is kept for others.
    pub(crate) fn only(&self, reader: Reader) {
        if let Some(reel) = &self.reel {
            let mut reel = lock(reel);
            reel.may_read = MayRead::Only(reader);
            reel.keep_unread(reader);
        }
    }

    /// Leaves the body to one attempt, whatever becomes of the tape.
    pub(crate) fn leave(&mut self, reader: Reader) {
        self.only(reader);
        self.is_left = true;
    }
}

impl<B> Tape<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Reads what is there of it, as far as it may be kept. Whether that is all of it.
    pub(crate) fn gather(&self) -> bool {
        let Some(reel) = &self.reel else {
            return true;
        };
        let mut polled = false;
        loop {
            let now = lock(reel);
            if !now.keeps || now.is_over() {
                break;
            }
            drop(now);
            polled = true;
            if pull(reel, None).is_pending() {
                break;
            }
        }
        let mut now = lock(reel);
        let whole = now.keeps && now.is_over();
        // The source would wake us, who do not wait: the reader has to ask it again.
        let waker = polled.then(|| now.waker.take());
        drop(now);
        wake(waker.flatten());
        whole
    }
}

impl<B> Drop for Tape<B> {
    fn drop(&mut self) {
        let Some(reel) = self.reel.as_ref().filter(|_| !self.is_left) else {
            return;
        };
        let mut now = lock(reel);
        now.may_read = MayRead::Nobody;
        now.keeps = false;
        // Users' code: not under the lock.
        let source = mem::replace(&mut now.source, Source::Over);
        let rest = (mem::take(&mut now.frames), now.error.take());
        let waker = now.waker.take();
        drop(now);
        drop((source, rest));
        wake(waker);
    }
}

fn read<B>(
    reel: &Mutex<Reel<B>>,
    reader: Reader,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    loop {
        let mut now = lock(reel);
        if let Some(read) = now.next(reader) {
            return Poll::Ready(read);
        }
        if matches!(now.source, Source::Lent) {
            now.wait(cx);
            return Poll::Pending;
        }
        drop(now);
        if pull(reel, Some(cx)).is_pending() {
            return Poll::Pending;
        }
    }
}

/// Asks the source for one frame more. Without a reader that waits it only looks.
fn pull<B>(reel: &Mutex<Reel<B>>, cx: Option<&mut Context<'_>>) -> Poll<()>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let mut now = lock(reel);
    let mut source = match mem::replace(&mut now.source, Source::Lent) {
        Source::Here(source) => source,
        other => {
            let is_lent = matches!(other, Source::Lent);
            now.source = other;
            return if is_lent {
                Poll::Pending
            } else {
                Poll::Ready(())
            };
        }
    };
    drop(now);

    let loan = Loan(reel);
    let (polled, waits) = match cx {
        Some(cx) => (Pin::new(&mut source).poll_frame(cx), Some(cx)),
        None => {
            let mut cx = Context::from_waker(Waker::noop());
            (Pin::new(&mut source).poll_frame(&mut cx), None)
        }
    };
    let over = !polled.is_pending() && source.is_end_stream();
    mem::forget(loan);

    let mut now = lock(reel);
    if now.may_read == MayRead::Nobody {
        now.source = Source::Over;
        drop(now);
        drop((source, polled));
        return Poll::Ready(());
    }
    let frame = match polled {
        Poll::Ready(frame) => frame,
        Poll::Pending => {
            now.source = Source::Here(source);
            if let Some(cx) = waits {
                now.wait(cx);
            }
            return Poll::Pending;
        }
    };
    let ends = over || !matches!(frame, Some(Ok(_)));
    let spent = if ends {
        now.source = Source::Over;
        Some(source)
    } else {
        now.source = Source::Here(source);
        None
    };
    match frame {
        Some(Ok(frame)) => now.keep(frame),
        Some(Err(error)) => {
            now.error = Some(error.into());
            now.keeps = false;
        }
        None => {}
    }
    drop(now);
    drop(spent);
    Poll::Ready(())
}

/// The source is lent. Dropped, it is lost: it has panicked.
struct Loan<'a, B>(&'a Mutex<Reel<B>>);

impl<B> Drop for Loan<'_, B> {
    fn drop(&mut self) {
        let mut now = lock(self.0);
        now.source = Source::Over;
        now.error = Some(Broken.into());
        now.keeps = false;
        let waker = now.waker.take();
        drop(now);
        wake(waker);
    }
}

fn lock<B>(reel: &Mutex<Reel<B>>) -> MutexGuard<'_, Reel<B>> {
    reel.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl<B> fmt::Debug for HedgeBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            BodyKind::Plain(_) => "plain",
            BodyKind::Empty => "empty",
            BodyKind::Shared { .. } => "shared",
        };
        f.debug_tuple("HedgeBody").field(&kind).finish()
    }
}

#[cfg(test)]
mod tests;
