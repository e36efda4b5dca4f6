//! tokio's `Notify` as its documentation tells it, behind a lock that loom sees.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use loom::sync::Mutex;

#[derive(Debug)]
pub(crate) struct Notify(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Left by `notify_one` when nobody waited.
    permit: bool,
    /// Counts the calls of `notify_waiters`.
    rounds: u64,
    next: u64,
    waiting: VecDeque<Waiter>,
    /// Woken one by one, and not yet polled.
    woken: Vec<u64>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    waker: Option<Waker>,
}

impl Notify {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State::default()))
    }

    pub(crate) fn notify_one(&self) {
        self.0.lock().unwrap().wake_one();
    }

    /// Also those that were made and do not wait yet.
    pub(crate) fn notify_waiters(&self) {
        let mut state = self.0.lock().unwrap();
        state.rounds += 1;
        for waiter in state.waiting.drain(..) {
            waiter.wake();
        }
    }

    pub(crate) fn notified_owned(self: Arc<Self>) -> OwnedNotified {
        let mut state = self.0.lock().unwrap();
        let (id, round) = (state.next, state.rounds);
        state.next += 1;
        drop(state);
        OwnedNotified {
            notify: self,
            id,
            round,
            enabled: false,
            over: false,
        }
    }
}

impl State {
    fn wake_one(&mut self) {
        match self.waiting.pop_front() {
            Some(waiter) => {
                self.woken.push(waiter.id);
                waiter.wake();
            }
            None => self.permit = true,
        }
    }
}

impl Waiter {
    fn wake(self) {
        if let Some(waker) = self.waker {
            waker.wake();
        }
    }
}

#[derive(Debug)]
pub(crate) struct OwnedNotified {
    notify: Arc<Notify>,
    id: u64,
    round: u64,
    enabled: bool,
    over: bool,
}

impl OwnedNotified {
    pub(crate) fn enable(self: Pin<&mut Self>) -> bool {
        self.get_mut().look(None)
    }

    fn look(&mut self, waker: Option<&Waker>) -> bool {
        if self.over {
            return true;
        }
        let mut state = self.notify.0.lock().unwrap();
        let woken = state.woken.len();
        state.woken.retain(|&id| id != self.id);
        self.over = state.rounds != self.round || state.woken.len() < woken;
        if !self.over && !self.enabled {
            self.over = std::mem::take(&mut state.permit);
        }
        if self.over {
            return true;
        }
        let (id, waker) = (self.id, waker.cloned());
        match state.waiting.iter_mut().find(|waiter| waiter.id == id) {
            Some(waiter) => waiter.waker = waker.or(waiter.waker.take()),
            None => state.waiting.push_back(Waiter { id, waker }),
        }
        self.enabled = true;
        false
    }
}

impl Future for OwnedNotified {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.get_mut().look(Some(cx.waker())) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for OwnedNotified {
    fn drop(&mut self) {
        let mut state = self.notify.0.lock().unwrap();
        state.waiting.retain(|waiter| waiter.id != self.id);
        let woken = state.woken.len();
        state.woken.retain(|&id| id != self.id);
        // Who was woken alone and has not heard of it hands it on.
        if state.woken.len() < woken {
            state.wake_one();
        }
    }
}
