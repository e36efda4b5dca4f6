//! What becomes of one request that may be sent more than once.

use std::{
    cell::RefCell,
    pin::{Pin, pin},
    sync::Arc,
    thread::LocalKey,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, header::CONTENT_TYPE, response};
use http_body::Body;
use palisade_core::{
    BoxError,
    attempt::Attempts,
    classify::{Judge, Verdict},
    deadline::Deadline,
    head::{RequestHead, ResponseHead},
    peek::{Peeked, PeekedBody, drain},
    reject::Rejected,
    replay::{ReplayBody, Tape},
    spare::{Reuse, Shelf, Spare},
    time,
};
use tokio::time::Instant;

use crate::{
    backoff::Progress,
    budget::Purse,
    handle::{Mode, count},
    limits::{Now, Until},
    policy::{Exhausted, GRPC_PUSHBACK, Outcome, Policy, Repeat, SHOULD_RETRY},
};

const ATTEMPT: HeaderName = HeaderName::from_static("x-attempt");
const GRPC_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// Everything that another attempt needs.
pub(crate) struct Plan<S, C, B> {
    pub(crate) service: S,
    pub(crate) classify: C,
    pub(crate) policy: Arc<Policy>,
    repeat: Repeat,
    pub(crate) body: Tape<B>,
    attempts: Attempts,
    course: Spare<Course>,
}

/// The request as it came, and how far it has got: too large to be moved around with the future.
struct Course {
    /// Without its body.
    head: Request<()>,
    purse: Purse,
    /// No attempt begins that would not be over by then: the deadline of the layer, or the caller's.
    deadline: Option<Instant>,
    /// When the attempt that runs began, if that matters.
    since: Option<Instant>,
    /// The number of the attempt that runs, or is next.
    attempt: u32,
    progress: Progress,
    /// What the attempt before has ended with.
    because: Verdict,
    was_unsent: bool,
}

impl Default for Course {
    fn default() -> Self {
        Self {
            head: Request::default(),
            purse: Purse::default(),
            deadline: None,
            since: None,
            attempt: 1,
            progress: Progress::default(),
            because: Verdict::Success,
            was_unsent: false,
        }
    }
}

impl Reuse for Course {
    fn shelf() -> &'static LocalKey<Shelf<Self>> {
        thread_local!(static SHELF: Shelf<Course> = const { RefCell::new(Vec::new()) });
        &SHELF
    }

    fn clear(mut self: Pin<&mut Self>) {
        *self = Self::default();
    }
}

/// What follows an attempt.
enum Next {
    /// Its answer or error is the caller's.
    Pass,
    /// The same, though it should have been retried.
    GiveUp(Exhausted),
    /// Another attempt, then or at once.
    Wait(Option<Instant>),
}

impl<S, C, B: Body> Plan<S, C, B> {
    pub(crate) fn new(
        service: S,
        classify: &C,
        policy: &Arc<Policy>,
        repeat: Repeat,
        purse: Purse,
        until: &Until,
        mut request: Request<B>,
    ) -> (Self, Request<ReplayBody<B>>)
    where
        C: Clone,
    {
        let head = RequestHead::from(&request).to_request();
        let theirs = head
            .extensions()
            .get::<Deadline>()
            .map(|deadline| deadline.0);
        let deadline = [theirs, until.over()].into_iter().flatten().min();
        // For a balancer further in; a layer further out may have put them there already.
        let attempts = request.extensions_mut().get_or_insert_default::<Attempts>();
        let attempts = attempts.clone();
        let (parts, body) = request.into_parts();
        let body = Tape::new(body, policy.replay_up_to);
        let request = Request::from_parts(parts, body.play());
        let mut course = Spare::<Course>::new();
        let Course {
            head: as_it_came,
            purse: paid_from,
            deadline: by,
            ..
        } = course.get();
        (*as_it_came, *paid_from, *by) = (head, purse, deadline);
        let plan = Self {
            service,
            classify: classify.clone(),
            policy: policy.clone(),
            repeat,
            body,
            attempts,
            course,
        };
        (plan, request)
    }

