//! A timer that is not made before something has to be waited for.

use std::{
    cell::RefCell,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    thread::LocalKey,
};

use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    spare::{Reuse, Shelf},
    time,
};

/// Speaks when its time has come, and costs nothing as long as nobody waits for that.
///
/// ```
/// use std::{future::poll_fn, pin::pin, time::Duration};
///
/// use palisade_core::{time::now, timer::Timer};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let mut timer = pin!(Timer::new());
/// let at = now() + Duration::from_secs(1);
/// poll_fn(|cx| timer.as_mut().poll(cx, at)).await;
/// assert!(now() >= at);
/// # }
/// ```
#[pin_project]
#[derive(Default)]
pub struct Timer {
    #[pin]
    sleep: Option<Sleep>,
}

impl Timer {
    /// One that is not made yet.
    #[inline]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until `at`, which may move from poll to poll. Needs a Tokio runtime.
    pub fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
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

    /// Whether somebody has waited, and it was not stopped since.
    pub fn is_made(&self) -> bool {
        self.sleep.is_some()
    }

    /// Wakes nobody any more.
    #[inline]
    pub fn stop(self: Pin<&mut Self>) {
        let mut sleep = self.project().sleep;
        if sleep.is_some() {
            sleep.set(None);
        }
    }
}

/// For those who seldom wait: what Tokio needs for it is large.
impl Reuse for Timer {
    fn shelf() -> &'static LocalKey<Shelf<Self>> {
        thread_local!(static SHELF: Shelf<Timer> = const { RefCell::new(Vec::new()) });
        &SHELF
    }

    #[inline]
    fn clear(self: Pin<&mut Self>) {
        self.stop();
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deadline = self.sleep.as_ref().map(Sleep::deadline);
        f.debug_struct("Timer").field("at", &deadline).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{runtime, time::advance};
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;
    use crate::spare::Spare;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn it_waits_until_the_time_that_it_was_told_last() {
        let (mut timer, start) = (task::spawn(Spare::<Timer>::new()), time::now());
        let poll = |timer: &mut task::Spawn<Spare<Timer>>, after: Duration| {
            let at = start + after;
            timer.enter(|cx, mut timer| timer.pin().poll(cx, at))
        };
        assert_pending!(poll(&mut timer, 2 * SECOND));
        // Sooner, and then later.
        assert_pending!(poll(&mut timer, SECOND));
        advance(SECOND).await;
        assert!(timer.is_woken());
        assert_pending!(poll(&mut timer, 3 * SECOND));
        advance(SECOND).await;
        assert_pending!(poll(&mut timer, 3 * SECOND));
        advance(SECOND).await;
        assert!(timer.is_woken());
        assert_ready!(poll(&mut timer, 3 * SECOND));
    }

    #[test]
    fn one_that_was_left_waits_for_nobody_and_speaks_in_any_runtime() {
        for _ in 0..2 {
            let runtime = runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut timer = Spare::<Timer>::new();
                assert!(!timer.is_made());
                let mut waits = task::spawn(());
                let at = time::now() + SECOND;
                assert_pending!(waits.enter(|cx, _| timer.pin().poll(cx, at)));
                drop(timer);
                advance(SECOND).await;
                assert!(!waits.is_woken());

                let (mut next, at) = (Spare::<Timer>::new(), time::now() + SECOND);
                std::future::poll_fn(|cx| next.pin().poll(cx, at)).await;
                assert_eq!(time::now(), at);
            });
        }
    }
}
