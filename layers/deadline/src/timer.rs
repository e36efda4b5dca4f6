//! A timer that is not made before something has to be waited for.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use palisade_core::time;
use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

#[pin_project]
pub(crate) struct Timer {
    #[pin]
    sleep: Option<Sleep>,
}

impl Timer {
    pub(crate) fn new() -> Self {
        Self { sleep: None }
    }

    /// Waits until `at`, which may move from poll to poll.
    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let mut sleep = self.project().sleep;
        if sleep.is_none() {
            sleep.set(Some(sleep_until(at)));
        }
        let mut sleep = sleep.as_pin_mut().expect("made above");
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                break;
            }
            if sleep.deadline() >= at {
                return Poll::Ready(());
            }
            // Moved only now: a limit that moves with each frame would otherwise cost a turn of the timer each.
            sleep.as_mut().reset(at);
        }
        // A future that uses up the task's budget keeps Tokio's timers from speaking, and even from starting.
        if time::now() >= at {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    #[cfg(test)]
    pub(crate) fn is_made(&self) -> bool {
        self.sleep.is_some()
    }

    pub(crate) fn stop(self: Pin<&mut Self>) {
        self.project().sleep.set(None);
    }
}
