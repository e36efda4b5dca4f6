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
    classify::{Classify, Judge},
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
    endpoints: Endpoints<S, G>,
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
    member: Arc<Member<S, G>>,
    ready: Ready<S, G, J>,
}

/// A picked endpoint that is ready.
struct Ready<S, G: Gate, J> {
    service: S,
    call: Call<S, G>,
    judge: J,
}

/// The service to call, and what watches the call.
type Chosen<S, G, J> = Result<(S, Watch<Call<S, G>, J>), NoEndpoint>;

enum Step<S: Send + Sync + 'static, G: Gate, J: Judge> {
    Chosen(S, Watch<Call<S, G>, J>),
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
            endpoints,
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

    fn need(&self) -> Need {
        let extensions = self.request().extensions();
        Need {
            affinity: extensions.get::<Affinity>().map(|affinity| affinity.0),
            cost: extensions.get::<Cost>().map(|cost| cost.get()),
        }
    }

    fn stop_waiting(&mut self) {
        self.wait = None;
        // Also when it was woken by somebody who has no use for a place, and so has said nothing of that.
        if mem::take(&mut self.declared) {
            self.endpoints.0.shortage.relieve();
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
    #[inline]
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Chosen<S, G, C::Judge>> {
        self.ask_refused_again();
        loop {
            let now = time::now();
            let retry = match self.step(cx, now) {
                Step::Chosen(service, watch) => {
                    self.stop_waiting();
                    return Poll::Ready(Ok((service, watch)));
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
                self.endpoints.0.shortage.pass_on(&mut self.passed);
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
                    let shortage = &self.endpoints.0.shortage;
                    self.wait = Some(shortage.wait(until));
                    self.declared = true;
                    shortage.declare(now, until);
                }
            }
        }
    }

    #[inline]
    fn step(&mut self, cx: &mut Context<'_>, now: Instant) -> Step<S, G, C::Judge> {
        if self.admitting.is_some()
            && let Some(step) = self.poll_admission(cx, now)
        {
            return step;
        }
        if !self.aside.is_empty()
            && let Some(step) = self.poll_unready(cx, now)
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
            let (member, call) = match self.endpoints.pick(now, &self.need(), want) {
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
            let mut service = member.service.clone();
            let why = match service.poll_ready(cx) {
                Poll::Ready(Ok(())) => match self.admit(cx, member, service, call, now) {
                    Some(step) => return step,
                    None => continue,
                },
                Poll::Ready(Err(error)) => {
                    self.blame(&member, call, error.into(), now);
                    Why::Broken
                }
                Poll::Pending => Why::Unready(service),
            };
            self.aside.push(Aside { member, why });
        }
    }

    /// Asks the gate of an endpoint that is ready. `None`: it refused, and is put aside.
    // So that what watches the call is built where it stays, and not moved from function to function.
    #[inline(always)]
    fn admit(
        &mut self,
        cx: &mut Context<'_>,
        member: Arc<Member<S, G>>,
        service: S,
        mut call: Call<S, G>,
        now: Instant,
    ) -> Option<Step<S, G, C::Judge>> {
        let head = RequestHead::from(self.request());
        // Before admission: a classifier that panics has nothing to give back.
        let judge = self.classify.start(&head);
        if !call.needs_admission() {
            return Some(self.go(
                &member,
                Ready {
                    service,
                    call,
                    judge,
                },
                now,
            ));
        }
        match member.gate.admit(&head, now) {
            Admit::Now(Ok(admission)) => {
                call.admit(admission);
                Some(self.go(
                    &member,
                    Ready {
                        service,
                        call,
                        judge,
                    },
                    now,
                ))
            }
            Admit::Now(Err(rejected)) => {
                self.refuse(member, &rejected, now);
                None
            }
            Admit::Later(admission) => {
                let limit = Box::pin(sleep_until(self.deadline(now)));
                let ready = Ready {
                    service,
                    call,
                    judge,
                };
                self.admitting = Some(Box::new(Admitting {
                    admission,
                    limit,
                    since: now,
                    member,
                    ready,
                }));
                self.poll_admission(cx, now)
            }
        }
    }

    /// Asks the gate that takes its time, if there is one. `None`: it refused, and is put aside.
    #[inline(never)]
    fn poll_admission(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Option<Step<S, G, C::Judge>> {
        let waiting = self.admitting.as_mut()?;
        let admitted = match waiting.admission.as_mut().poll(cx) {
            Poll::Ready(admitted) => Some(admitted),
            Poll::Pending if waiting.limit.as_mut().poll(cx).is_pending() => {
                return Some(Step::Admitting);
            }
            Poll::Pending => None,
        };
        let waiting = *self.admitting.take()?;
        let Admitting {
            member,
            mut ready,
            since,
            ..
        } = waiting;
        match admitted {
            Some(Ok(admission)) => {
                ready.call.admit(admission);
                Some(self.go(&member, ready, now))
            }
            Some(Err(rejected)) => {
                self.give_up_place(ready, since, now);
                self.refuse(member, &rejected, now);
                None
            }
            None => {
                self.give_up_place(ready, since, now);
                let why = Why::Refused { until: None };
                self.aside.push(Aside { member, why });
                None
            }
        }
    }

    /// Others may have found the place taken while the gate thought. Not those that refuse at once: two that wait
    /// would wake each other for ever.
    fn give_up_place(&self, ready: Ready<S, G, C::Judge>, since: Instant, now: Instant) {
        drop(ready);
        if now.saturating_duration_since(since) >= THOUGHT {
            self.endpoints.0.shortage.end_for_one();
        }
    }

    #[inline(always)]
    fn go(
        &self,
        member: &Member<S, G>,
        ready: Ready<S, G, C::Judge>,
        now: Instant,
    ) -> Step<S, G, C::Judge> {
        self.note(member);
        let watch = Watch::new(ready.call, ready.judge, now).asked_with(self.request().method());
        Step::Chosen(ready.service, watch)
    }

    /// Those that were not ready before.
    #[inline(never)]
    fn poll_unready(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<Step<S, G, C::Judge>> {
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
                    let member = aside.member.clone();
                    if let Some(call) = self.endpoints.claim(&member, &self.need(), now) {
                        self.blame(&member, call, error.into(), now);
                    }
                }
                Poll::Ready(Ok(())) => {
                    let Aside { member, why } = self.aside.swap_remove(at);
                    // If it may not be picked now, it is one among all again, with its time to come back.
                    if let Why::Unready(service) = why
                        && let Some(call) = self.endpoints.claim(&member, &self.need(), now)
                        && let Some(step) = self.admit(cx, member, service, call, now)
                    {
                        return Some(step);
                    }
                }
            }
        }
        None
    }

    /// The endpoint failed before it was called.
    fn blame(
        &self,
        member: &Member<S, G>,
        mut call: Call<S, G>,
        mut error: BoxError,
        now: Instant,
    ) {
        self.note(member);
        let head = RequestHead::from(self.request());
        let judge = self.classify.start(&head);
        // The gate is the ejection: it has to hear of it.
        if call.needs_admission()
            && let Admit::Now(Ok(admission)) = member.gate.admit(&head, now)
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

    fn ask_refused_again(&mut self) {
        self.aside
            .retain(|aside| !matches!(aside.why, Why::Refused { .. }));
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
        self.endpoints.0.shortage.end_for_one();
    }
}