    /// What the attempt before has ended with.
    pub(crate) fn because(&self) -> Verdict {
        self.course.because
    }

    /// An attempt begins.
    pub(crate) fn begin(&mut self, now: &Now) {
        let course = self.course.get();
        course.since = course.deadline.map(|_| **now);
        course.purse.spend();
    }

    /// The attempt has its answer.
    fn answered(&mut self) {
        if let Some(since) = self.course.get().since.take() {
            let took = time::now().saturating_duration_since(since);
            self.policy.stats.typical.record(took);
        }
    }

    /// The request of another attempt.
    pub(crate) fn request(&self) -> Request<ReplayBody<B>> {
        let Course { head, attempt, .. } = &*self.course;
        let mut request = head.clone().map(|()| self.body.play());
        request.extensions_mut().insert(self.attempts.clone());
        let (name, number) = if self.is_grpc() {
            (GRPC_ATTEMPTS, *attempt - 1)
        } else {
            (ATTEMPT, *attempt)
        };
        request.headers_mut().insert(name, number.into());
        request
    }

    fn next(&mut self, outcome: &Outcome<'_>) -> Next {
        if self.attempts.gave_up() || !self.policy.wants(self.repeat, outcome) {
            return Next::Pass;
        }
        let mode = self.policy.mode.get();
        if mode == Mode::Off {
            return Next::Pass;
        }
        match self.another(outcome) {
            Ok(_) if mode == Mode::Shadow => {
                self.course.get().purse.spend();
                count(&self.policy.stats.shadowed);
                self.policy.metrics.shadowed(outcome.verdict);
                Next::Pass
            }
            Ok(at) => {
                let course = self.course.get();
                course.attempt += 1;
                course.because = outcome.verdict;
                // Nothing more is sent for an attempt that has failed.
                self.body.rewind();
                Next::Wait(at)
            }
            Err(why) => {
                count(&self.policy.stats.exhausted);
                self.policy.metrics.exhausted(why);
                if mode == Mode::Shadow {
                    return Next::Pass;
                }
                if why.is_final() {
                    // For a layer further out, which can read no mark on an error that is not ours.
                    self.attempts.give_up();
                }
                Next::GiveUp(why)
            }
        }
    }

    /// When, if not at once. The budget comes last: nothing is taken from it for an attempt that is not made.
    fn another(&mut self, outcome: &Outcome<'_>) -> Result<Option<Instant>, Exhausted> {
        let course = self.course.get();
        if course.attempt >= self.policy.attempts {
            return Err(Exhausted::Attempts);
        }
        if !self.body.can_replay() {
            return Err(Exhausted::Body);
        }
        let unsent = outcome.verdict == Verdict::Unsent;
        let free = unsent && !course.was_unsent;
        course.was_unsent |= unsent;
        let delay = match outcome.hint() {
            Some(hint) if hint > self.policy.wait_up_to => return Err(Exhausted::Delay),
            Some(hint) => {
                // What follows it begins anew, says gRFC A6.
                course.progress = Progress::default();
                hint
            }
            // The service has not seen it, so there is nothing to recover from.
            None if free => Duration::ZERO,
            None => self.policy.backoff.next(&mut course.progress),
        };
        let at = time::now().checked_add(delay).ok_or(Exhausted::Delay)?;
        if let Some(deadline) = course.deadline {
            let left = deadline.saturating_duration_since(at);
            if left.is_zero() || left < self.policy.stats.typical.get() {
                return Err(Exhausted::Deadline);
            }
        }
        let at = Some(at).filter(|_| !delay.is_zero());
        let cost = match outcome.verdict {
            Verdict::Unsent if free => return Ok(at),
            // It has taken its time, and may still be at work.
            Verdict::TimedOut => 2,
            _ => 1,
        };
        let taken = course.purse.take(cost);
        let (Ok(left) | Err(left)) = taken;
        self.policy.paid(left);
        taken.map(|_| at).map_err(|_| Exhausted::Budget)
    }

