//! Polling by hand: who has asked for it, and who panics on purpose.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
};

use super::wild::OnPurpose;

/// Says which schedule has failed.
pub(crate) struct Told(pub(crate) u64);

impl Drop for Told {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("PALISADE_SEED={}", self.0);
        }
    }
}

/// Whether a waker was woken.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// Something to poll, and whether it asked for that.
pub(crate) struct Polled<T> {
    pub(crate) it: T,
    flag: Arc<Flag>,
    /// Whether it was pending when it was polled last.
    pub(crate) pending: bool,
}

impl<T> Polled<T> {
    pub(crate) fn new(it: T) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let pending = false;
        Self { it, flag, pending }
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.flag.0.load(Relaxed)
    }

    /// `None` when it has panicked on purpose.
    pub(crate) fn poll<R>(
        &mut self,
        poll: impl FnOnce(&mut T, &mut Context<'_>) -> Poll<R>,
    ) -> Option<Poll<R>> {
        self.flag.0.store(false, Relaxed);
        let waker = Waker::from(self.flag.clone());
        let mut cx = Context::from_waker(&waker);
        let polled = perhaps(|| poll(&mut self.it, &mut cx));
        self.pending = matches!(polled, Some(Poll::Pending));
        polled
    }
}

/// `None` when it has panicked on purpose.
pub(crate) fn perhaps<R>(act: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(done) => Some(done),
        Err(panic) if panic.is::<OnPurpose>() => None,
        Err(panic) => resume_unwind(panic),
    }
}
