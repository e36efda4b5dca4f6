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

    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let mut sleep = self.project().sleep;
        if sleep.is_none() {
            sleep.set(Some(sleep_until(at)));
        }
        let sleep = sleep.as_pin_mut().expect("made above");
        // A future that uses up the task's budget keeps Tokio's timers from speaking, and even from starting.
        if sleep.poll(cx).is_ready() || time::now() >= at {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    pub(crate) fn stop(self: Pin<&mut Self>) {
        self.project().sleep.set(None);
    }
}
