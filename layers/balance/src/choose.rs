//! A request that has no endpoint yet: it waits here until one is admitted and ready.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Request;
use palisade_core::{
    BoxError,
    attempt::Attempts,
    classify::Classify,
    cost::Cost,
    deadline::Deadline,
    gate::{Admission, Admit, Gate},
    head::RequestHead,
    reject::Rejected,
    settle::Watch,
    time,
};
use tokio::time::{Instant, Sleep, sleep_until};
use tower_service::Service;

use crate::{
    Affinity, Call, Endpoints, NoEndpoint,
    endpoints::Member,
    fleet::{Need, Want},
    wait::Wait,
};

/// A gate that takes this long may have kept a place from others.
const THOUGHT: Duration = Duration::from_millis(1);

pub(crate) struct Choosing<S, G: Gate, C: Classify, R> {
    /// Moves on into the call, so that a request clones it once: `None` while that is tried, and afterwards.
    endpoints: Option<Endpoints<S, G>>,
    classify: C,
    patience: Duration,
    deadline: Option<Instant>,
    request: Option<Request<R>>,
    /// Endpoints that were picked and did not come about. Not allocated as long as all do.
    aside: Vec<Aside<S, G>>,
    admitting: Option<Box<Admitting<S, G, C::Judge>>>,
    wait: Option<Pin<Box<Wait>>>,
    /// Others were told that there is nothing to pick.
    declared: bool,
    /// The last free place that was of no use here.
    passed: u64,
}

/// An endpoint that was picked and did not come about.
struct Aside<S, G> {
    member: Arc<Member<S, G>>,
    why: Why<S>,
}

enum Why<S> {
    /// It is polled again on each wake, and the one that was ready is the one called.
    Unready(S),
    /// It failed while it became ready: out, for this request.
    Broken,
    /// Its gate refused, this time.
    Refused { until: Option<Instant> },
}

/// A gate that takes its time. The endpoint is ready meanwhile, and its place is taken.
struct Admitting<S, G: Gate, J> {
    admission: Admission<G::Guard>,
    limit: Pin<Box<Sleep>>,
    since: Instant,
    service: S,
    call: Call<S, G>,
    judge: J,
}

/// What watches the call, once there is one.
pub(crate) type Watching<S, G, J> = Option<Watch<Call<S, G>, J>>;

enum Step<S> {
    Chosen(S),
    Admitting,
    /// Looking again helps at this time, or when another request ends.
    Nothing(Option<Instant>),
    /// Looking again may help at this time, but nobody waits for it.
    Refused(Option<Instant>),
}

impl<S, G, C, R> Choosing<S, G, C, R>
where
    G: Gate,
    C: Classify,
{
    #[inline]
    pub(crate) fn new(
        endpoints: Endpoints<S, G>,
        classify: C,
        patience: Duration,
        deadline: Option<Instant>,
        request: Request<R>,
    ) -> Self {
        Self {
            endpoints: Some(endpoints),
            classify,
            patience,
            deadline,
            request: Some(request),
            aside: Vec::new(),
            admitting: None,
            wait: None,
            declared: false,
            passed: 0,
        }
    }

    pub(crate) fn take_request(&mut self) -> Request<R> {
        self.request.take().expect("polled after completion")
    }

    fn request(&self) -> &Request<R> {
        self.request.as_ref().expect("polled after completion")
    }

    fn endpoints(&self) -> &Endpoints<S, G> {
        self.endpoints.as_ref().expect("polled after completion")
    }

    /// The set for a call, and none for itself unless it has yet to tell others something.
    #[inline]
    fn hand_over(&mut self) -> Endpoints<S, G> {
        if self.declared {
            return self.endpoints().clone();
        }
        self.endpoints.take().expect("polled after completion")
    }

    fn need(&self) -> Need {
        let extensions = self.request().extensions();
        Need {
            affinity: extensions.get::<Affinity>().map(|affinity| affinity.0),
            cost: extensions.get::<Cost>().map(|cost| cost.get()),
            wants_all: self.aside.is_empty() && extensions.get::<Attempts>().is_none(),
        }
    }

    fn stop_waiting(&mut self) {
        self.wait = None;
        // Also when it was woken by somebody who has no use for a place, and so has said nothing of that.
        if mem::take(&mut self.declared) {
            self.endpoints().0.shortage.relieve();
        }
    }

    /// When to give up, known from the first look that finds nothing.
    fn deadline(&mut self, now: Instant) -> Instant {
        let own = *self.deadline.get_or_insert(now + self.patience);
        // Also when the clone that was called has waited, and so brings a bound of its own.
        match self.request().extensions().get::<Deadline>() {
            Some(deadline) => own.min(deadline.0),
            None => own,
        }
    }
}

