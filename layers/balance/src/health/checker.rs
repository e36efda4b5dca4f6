//! The future that checks.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use palisade_core::{attempt::EndpointId, gate::Gate, time};
use pin_project::pin_project;
use tokio::{
    sync::futures::OwnedNotified,
    time::{Instant, Sleep, sleep_until},
};

use super::{
    Finding, HealthChecks,
    metrics::{CheckMeters, Outcome},
    tally::Tally,
};
use crate::{Endpoints, coin::Coin, endpoints::Shared};

/// A pause is this much longer or shorter by chance, so that gateways do not check in step.
const JITTER: f64 = 0.2;
/// The longest that a new endpoint waits for its first check.
const FIRST: Duration = Duration::from_secs(1);

/// The future of [`Endpoints::health_checks`].
#[must_use = "checks nothing unless it is polled"]
#[pin_project]
pub struct HealthChecker<S, G, F, A> {
    endpoints: Weak<Shared<S, G>>,
    checks: HealthChecks,
    check: F,
    coin: Coin,
    checked: Vec<Checked<A>>,
    /// Listens for endpoints that come or go; `None` when it is time to look at them all.
    changed: Option<Pin<Box<OwnedNotified>>>,
}

struct Checked<A> {
    name: Arc<str>,
    id: EndpointId,
    tally: Tally,
    /// Of the check that runs, else the time of the next.
    timer: Pin<Box<Sleep>>,
    check: Option<(Pin<Box<A>>, Instant)>,
    meters: CheckMeters,
}

impl<S, G: Gate, F, A> HealthChecker<S, G, F, A> {
    pub(super) fn new(endpoints: &Endpoints<S, G>, checks: HealthChecks, check: F) -> Self {
        Self {
            endpoints: endpoints.downgrade(),
            checks,
            check,
            coin: Coin::random(),
            checked: Vec::new(),
            changed: None,
        }
    }
}

impl<S, G, F, A> Future for HealthChecker<S, G, F, A>
where
    S: Clone,
    G: Gate,
    F: FnMut(Arc<str>, S) -> A,
    A: Future<Output: Into<Finding>>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let Some(endpoints) = this.endpoints.upgrade().map(Endpoints) else {
            return Poll::Ready(());
        };
        loop {
            if let Some(changed) = this.changed
                && changed.as_mut().poll(cx).is_pending()
            {
                break;
            }
            // Listens first, so that nothing that comes meanwhile is missed.
            *this.changed = Some(Box::pin(endpoints.changed()));
            follow(this.checked, &endpoints, this.checks, this.coin);
        }
        for checked in this.checked {
            checked.poll(cx, &endpoints, *this.checks, this.check, this.coin);
        }
        Poll::Pending
    }
}

/// Checks those that are there, and no others.
fn follow<S, G: Gate, A>(
    checked: &mut Vec<Checked<A>>,
    endpoints: &Endpoints<S, G>,
    checks: &HealthChecks,
    coin: &mut Coin,
) {
    let names = endpoints.names();
    checked.retain(|checked| names.contains(&checked.name));
    for name in names {
        let Some((id, health)) = endpoints.health(&name) else {
            // It goes as soon as the change is heard of.
            continue;
        };
        let known = checked.iter_mut().find(|checked| checked.name == name);
        if known.as_ref().is_some_and(|checked| checked.id == id) {
            continue;
        }
        let soon = time::now() + checks.every.min(FIRST).mul_f64(coin.share());
        let checked = match known {
            Some(checked) => {
                // What a check of its predecessor finds means nothing any more.
                checked.id = id;
                checked.check = None;
                checked.timer.as_mut().reset(soon);
                checked
            }
            None => {
                checked.push(Checked {
                    meters: CheckMeters::new(endpoints.layer(), &name),
                    name,
                    id,
                    tally: Tally::default(),
                    timer: Box::pin(sleep_until(soon)),
                    check: None,
                });
                checked.last_mut().expect("just pushed")
            }
        };
        checked.tally.meet(health);
    }
}

impl<A: Future<Output: Into<Finding>>> Checked<A> {
    fn poll<S: Clone, G: Gate>(
        &mut self,
        cx: &mut Context<'_>,
        endpoints: &Endpoints<S, G>,
        checks: HealthChecks,
        check: &mut impl FnMut(Arc<str>, S) -> A,
        coin: &mut Coin,
    ) {
        loop {
            if let Some((check, since)) = &mut self.check {
                let (finding, outcome) = match check.as_mut().poll(cx) {
                    Poll::Ready(finding) => match finding.into() {
                        Finding::Passed => (Finding::Passed, Outcome::Passed),
                        failed => (failed, Outcome::Failed),
                    },
                    Poll::Pending if self.timer.as_mut().poll(cx).is_pending() => return,
                    Poll::Pending => (Finding::Failed("timed out".into()), Outcome::TimedOut),
                };
                let (now, since) = (time::now(), *since);
                self.check = None;
                self.meters.checked(outcome);
                if endpoints.health(&self.name).map(|(id, _)| id) != Some(self.id) {
                    // It has left, or another has its name, and this is not about that one.
                    return;
                }
                endpoints.checked(self.id, finding, since, now);
                if let Some(health) = self.tally.hear(outcome == Outcome::Passed, checks) {
                    endpoints.set_health(&self.name, health);
                }
                let pause = self
                    .tally
                    .pause(checks)
                    .mul_f64(1.0 - JITTER + 2.0 * JITTER * coin.share());
                self.timer.as_mut().reset(now + pause);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return;
            }
            let Some(member) = endpoints.member(&self.name) else {
                // It goes as soon as the change is heard of.
                return;
            };
            let now = time::now();
            let check = check(self.name.clone(), member.service.clone());
            self.check = Some((Box::pin(check), now));
            self.timer.as_mut().reset(now + checks.timeout);
        }
    }
}

impl<S, G, F, A> fmt::Debug for HealthChecker<S, G, F, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthChecker")
            .field("checks", &self.checks)
            .field("endpoints", &self.checked.len())
            .finish_non_exhaustive()
    }
}
