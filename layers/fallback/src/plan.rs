//! What becomes of one request whose service may fail.

use std::{cell::RefCell, future::poll_fn, pin::Pin, sync::Arc, thread::LocalKey};

use http::{Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use palisade_core::{
    BoxError,
    attempt::Attempts,
    classify::Classify,
    deadline::Deadline,
    head::RequestHead,
    reject::Rejected,
    replay::{ReplayBody, Tape},
    retry_after::{Pushback, pushback},
    spare::{Reuse, Shelf, Spare},
};

use crate::{
    Failure,
    alternative::{Kind, has_passed},
    body::Another,
    handle::Steer,
    outcome::{Heard, SHOULD_RETRY},
    policy::Policy,
};

/// Everything that an alternative needs.
pub(crate) struct Plan<B, C> {
    pub(crate) policy: Arc<Policy<B>>,
    classify: C,
    steer: Steer,
    /// The request as it came, without its body; empty if no alternative wants it.
    head: Spare<Head>,
    /// `None` if no alternative wants it.
    body: Option<Tape<B>>,
    deadline: Option<Deadline>,
    /// What the attempts of the alternative that was asked last know of each other.
    attempts: Option<Attempts>,
    /// Somebody on the way has spent attempts of its own.
    gave_up: bool,
}

/// A request without its body: too large to be moved around with the future.
#[derive(Default)]
struct Head {
    request: Request<()>,
}

impl Reuse for Head {
    fn shelf() -> &'static LocalKey<Shelf<Self>> {
        thread_local!(static SHELF: Shelf<Head> = const { RefCell::new(Vec::new()) });
        &SHELF
    }

    fn clear(mut self: Pin<&mut Self>) {
        self.request = Request::default();
    }
}

/// What follows a failure.
pub(crate) enum Next {
    /// It is the caller's.
    Pass,
    /// The same, though an alternative was wanted.
    Exhausted,
    /// This is the answer.
    Given(Box<Response<Another>>),
    /// The alternative at this place is asked, a service.
    Ask(usize),
}

impl<B: Body, C: Classify> Plan<B, C> {
    pub(crate) fn new(
        policy: &Arc<Policy<B>>,
        classify: &C,
        request: Request<B>,
    ) -> (Self, Request<ReplayBody<B>>) {
        let mut head = Spare::<Head>::new();
        if policy.keeps_head() {
            head.get().request = RequestHead::from(&request).to_request();
        }
        let deadline = request.extensions().get().copied();
        let (parts, body) = request.into_parts();
        let (tape, body) = if policy.keeps_body() {
            let tape = Tape::new(body, policy.replay_up_to);
            let body = tape.play();
            (Some(tape), body)
        } else {
            (None, ReplayBody::plain(body))
        };
        let plan = Self {
            policy: policy.clone(),
            classify: classify.clone(),
            steer: policy.stats.steered(),
            head,
            body: tape,
            deadline,
            attempts: None,
            gave_up: false,
        };
        (plan, Request::from_parts(parts, body))
    }

    /// The alternative that is asked instead of the service, if one is forced and can be.
    pub(crate) fn forced(&self) -> Option<Next> {
        let Steer::Forced(at) = self.steer else {
            return None;
        };
        if has_passed(self.deadline) {
            return None;
        }
        self.pick(at, &Failure::PASSED_OVER)
    }

    /// Who serves after a failure: of the alternatives from this place on.
    pub(crate) fn next(&mut self, from: usize, failure: Option<Failure<'_>>) -> Next {
        let Some(failure) = failure.filter(Failure::is_one) else {
            return Next::Pass;
        };
        self.note(&failure);
        if !self.policy.wants(&failure) {
            return Next::Pass;
        }
        // Nobody waits for an answer any more.
        let next = match has_passed(self.deadline) {
            true => None,
            false => self.pick(from, &failure),
        };
        next.unwrap_or_else(|| {
            self.policy.exhausted();
            Next::Exhausted
        })
    }

    fn pick(&self, from: usize, failure: &Failure<'_>) -> Option<Next> {
        let alternatives = self.policy.alternatives.iter().enumerate().skip(from);
        for (at, alternative) in alternatives {
            let asks = matches!(alternative.kind, Kind::Service { .. });
            if asks && !self.body.as_ref().is_some_and(Tape::can_replay)
                || !alternative.applies(&RequestHead::from(&self.head.request))
            {
                continue;
            }
            if self.steer == Steer::Shadow {
                self.policy.shadowed(at);
                return Some(Next::Pass);
            }
            let answer = match &alternative.kind {
                Kind::Service { .. } => return Some(Next::Ask(at)),
                Kind::Value(answer) => Some((**answer).clone()),
                Kind::Function(function) => {
                    function(&RequestHead::from(&self.head.request), failure)
                }
            };
            if let Some(answer) = answer {
                let mut response = answer.into_response();
                self.policy.served(at, &mut response);
                return Some(Next::Given(Box::new(response)));
            }
        }
        None
    }