impl<S, G, C, R> Choosing<S, G, C, R>
where
    S: Service<Request<R>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    G: Gate,
    C: Classify,
{
    /// The service to call. What watches the call is built where it stays, and not moved from function to function.
    #[inline]
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        watch: &mut Watching<S, G, C::Judge>,
    ) -> Poll<Result<S, NoEndpoint>> {
        self.ask_refused_again();
        loop {
            let now = time::now();
            let retry = match self.step(cx, watch, now) {
                Step::Chosen(service) => {
                    self.stop_waiting();
                    return Poll::Ready(Ok(service));
                }
                Step::Admitting => {
                    // Places that become free are for others.
                    self.stop_waiting();
                    return Poll::Pending;
                }
                Step::Nothing(retry) => retry,
                Step::Refused(retry) => {
                    self.stop_waiting();
                    let retry_after = retry.map(|at| at - now);
                    return Poll::Ready(Err(NoEndpoint { retry_after }));
                }
            };
            if !self.aside.is_empty() {
                let mut passed = self.passed;
                self.endpoints().0.shortage.pass_on(&mut passed);
                self.passed = passed;
            }
            let deadline = self.deadline(now);
            if deadline <= now {
                self.wait = None;
                let retry_after = retry.map(|at| at - now);
                return Poll::Ready(Err(NoEndpoint { retry_after }));
            }
            let until = retry.map_or(deadline, |retry| retry.min(deadline));
            match &mut self.wait {
                Some(wait) => {
                    ready!(wait.as_mut().poll(cx, until));
                    self.wait = None;
                    self.ask_refused_again();
                }
                // Listens first and looks again, so that no end of the shortage falls between.
                None => {
                    self.wait = Some(self.endpoints().0.shortage.wait(until));
                    self.declared = true;
                    self.endpoints().0.shortage.declare(now, until);
                }
            }
        }
    }

    #[inline]
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        watch: &mut Watching<S, G, C::Judge>,
        now: Instant,
    ) -> Step<S> {
        if self.admitting.is_some()
            && let Some(step) = self.poll_admission(cx, watch, now)
        {
            return step;
        }
        if !self.aside.is_empty()
            && let Some(step) = self.poll_unready(cx, watch, now)
        {
            return step;
        }
        loop {
            let attempts = self.request().extensions().get::<Attempts>();
            let aside = &self.aside;
            let want = |member: &Member<S, G>| {
                if aside.iter().any(|aside| aside.member.id == member.id) {
                    Want::No
                } else if attempts.is_some_and(|attempts| attempts.went_to(member.id)) {
                    Want::Last
                } else {
                    Want::Yes
                }
            };
            let picked = match self.endpoints().pick(now, &self.need(), want) {
                Ok(picked) => picked,
                Err(nothing) => {
                    let retry = self.soonest(nothing.until, now);
                    let unready = |aside: &Aside<S, G>| matches!(aside.why, Why::Unready(_));
                    // One that is not ready yet may be the probe that ends the panic.
                    if nothing.refused && !self.aside.iter().any(unready) {
                        return Step::Refused(retry);
                    }
                    return Step::Nothing(retry);
                }
            };
            let call = Call::new(self.hand_over(), picked);
            let mut service = call.member().service.clone();
            let aside = match service.poll_ready(cx) {
                Poll::Ready(Ok(())) => match self.admit(cx, watch, service, call, now) {
                    Some(step) => return step,
                    None => continue,
                },
                Poll::Ready(Err(error)) => {
                    let member = self.look_on(&call);
                    self.blame(call, error.into(), now);
                    let why = Why::Broken;
                    Aside { member, why }
                }
                Poll::Pending => {
                    let why = Why::Unready(service);
                    let member = self.look_on(&call);
                    Aside { member, why }
                }
            };
            self.aside.push(aside);
        }
    }

    /// Asks the gate of an endpoint that is ready. `None`: it refused, and is put aside.
    #[inline(always)]
    fn admit(
        &mut self,
        cx: &mut Context<'_>,
        watch: &mut Watching<S, G, C::Judge>,
        service: S,
        mut call: Call<S, G>,
        now: Instant,
    ) -> Option<Step<S>> {
        let head = RequestHead::from(self.request());
        // Before admission: a classifier that panics has nothing to give back.
        let judge = self.classify.start(&head);
        let asks = call.needs_admission();
        match asks.then(|| call.member().gate.admit(&head, now)) {
            None => {}
            Some(Admit::Now(Ok(admission))) => call.admit(admission),
            Some(Admit::Now(Err(rejected))) => {
                let member = self.look_on(&call);
                self.refuse(member, &rejected, now);
                return None;
            }
            Some(Admit::Later(admission)) => {
                self.look_on(&call);
                let limit = Box::pin(sleep_until(self.deadline(now)));
                self.admitting = Some(Box::new(Admitting {
                    admission,
                    limit,
                    since: now,
                    service,
                    call,
                    judge,
                }));
                return self.poll_admission(cx, watch, now);
            }
        }
        self.note(call.member());
        let method = self.request().method();
        *watch = Some(Watch::new(call, judge, now).asked_with(method));
        Some(Step::Chosen(service))
    }

    /// This call may not come about. Returns where it was to go.
    #[cold]
    fn look_on(&mut self, call: &Call<S, G>) -> Arc<Member<S, G>> {
        self.endpoints = Some(call.endpoints().clone());
        call.member().clone()
    }

    /// Asks the gate that takes its time, if there is one. `None`: it refused, and is put aside.
    #[inline(never)]
    fn poll_admission(
        &mut self,
        cx: &mut Context<'_>,
        watch: &mut Watching<S, G, C::Judge>,
        now: Instant,
    ) -> Option<Step<S>> {
        let waiting = self.admitting.as_mut()?;
        let admitted = match waiting.admission.as_mut().poll(cx) {
            Poll::Ready(admitted) => Some(admitted),
            Poll::Pending if waiting.limit.as_mut().poll(cx).is_pending() => {
                return Some(Step::Admitting);
            }
            Poll::Pending => None,
        };
        let Admitting {
            service,
            mut call,
            judge,
            since,
            ..
        } = *self.admitting.take()?;
        match admitted {
            Some(Ok(admission)) => {
                call.admit(admission);
                self.note(call.member());
                *watch = Some(Watch::new(call, judge, now).asked_with(self.request().method()));
                Some(Step::Chosen(service))
            }
            Some(Err(rejected)) => {
                let member = call.member().clone();
                self.give_up_place(call, since, now);
                self.refuse(member, &rejected, now);
                None
            }
            None => {
                let member = call.member().clone();
                self.give_up_place(call, since, now);
                let why = Why::Refused { until: None };
                self.aside.push(Aside { member, why });
                None
            }
        }
    }

    /// Others may have found the place taken while the gate thought. Not those that refuse at once: two that wait
    /// would wake each other for ever.
    fn give_up_place(&self, call: Call<S, G>, since: Instant, now: Instant) {
        drop(call);
        if now.saturating_duration_since(since) >= THOUGHT {
            self.endpoints().0.shortage.end_for_one();
        }
    }

    /// Those that were not ready before.
    #[inline(never)]
    fn poll_unready(
        &mut self,
        cx: &mut Context<'_>,
        watch: &mut Watching<S, G, C::Judge>,
        now: Instant,
    ) -> Option<Step<S>> {
        let mut at = 0;
        while let Some(aside) = self.aside.get_mut(at) {
            let Why::Unready(service) = &mut aside.why else {
                at += 1;
                continue;
            };
            match service.poll_ready(cx) {
                Poll::Pending => at += 1,
                Poll::Ready(Err(error)) => {
                    aside.why = Why::Broken;
                    let id = aside.member.id;
                    if let Some(call) = self.endpoints().claim(id, &self.need(), now) {
                        self.blame(call, error.into(), now);
                    }
                }
                Poll::Ready(Ok(())) => {
                    let Aside { member, why } = self.aside.swap_remove(at);
                    // If it may not be picked now, it is one among all again, with its time to come back.
                    if let Why::Unready(service) = why
                        && let Some(call) = self.endpoints().claim(member.id, &self.need(), now)
                        && let Some(step) = self.admit(cx, watch, service, call, now)
                    {
                        return Some(step);
                    }
                }
            }
        }
        None
    }

    /// The endpoint failed before it was called.
    fn blame(&self, mut call: Call<S, G>, mut error: BoxError, now: Instant) {
        self.note(call.member());
        let head = RequestHead::from(self.request());
        let judge = self.classify.start(&head);
        // The gate is the ejection: it has to hear of it.
        if call.needs_admission()
            && let Admit::Now(Ok(admission)) = call.member().gate.admit(&head, now)
        {
            call.admit(admission);
        }
        Watch::new(call, judge, now).fail(&mut error);
    }

    fn refuse(&mut self, member: Arc<Member<S, G>>, rejected: &Rejected, now: Instant) {
        // No time at all is not a time to wait for.
        let delay = rejected.delay().filter(|delay| !delay.is_zero());
        let until = delay.and_then(|delay| now.checked_add(delay));
        let why = Why::Refused { until };
        self.aside.push(Aside { member, why });
    }

    #[inline]
    fn ask_refused_again(&mut self) {
        if !self.aside.is_empty() {
            self.aside
                .retain(|aside| !matches!(aside.why, Why::Refused { .. }));
        }
    }

    fn soonest(&self, retry: Option<Instant>, now: Instant) -> Option<Instant> {
        let refused = self.aside.iter().filter_map(|aside| match aside.why {
            Why::Refused { until } => until,
            Why::Unready(_) | Why::Broken => None,
        });
        refused.chain(retry).filter(|&at| at > now).min()
    }

    fn note(&self, member: &Member<S, G>) {
        if let Some(attempts) = self.request().extensions().get::<Attempts>() {
            attempts.note(member.id);
        }
    }
}

impl<S, G: Gate, C: Classify, R> Drop for Choosing<S, G, C, R> {
    fn drop(&mut self) {
        if self.request.is_none() {
            return;
        }
        // Its place is free, and nobody else hears when those that were not ready become so.
        self.admitting = None;
        self.wait = None;
        if let Some(endpoints) = &self.endpoints {
            endpoints.0.shortage.end_for_one();
        }
    }
}
