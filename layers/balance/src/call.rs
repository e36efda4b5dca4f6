use std::{fmt, mem, sync::Arc};

use http::HeaderMap;
use palisade_core::{
    gate::Gate,
    reject::Rejected,
    settle::{End, Settle},
    time,
};
use tokio::time::Instant;

use crate::{
    endpoints::{Endpoints, Member},
    fleet::{Change, Ended, Fleet, Want},
    metrics::Meters,
    slot::{Doubtful, Ticket},
};

/// An attempt in flight at one endpoint, and what its gate gave for it.
///
/// Dropped without a verdict it leaves no trace but that others may be picked in its place.
pub struct Call<S, G: Gate> {
    endpoints: Endpoints<S, G>,
    ticket: Ticket,
    /// Let go before others are woken, or they find the gate still shut.
    admission: Option<G::Guard>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Picked, and not yet sent.
    Picked,
    Judged,
    Over,
}

/// An endpoint, and the attempt that is to go there.
pub(crate) type Picked<S, G> = (Arc<Member<S, G>>, Call<S, G>);

impl<S, G: Gate> Endpoints<S, G> {
    /// Picks the cheapest endpoint that is wanted. On failure: when looking again may help.
    #[inline]
    pub(crate) fn pick(
        &self,
        now: Instant,
        want: impl Fn(&Member<S, G>) -> Want,
    ) -> Result<Picked<S, G>, Option<Instant>> {
        let mut fleet = self.lock();
        let (member, ticket) = fleet.pick(now, |member| want(member))?;
        let member = member.clone();
        drop(fleet);
        member.meters.started();
        Ok((member, Call::new(self, ticket)))
    }

    /// Takes one certain endpoint, if it may be picked.
    pub(crate) fn claim(&self, member: &Member<S, G>, now: Instant) -> Option<Call<S, G>> {
        let ticket = self.lock().claim(|other| other.id == member.id, now)?;
        member.meters.started();
        Some(Call::new(self, ticket))
    }
}

impl<S, G: Gate> Call<S, G> {
    fn new(endpoints: &Endpoints<S, G>, ticket: Ticket) -> Self {
        Self {
            endpoints: endpoints.clone(),
            ticket,
            admission: None,
            stage: Stage::Picked,
        }
    }

    /// Whether its gate has to admit it: not when it speaks against the endpoint and is overruled.
    pub(crate) fn needs_admission(&self) -> bool {
        self.ticket.doubtful == Doubtful::No
    }

    pub(crate) fn admit(&mut self, admission: G::Guard) {
        self.admission = Some(admission);
    }

    /// The last word, in one lock.
    fn end(&mut self, end: Option<&End>, now: Instant) {
        // Settles the rest even if the gate's guard panics.
        let rest = Rest(self, end, now);
        if let Some(mut admission) = rest.0.admission.take()
            && let Some(end) = end
        {
            admission.finish(end, now);
        }
    }
}

/// What is left to do when the gate has heard.
struct Rest<'a, S, G: Gate>(&'a mut Call<S, G>, Option<&'a End>, Instant);

impl<S, G: Gate> Drop for Rest<'_, S, G> {
    fn drop(&mut self) {
        let Self(call, end, now) = self;
        let stage = mem::replace(&mut call.stage, Stage::Over);
        let mut fleet = call.endpoints.lock();
        let mut reopened = false;
        if let Some(end) = end {
            let change = fleet.settle(&mut call.ticket, end, *now);
            reopened = change.reopened;
            tell(&mut fleet, &call.ticket, end, change, *now);
        }
        fleet.item(&call.ticket).meters.ended();
        let mut ended = fleet.end(&mut call.ticket, *now);
        drop(fleet);
        if let Ended::Stays { reopened: more } = &mut ended {
            *more |= reopened;
            if stage == Stage::Picked && end.is_none() {
                // The request is still looking: woken by itself, it would look for ever.
                return;
            }
        }
        call.endpoints.ended(ended);
    }
}

impl<S, G: Gate> Settle for Call<S, G>
where
    S: Send + Sync + 'static,
{
    const DECORATES: bool = G::Guard::DECORATES;
    const FOLLOWS: bool = G::Guard::FOLLOWS;

    fn decorate(&mut self, headers: &mut HeaderMap) {
        if let Some(admission) = &mut self.admission {
            admission.decorate(headers);
        }
    }

    fn first_data(&mut self, now: Instant) {
        if let Some(admission) = &mut self.admission {
            admission.first_data(now);
        }
        let reopened = self.endpoints.lock().first_data(&mut self.ticket, now);
        if reopened {
            self.endpoints.0.shortage.end();
        }
    }

    fn progress(&mut self, streamed: u64, now: Instant) -> Result<(), Rejected> {
        match &mut self.admission {
            Some(admission) => admission.progress(streamed, now),
            None => Ok(()),
        }
    }

    fn settle(&mut self, end: &End, now: Instant) {
        if let Some(admission) = &mut self.admission {
            admission.settle(end, now);
        }
        let mut fleet = self.endpoints.lock();
        let change = fleet.settle(&mut self.ticket, end, now);
        tell(&mut fleet, &self.ticket, end, change, now);
        drop(fleet);
        self.stage = Stage::Judged;
        if change.reopened {
            self.endpoints.0.shortage.end();
        }
    }

    fn finish(&mut self, end: &End, now: Instant) {
        self.end(Some(end), now);
    }
}

impl<S, G: Gate> Drop for Call<S, G> {
    fn drop(&mut self) {
        if self.stage != Stage::Over {
            self.end(None, time::now());
        }
    }
}

/// Under the lock, so that the last state told is the last there was.
fn tell<S, G: Gate>(
    fleet: &mut Fleet<Arc<Member<S, G>>>,
    ticket: &Ticket,
    end: &End,
    change: Change,
    now: Instant,
) {
    if !Meters::ON {
        return;
    }
    let (member, state) = fleet.state_of(ticket, now);
    member.meters.attempt(end.verdict);
    if change.ejected {
        member.meters.ejected();
    }
    if let Some(state) = state {
        member.meters.state(state);
    }
}

impl<S, G: Gate> fmt::Debug for Call<S, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}