    /// Remembers that whoever failed has asked as often as is good.
    fn note(&mut self, failure: &Failure<'_>) {
        let outside = self.head.request.extensions().get::<Attempts>();
        let attempts = self.attempts.as_ref().or(outside);
        let answer = failure.answer.map(|head| head.headers);
        let answer = answer.is_some_and(|headers| {
            let should_retry = headers.get(SHOULD_RETRY);
            should_retry.is_some_and(|value| value.as_bytes() == b"false")
                || pushback(headers) == Some(Pushback::Never)
        });
        let trailers = failure.trailers.and_then(pushback) == Some(Pushback::Never);
        let rejected = failure.error.and_then(Rejected::find);
        if !answer
            && !trailers
            && !rejected.is_some_and(Rejected::is_final)
            && !attempts.is_some_and(Attempts::gave_up)
        {
            return;
        }
        self.gave_up = true;
        if let Some(attempts) = outside {
            attempts.give_up();
        }
    }

    /// There will be no other: whoever answers keeps the request's body, and an attempt that did not can read no more.
    pub(crate) fn leave<T>(&mut self, answer: &Result<T, BoxError>) {
        if let Some(body) = self.body.take()
            && answer.is_ok()
        {
            body.leave();
        }
    }

    /// The request for the alternative at this place. Whoever was asked before can read its body no longer.
    fn request(&mut self, at: usize) -> Request<ReplayBody<B>> {
        let tape = self
            .body
            .as_ref()
            .expect("kept while services may be asked");
        let mut request = self.head.request.clone().map(|()| tape.play());
        // Of its own: what the service before gave up, a retry in here has not.
        if let Some(attempts) = request.extensions_mut().get_mut::<Attempts>() {
            *attempts = Attempts::default();
            self.attempts = Some(attempts.clone());
        }
        let Kind::Service {
            rewrite: Some(rewrite),
            ..
        } = &self.policy.alternatives[at].kind
        else {
            return request;
        };
        let (mut head, body) = request.into_parts();
        rewrite(&mut head);
        Request::from_parts(head, body)
    }

    fn is_grpc(&self) -> bool {
        let kind = self.head.request.headers().get(CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    }
}

/// The answer of an alternative.
pub(crate) type Answered = Result<Response<Another>, BoxError>;

/// Asking one alternative after the other: boxed, as only a service that has failed leads here.
pub(crate) type Chain = Pin<Box<dyn Future<Output = Answered> + Send>>;

impl<B, C> Plan<B, C>
where
    B: Body + Send + 'static,
    C: Classify<Judge: Send>,
{
    /// Asks the alternative at this place, and those after it while they fail.
    pub(crate) fn ask(self, at: usize) -> Chain {
        Box::pin(self.chain(at))
    }

    async fn chain(mut self, mut at: usize) -> Answered {
        loop {
            let request = self.request(at);
            let judge = self.classify.start(&RequestHead::from(&request));
            let policy = self.policy.clone();
            let Kind::Service { service, .. } = &policy.alternatives[at].kind else {
                unreachable!("only services are asked");
            };
            let answer = service.ask(request, self.deadline).await;
            let mut outcome =
                match Heard::new(judge, answer, |head| policy.holds_back::<C::Judge>(head)) {
                    Heard::Judged(outcome) => outcome,
                    Heard::Holding(mut holding) => poll_fn(|cx| holding.poll(cx)).await,
                };
            let by = Some(&*policy.entry(at).name);
            let next = self.next(at + 1, outcome.failure(by));
            match next {
                Next::Pass => {
                    let mut answer = outcome.pass();
                    self.leave(&answer);
                    if let Ok(response) = &mut answer {
                        policy.served(at, response);
                    }
                    return answer.map(|response| response.map(Another::Service));
                }
                Next::Exhausted => {
                    if self.gave_up {
                        outcome.give_up(self.is_grpc());
                    }
                    let answer = outcome.pass();
                    self.leave(&answer);
                    return answer.map(|response| response.map(Another::Service));
                }
                Next::Given(response) => {
                    outcome.discard();
                    return Ok(*response);
                }
                Next::Ask(next) => {
                    outcome.discard();
                    at = next;
                }
            }
        }
    }
}
