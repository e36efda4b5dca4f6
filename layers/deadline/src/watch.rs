//! The limits of one request and the timer that waits for them, carried from its future into its body.

use std::{
    cell::RefCell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    thread::LocalKey,
};

use palisade_core::{
    BoxError,
    spare::{Reuse, Shelf, Spare},
    timer::Timer,
};
use pin_project::pin_project;

use crate::{limits::Limits, tally::Tally};

/// Behind a pointer, as it is moved with the future and the answer; so the timer is the same in both.
pub(crate) struct Watch(Spare<Held>);

#[pin_project]
#[derive(Default)]
struct Held {
    /// Left in place: the next request of this thread is mostly of the same layer, and need not write to a count that all
    /// threads share.
    tally: Option<Arc<Tally>>,
    /// Of a request, if it is one's.
    limits: Option<Limits>,
    #[pin]
    timer: Timer,
}

impl Reuse for Held {
    fn shelf() -> &'static LocalKey<Shelf<Self>> {
        thread_local!(static SHELF: Shelf<Held> = const { RefCell::new(Vec::new()) });
        &SHELF
    }

    #[inline]
    fn clear(self: Pin<&mut Self>) {
        let this = self.project();
        *this.limits = None;
        this.timer.stop();
    }
}

impl Watch {
    #[inline]
    pub(crate) fn new(tally: &Arc<Tally>, limits: Limits) -> Self {
        let mut spare = Spare::<Held>::new();
        let held = spare.pin().project();
        let left = held.tally.as_ref();
        if !left.is_some_and(|left| Arc::ptr_eq(left, tally)) {
            *held.tally = Some(tally.clone());
        }
        *held.limits = Some(limits);
        Self(spare)
    }

    #[inline]
    pub(crate) fn limits(&mut self) -> &mut Limits {
        let held = self.0.pin().project();
        held.limits.as_mut().expect("set when it was made")
    }

    /// The error that ends the request because what has just come is late.
    pub(crate) fn late(&mut self) -> Option<BoxError> {
        let (limits, _, tally) = self.parts();
        while let Some(limit) = limits.late() {
            let error = limits.reach(limit, tally);
            if error.is_some() {
                return error;
            }
        }
        None
    }

    #[inline]
    fn parts(&mut self) -> (&mut Limits, Pin<&mut Timer>, &Tally) {
        let held = self.0.pin().project();
        let parts = held.limits.as_mut().zip(held.tally.as_ref());
        let (limits, tally) = parts.expect("set when it was made");
        (limits, held.timer, tally)
    }

    /// Waits for the next limit that ends the request, if there is one.
    pub(crate) fn elapse(&mut self, cx: &mut Context<'_>) -> Poll<BoxError> {
        let (limits, mut timer, tally) = self.parts();
        while let Some((at, limit)) = limits.next() {
            ready!(timer.as_mut().poll(cx, at));
            if let Some(error) = limits.reach(limit, tally) {
                return Poll::Ready(error);
            }
        }
        Poll::Pending
    }

    /// Wakes nobody for limits that there are no more. The next silence would only have to make another timer.
    #[inline]
    pub(crate) fn rest(&mut self) {
        let (limits, timer, _) = self.parts();
        if limits.is_free() && limits.idle.is_never() {
            timer.stop();
        }
    }

    /// Hears the end.
    #[inline]
    pub(crate) fn end(&mut self) {
        let (limits, timer, _) = self.parts();
        limits.end();
        timer.stop();
    }

    #[cfg(test)]
    pub(crate) fn has_timer(&self) -> bool {
        self.0.timer.is_made()
    }
}