    fn is_grpc(&self) -> bool {
        let kind = self.course.head.headers().get(CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    }

    /// Tells the caller not to try what was tried.
    fn mark<T>(&self, response: &mut Response<T>, why: Exhausted) {
        if !why.is_final() {
            return;
        }
        let (name, value) = if self.is_grpc() {
            (GRPC_PUSHBACK, "-1")
        } else {
            (SHOULD_RETRY, "false")
        };
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
}

/// What an attempt has led to.
pub(crate) enum Step<J, R> {
    Done(Result<Response<PeekedBody<R>>, BoxError>),
    Peek(Peek<J, R>),
    Wait(Option<Instant>),
}

impl<S, C, B: Body> Plan<S, C, B> {
    pub(crate) fn heard<J, R>(
        &mut self,
        mut judge: J,
        answer: Result<Response<R>, BoxError>,
    ) -> Step<J, R>
    where
        J: Judge,
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        let mut response = match answer {
            Ok(response) => response,
            Err(error) => return self.failed(&mut judge, error),
        };
        let head = ResponseHead::from(&response);
        let Some(verdict) = judge.head(&head) else {
            if J::READS_DATA && head.is_event_stream() && !response.body().is_end_stream() {
                let (head, body) = response.into_parts();
                let body = Peeked::new(body);
                return Step::Peek(Peek { head, body, judge });
            }
            self.answered();
            return Step::Done(Ok(response.map(PeekedBody::plain)));
        };
        if verdict == Verdict::Success {
            self.answered();
        }
        let outcome = Outcome {
            verdict,
            answer: Some(&head),
            error: None,
        };
        match self.next(&outcome) {
            Next::Pass => {}
            Next::GiveUp(why) => self.mark(&mut response, why),
            Next::Wait(at) => {
                drain(pin!(response.into_body()));
                return Step::Wait(at);
            }
        }
        Step::Done(Ok(response.map(PeekedBody::plain)))
    }

    pub(crate) fn failed<J: Judge, R>(&mut self, judge: &mut J, mut error: BoxError) -> Step<J, R> {
        let outcome = Outcome {
            verdict: judge.error(&*error),
            answer: None,
            error: Some(&*error),
        };
        match self.next(&outcome) {
            Next::Wait(at) => return Step::Wait(at),
            Next::GiveUp(why) if why.is_final() => {
                if let Some(rejected) = error.downcast_mut::<Rejected>() {
                    rejected.give_up();
                }
            }
            Next::GiveUp(_) | Next::Pass => {}
        }
        Step::Done(Err(error))
    }

    pub(crate) fn peeked<J, R>(&mut self, peek: Peek<J, R>, verdict: Option<Verdict>) -> Step<J, R>
    where
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        if verdict.is_none_or(|verdict| verdict == Verdict::Success) {
            self.answered();
        }
        let mut response = Response::from_parts(peek.head, ());
        let next = verdict.map_or(Next::Pass, |verdict| {
            self.next(&Outcome {
                verdict,
                answer: Some(&ResponseHead::from(&response)),
                error: peek.body.error(),
            })
        });
        match next {
            Next::Pass => {}
            Next::GiveUp(why) => self.mark(&mut response, why),
            Next::Wait(at) => {
                peek.body.drain();
                return Step::Wait(at);
            }
        }
        Step::Done(Ok(response.map(|()| PeekedBody::peeked(peek.body))))
    }
}

/// An event stream that has begun, while its first data are awaited.
pub(crate) struct Peek<J, R> {
    head: response::Parts,
    pub(crate) body: Peeked<R>,
    pub(crate) judge: J,
}
