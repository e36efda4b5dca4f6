//! What becomes of one request that may be hedged.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body::Body;
use palisade_core::{
    BoxError,
    attempt::Attempts,
    classify::{Classify, Verdict},
    deadline::Deadline,
    head::RequestHead,
    peek::drain,
    time,
};
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use super::{
    attempt::{Answer, Ended, Run, is_grpc},
    policy::{Chance, Mode, Policy, Sent, Why},
    tape::{FIRST, HedgeBody, Reader, Tape},
};

const ATTEMPT: HeaderName = HeaderName::from_static("x-attempt");
const GRPC_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// A request that may be sent more than once, beside its first attempt.
pub(crate) struct Race<S, C, B, R>
where
    S: Service<Request<HedgeBody<B>>>,
    C: Classify,
{
    policy: Arc<Policy>,
    since: Instant,
    chance: Chance,
    is_grpc: bool,
    /// Whether the time of the first attempt is still to be learnt.
    is_timed: bool,
    tape: Tape<B>,
    /// What another attempt needs; `None` when there will be none.
    next: Option<Next<S, C>>,
    /// Allocates with the first hedge.
    hedges: Vec<Flight<S::Future, C::Judge, R>>,
}

struct Next<S, C> {
    service: S,
    classify: C,
    /// The request as it came, without its body.
    head: Request<()>,
    attempts: Attempts,
    reader: Reader,
    is_due: bool,
    has_waited: bool,
}

/// A hedge that runs.
struct Flight<F, J, R> {
    run: Pin<Box<Run<F, J, R>>>,
    reader: Reader,
    sent: Sent,
}

impl<S, C, B, R> Race<S, C, B, R>
where
    S: Service<Request<HedgeBody<B>>> + Clone,
    C: Classify,
    B: Body,
{
    /// The race, and the request of its first attempt. Takes the service only if there can be a hedge.
    pub(crate) fn new(
        service: &S,
        classify: &C,
        policy: &Arc<Policy>,
        chance: Chance,
        mut request: Request<B>,
        since: Instant,
    ) -> (Self, Request<HedgeBody<B>>) {
        let deadline = request.extensions().get::<Deadline>().copied();
        let is_grpc = is_grpc(request.headers());
        let due = chance.delay.and_then(|delay| since.checked_add(delay));
        let may_hedge = chance.mode == Mode::Enforce
            && due.is_some_and(|due| deadline.is_none_or(|Deadline(deadline)| due < deadline));
        let next = may_hedge.then(|| {
            let head = RequestHead::from(&request).to_request();
            // For a balancer further in; a layer further out may have put them there already.
            let attempts = request.extensions_mut().get_or_insert_default::<Attempts>();
            Next {
                service: service.clone(),
                classify: classify.clone(),
                head,
                attempts: attempts.clone(),
                reader: FIRST + 1,
                is_due: false,
                has_waited: false,
            }
        });
        let (parts, body) = request.into_parts();
        let (tape, body) = if next.is_some() || is_grpc {
            let tape = Tape::new(body, next.is_some().then_some(policy.keep_up_to));
            let body = tape.play(FIRST);
            (tape, body)
        } else {
            (Tape::none(), HedgeBody::plain(body))
        };
        let race = Self {
            policy: policy.clone(),
            since,
            is_timed: policy.times(chance.mode),
            chance,
            is_grpc,
            tape,
            next,
            hedges: Vec::new(),
        };
        (race, Request::from_parts(parts, body))
    }

    /// When the first hedge is due, if there can be one.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next.as_ref()?;
        self.since.checked_add(self.chance.delay?)
    }
}

