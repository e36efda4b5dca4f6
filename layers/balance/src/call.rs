use std::{fmt, mem, sync::Arc, thread};

use http::HeaderMap;
use palisade_core::{
    attempt::EndpointId,
    gate::Gate,
    reject::Rejected,
    settle::{End, Settle},
    time,
};
use tokio::time::Instant;

use crate::{
    LoadReport, Strategy,
    endpoints::{Endpoints, Member},
    fleet::{Change, Ended, Fleet, Need, Want},
    metrics::Meters,
    slot::{Doubtful, Ticket},
    wait::Shortage,
};

/// An attempt in flight at one endpoint, and what its gate gave for it.
///
/// Dropped without a verdict it leaves no trace but that others may be picked in its place.
pub struct Call<S, G: Gate> {
    endpoints: Endpoints<S, G>,
    /// Where it went: lent by the set, and given back at its end. `None` afterwards.
    member: Option<Arc<Member<S, G>>>,
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

/// No endpoint may be picked.
pub(crate) struct Nothing {
    /// When looking again may help.
    pub(crate) until: Option<Instant>,
    /// Waiting is of no use: most endpoints are out.
    pub(crate) refused: bool,
}

/// An endpoint, and the attempt that is to go there: for [`Call::new`], at once.
pub(crate) type Picked<S, G> = (Arc<Member<S, G>>, Ticket);

impl<S, G: Gate> Endpoints<S, G> {
    /// Picks the cheapest endpoint that is wanted. On failure: when looking again may help.
    #[inline]
    pub(crate) fn pick(
        &self,
        now: Instant,
        need: &Need,
        want: impl Fn(&Member<S, G>) -> Want,
    ) -> Result<Picked<S, G>, Nothing> {
        let mut fleet = self.lock();
        let picked = fleet.pick(now, need, |member| want(member));
        let picked = picked.map(|(_, ticket)| ticket);
        self.tell_panic(fleet.panics());
        let ticket = picked.map_err(|until| Nothing {
            until,
            refused: fleet.refuses(),
        })?;
        let member = fleet.lend(&ticket);
        let probed = fleet.strategy == Strategy::Prequal;
        drop(fleet);
        if probed {
            self.0.demand.picked();
        }
        member.meters.started();
        Ok((member, ticket))
    }

    /// Takes one certain endpoint, if it may be picked.
    pub(crate) fn claim(&self, id: EndpointId, need: &Need, now: Instant) -> Option<Call<S, G>> {
        let (member, ticket) = {
            let mut fleet = self.lock();
            let ticket = fleet.claim(|member| member.id == id, need, now)?;
            (fleet.lend(&ticket), ticket)
        };
        member.meters.started();
        Some(Call::new(self.clone(), (member, ticket)))
    }
}

impl<S, G: Gate> Endpoints<S, G> {
    /// Under the lock, where an attempt says how it goes and a gate is asked. Should the gate panic, all look again.
    #[inline]
    fn with_fleet<R>(&self, act: impl FnOnce(&mut Fleet<Arc<Member<S, G>>>) -> R) -> R {
        let alarm = Alarm(&self.0.shortage);
        let done = act(&mut self.lock());
        mem::forget(alarm);
        done
    }
}

/// Dropped only by a panic, which leaves unsaid whether more requests may pass than before.
struct Alarm<'a>(&'a Shortage);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl<S, G: Gate> Call<S, G> {
    #[inline]
    pub(crate) fn new(endpoints: Endpoints<S, G>, (member, ticket): Picked<S, G>) -> Self {
        Self {
            endpoints,
            member: Some(member),
            ticket,
            admission: None,
            stage: Stage::Picked,
        }
    }

    pub(crate) fn endpoints(&self) -> &Endpoints<S, G> {
        &self.endpoints
    }

    /// Where it goes.
    #[inline]
    pub(crate) fn member(&self) -> &Arc<Member<S, G>> {
        self.member.as_ref().expect("given back at the end")
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
        let (end, now) = (*end, *now);
        let stage = mem::replace(&mut call.stage, Stage::Over);
        let (ticket, lent) = (&mut call.ticket, &mut call.member);
        let ended = call.endpoints.with_fleet(|fleet| {
            let (change, ended) = fleet.finish(ticket, lent, end, now);
            if Meters::ON {
                match &ended {
                    Ended::Stays { .. } => {
                        fleet.item(ticket).meters.ended();
                        if let Some(end) = end {
                            tell(fleet, ticket, end, change, now);
                        }
                    }
                    Ended::Gone(member) => {
                        member.meters.ended();
                        if let Some(end) = end {
                            member.meters.attempt(end.verdict);
                        }
                    }
                }
            }
            ended
        });
        // After a panic it looks no more, and nobody else has the set to tell others.
        let looks = stage == Stage::Picked && end.is_none() && !thread::panicking();
        if looks && matches!(ended, Ended::Stays { .. }) {
            // The request is still looking: woken by itself, it would look for ever.
            return;
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

    fn hear(&mut self, headers: &HeaderMap) {
        if let Some(admission) = &mut self.admission {
            admission.hear(headers);
        }
        if self.endpoints.0.hears_reports()
            && let Some(report) = LoadReport::from_headers(headers)
        {
            let mut fleet = self.endpoints.lock();
            fleet.report_of(&self.ticket, &report, time::now());
        }
    }

    fn first_data(&mut self, now: Instant) {
        if let Some(admission) = &mut self.admission {
            admission.first_data(now);
        }
        let ticket = &mut self.ticket;
        let first_data = |fleet: &mut Fleet<_>| fleet.first_data(ticket, now);
        if self.endpoints.with_fleet(first_data) {
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
        let ticket = &mut self.ticket;
        let change = self.endpoints.with_fleet(|fleet| {
            let change = fleet.settle(ticket, end, now);
            tell(fleet, ticket, end, change, now);
            change
        });
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
    let shadow = fleet.is_shadow();
    let (member, state) = fleet.state_of(ticket, now);
    member.meters.attempt(end.verdict);
    if let Some(reason) = change.ejected {
        member.meters.ejected(reason, shadow);
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
