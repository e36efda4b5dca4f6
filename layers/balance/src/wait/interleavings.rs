//! All interleavings of a few threads: `RUSTFLAGS="--cfg loom" cargo test -p palisade-balance --lib wait`.

use std::task::Waker;

use loom::{sync::Mutex, thread};
use palisade_core::time;

use super::*;

const LATER: Duration = Duration::from_secs(3600);

/// A set that has places and nothing else.
struct Set {
    free: Mutex<u32>,
    shortage: Arc<Shortage>,
}

impl Set {
    fn new(free: u32) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new(free),
            shortage: Arc::new(Shortage::new(time::now())),
        })
    }

    fn take(&self) -> bool {
        let mut free = self.free.lock().unwrap();
        let taken = *free > 0;
        *free -= u32::from(taken);
        taken
    }

    /// A request has ended.
    fn give(&self) {
        *self.free.lock().unwrap() += 1;
        self.shortage.end_for_one();
    }
}

/// A request as `Choosing` polls it.
struct Request {
    set: Arc<Set>,
    wait: Option<Pin<Box<Wait>>>,
    declared: bool,
    passed: u64,
    /// No place is of use: its endpoint is not ready.
    picky: bool,
    done: bool,
}

impl Request {
    fn new(set: &Arc<Set>) -> Self {
        Self {
            set: set.clone(),
            wait: None,
            declared: false,
            passed: 0,
            picky: false,
            done: false,
        }
    }

    fn picky(set: &Arc<Set>) -> Self {
        let mut request = Self::new(set);
        request.picky = true;
        request
    }

    /// Says whether it has a place.
    fn poll(&mut self) -> bool {
        let (now, until) = (time::now(), time::now() + LATER);
        loop {
            if !self.picky && self.set.take() {
                self.wait = None;
                if self.declared {
                    self.set.shortage.relieve();
                }
                self.done = true;
                return true;
            }
            if self.picky {
                self.set.shortage.pass_on(&mut self.passed);
            }
            match &mut self.wait {
                Some(wait) => {
                    if !is_over(wait, until) {
                        return false;
                    }
                    self.wait = None;
                }
                None => {
                    self.wait = Some(self.set.shortage.wait(until));
                    self.declared = true;
                    self.set.shortage.declare(now, until);
                }
            }
        }
    }
}

impl Request {
    /// As an executor does: not before it is woken.
    fn poll_if_woken(&mut self) -> bool {
        if let Some(wait) = &mut self.wait {
            if !is_over(wait, time::now() + LATER) {
                return false;
            }
            self.wait = None;
        }
        self.poll()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.done {
            self.wait = None;
            self.set.shortage.end_for_one();
        }
    }
}

fn is_over(wait: &mut Pin<Box<Wait>>, until: Instant) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    wait.as_mut().poll(&mut cx, until).is_ready()
}

/// A clone of the service as `Balance::poll_ready` has it: `None` when it is ready.
fn poll_ready(shortage: &Shortage) -> Option<Pin<Box<Wait>>> {
    let until = shortage.until()?;
    let wait = shortage.wait_to_be_ready(until);
    shortage.until()?;
    Some(wait)
}

fn model(interleaving: impl Fn() + Send + Sync + 'static) {
    // For the timers, which never fire here.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let mut builder = loom::model::Builder::new();
    // All with up to so many switches before a thread has to wait: without a bound they do not end within minutes.
    builder.preemption_bound = Some(3);
    builder.check(interleaving);
}

#[test]
fn a_place_that_becomes_free_is_never_missed() {
    model(|| {
        let set = Set::new(0);
        let giver = {
            let set = set.clone();
            thread::spawn(move || set.give())
        };
        let mut request = Request::new(&set);
        let at_once = request.poll();
        giver.join().unwrap();
        assert!(
            at_once || request.poll_if_woken(),
            "waits beside a free place"
        );
        assert_eq!(set.shortage.until(), None);
    });
}

#[test]
fn two_places_are_enough_for_two_that_wait() {
    model(|| {
        let set = Set::new(0);
        let giver = {
            let set = set.clone();
            thread::spawn(move || {
                set.give();
                set.give();
            })
        };
        let other = {
            let set = set.clone();
            thread::spawn(move || {
                let mut request = Request::new(&set);
                (request.poll(), request)
            })
        };
        let mut first = Request::new(&set);
        let at_once = first.poll();
        let (also_at_once, mut second) = other.join().unwrap();
        giver.join().unwrap();
        assert!(at_once || first.poll_if_woken(), "the first");
        assert!(also_at_once || second.poll_if_woken(), "the second");
        assert_eq!(set.shortage.until(), None);
    });
}

#[test]
fn who_has_no_use_for_a_place_passes_it_on() {
    model(|| {
        let set = Set::new(0);
        let mut picky = Request::picky(&set);
        assert!(!picky.poll());
        let giver = {
            let set = set.clone();
            thread::spawn(move || set.give())
        };
        let mut request = Request::new(&set);
        let at_once = request.poll();
        giver.join().unwrap();
        picky.poll_if_woken();
        assert!(
            at_once || request.poll_if_woken(),
            "waits beside a free place"
        );
    });
}

#[test]
fn who_leaves_takes_no_place_along() {
    model(|| {
        let set = Set::new(0);
        let mut leaves = Request::new(&set);
        assert!(!leaves.poll());
        let mut stays = Request::new(&set);
        assert!(!stays.poll());
        let giver = {
            let set = set.clone();
            thread::spawn(move || set.give())
        };
        drop(leaves);
        giver.join().unwrap();
        assert!(stays.poll_if_woken(), "not woken instead");
        assert_eq!(set.shortage.until(), None);
    });
}

#[test]
fn a_clone_hears_of_the_end_of_a_shortage() {
    model(|| {
        let set = Set::new(0);
        let mut request = Request::new(&set);
        assert!(!request.poll());
        let ender = {
            let set = set.clone();
            thread::spawn(move || set.shortage.end())
        };
        let clone = poll_ready(&set.shortage);
        ender.join().unwrap();
        if let Some(mut wait) = clone {
            assert!(is_over(&mut wait, time::now() + LATER), "not woken");
        }
        assert_eq!(set.shortage.until(), None);
    });
}

#[test]
fn no_shortage_outlives_the_requests_that_declared_it() {
    model(|| {
        let set = Set::new(1);
        let other = {
            let set = set.clone();
            thread::spawn(move || {
                let mut request = Request::new(&set);
                if request.poll() {
                    set.give();
                }
            })
        };
        let mut request = Request::new(&set);
        let at_once = request.poll();
        if at_once {
            set.give();
        }
        other.join().unwrap();
        assert!(
            at_once || request.poll_if_woken(),
            "waits beside a free place"
        );
        assert_eq!(set.shortage.until(), None);
    });
}