impl<S, C, B, R> Race<S, C, B, R>
where
    S: Service<Request<HedgeBody<B>>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    C: Classify,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    /// Whether nothing of the request is still to be sent, which an answer in gRPC could be waited for with.
    pub(crate) fn holds(&self) -> bool {
        self.is_grpc && self.tape.is_read()
    }

    /// Hears the first attempt: its answer, if that is the request's.
    pub(crate) fn first(&mut self, ended: Ended<R>) -> Option<Answer<R>> {
        let has_failed = ended.has_failed();
        // One that has failed has not shown how long an answer takes.
        let is_time = !has_failed || ended.verdict == Some(Verdict::TimedOut);
        let took = self.took();
        let learns = took.filter(|_| is_time);
        self.policy.heard(Some(has_failed), learns);
        self.shadow(took);
        self.heard(FIRST, ended, !self.hedges.is_empty())
    }

    /// Polls the hedges: the answer of one, if that is the request's.
    pub(crate) fn poll_hedges(
        &mut self,
        cx: &mut Context<'_>,
        first_runs: bool,
    ) -> Option<Answer<R>> {
        let mut at = 0;
        while let Some(flight) = self.hedges.get_mut(at) {
            // Their bodies have all come.
            let is_grpc = self.is_grpc;
            let Poll::Ready(ended) = flight.run.as_mut().poll(cx, || is_grpc) else {
                at += 1;
                continue;
            };
            let Flight { run, reader, sent } = self.hedges.remove(at);
            drop(run);
            let others = first_runs || !self.hedges.is_empty();
            let has_won = !ended.has_failed();
            self.policy.heard(Some(!has_won), None);
            let answer = self.heard(reader, ended, others);
            if answer.is_some() && has_won {
                sent.won();
            }
            if answer.is_some() {
                return answer;
            }
        }
        None
    }

    fn heard(&mut self, reader: Reader, ended: Ended<R>, others: bool) -> Option<Answer<R>> {
        if !ended.has_failed() || !others {
            // Nothing more is sent for an attempt that has no answer.
            if ended.answer.is_ok() {
                self.tape.leave(reader);
            }
            return Some(ended.answer);
        }
        if self.next.is_some() && ended.pushes_back() {
            self.hold_back(Why::Pushback);
        }
        if let Ok(response) = ended.answer {
            // So that its connection can be used again.
            drain(pin!(response.into_body()));
        }
        None
    }

    /// Sends another attempt when it is due: then it is to be polled.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        mut sleep: Pin<&mut Option<Sleep>>,
    ) -> Poll<()> {
        let Some(next) = &mut self.next else {
            return Poll::Pending;
        };
        if !next.is_due {
            let sleep = sleep.as_mut().as_pin_mut();
            ready!(sleep.expect("set while there is a next").poll(cx));
            next.is_due = true;
            // All that could stand against it is asked before the service is: it may have to keep a place.
            if let Err(why) = self.policy.might(self.chance.cost) {
                self.hold_back(why);
                return Poll::Pending;
            }
            if !self.tape.gather() {
                self.hold_back(Why::Body);
                return Poll::Pending;
            }
        }
        match next.service.poll_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Pending => {
                if !next.has_waited {
                    next.has_waited = true;
                    self.policy.held_back(Why::NotReady);
                }
                return Poll::Pending;
            }
            // It is done for, but the attempts that run are not.
            Poll::Ready(Err(_)) => {
                self.hold_back(Why::NotReady);
                return Poll::Pending;
            }
        }
        if let Err(why) = self.policy.might(self.chance.cost) {
            self.hold_back(why);
            return Poll::Pending;
        }
        let head = RequestHead::from(&next.head);
        if !self.policy.pay(&head, self.chance.cost) {
            self.hold_back(Why::Budget);
            return Poll::Pending;
        }
        self.send(sleep);
        Poll::Ready(())
    }

    fn send(&mut self, mut sleep: Pin<&mut Option<Sleep>>) {
        let Some(mut next) = self.next.take() else {
            return;
        };
        // Before the service is called: it may panic.
        let sent = self.policy.sent();
        let reader = next.reader;
        let request = next.request(&self.tape, self.is_grpc);
        let judge = Some(next.classify.start(&RequestHead::from(&request)));
        let inner = next.service.call(request);
        self.hedges.push(Flight {
            run: Box::pin(Run::Called { inner, judge }),
            reader,
            sent,
        });
        let again = self
            .chance
            .delay
            .and_then(|delay| time::now().checked_add(delay));
        if reader + 1 < self.policy.attempts
            && let Some(at) = again
            && let Some(sleep) = sleep.as_mut().as_pin_mut()
        {
            sleep.reset(at);
            next.reader += 1;
            next.is_due = false;
            next.has_waited = false;
            self.next = Some(next);
        }
    }

    /// There will be no more hedges.
    fn hold_back(&mut self, why: Why) {
        self.policy.held_back(why);
        self.next = None;
        if self.hedges.is_empty() {
            self.tape.only(FIRST);
        }
    }
}

impl<S, C> Next<S, C> {
    fn request<B: Body>(&self, tape: &Tape<B>, is_grpc: bool) -> Request<HedgeBody<B>> {
        let mut request = self.head.clone().map(|()| tape.play(self.reader));
        request.extensions_mut().insert(self.attempts.clone());
        // A retry further out may have counted already.
        let (name, first) = if is_grpc {
            (GRPC_ATTEMPTS, 0)
        } else {
            (ATTEMPT, 1)
        };
        let before = request
            .headers()
            .get(&name)
            .and_then(|value| value.to_str().ok());
        let before = before.and_then(|value| value.parse().ok()).unwrap_or(first);
        let number = usize::saturating_add(before, self.reader);
        request.headers_mut().insert(name, number.into());
        request
    }
}

impl<S, C, B, R> Race<S, C, B, R>
where
    S: Service<Request<HedgeBody<B>>>,
    C: Classify,
{
    /// How long the first attempt has taken, if that is still to be learnt.
    fn took(&mut self) -> Option<(Duration, Instant)> {
        if !std::mem::take(&mut self.is_timed) {
            return None;
        }
        let now = time::now();
        Some((now.saturating_duration_since(self.since), now))
    }

    fn shadow(&self, took: Option<(Duration, Instant)>) {
        if self.chance.mode == Mode::Shadow
            && let Some((took, delay)) = took.map(|took| took.0).zip(self.chance.delay)
            && took > delay
        {
            self.policy.shadowed(self.chance.cost, took - delay);
        }
    }
}

/// The caller has left before the first attempt has answered, or another has won: that it has taken longer than the
/// delay is known all the same. Without these, the delay would shrink by what it does.
impl<S, C, B, R> Drop for Race<S, C, B, R>
where
    S: Service<Request<HedgeBody<B>>>,
    C: Classify,
{
    fn drop(&mut self) {
        let delay = self.chance.delay;
        let took = self.took();
        let took = took.filter(|took| delay.is_some_and(|delay| took.0 >= delay));
        if took.is_some() {
            self.policy.heard(None, took);
            self.shadow(took);
        }
    }
}
