//! Health checks: made-up requests that find out what no real request should have to.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use palisade_core::{gate::Gate, time};
use pin_project::pin_project;
use tokio::{
    sync::futures::OwnedNotified,
    time::{Sleep, sleep_until},
};

use crate::{Endpoints, Health, coin::Coin, endpoints::Shared};

/// How often to check, and how many checks decide.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_balance::HealthChecks;
///
/// let checks = HealthChecks::every(Duration::from_secs(10))
///     .timeout(Duration::from_secs(1))
///     .rise(3);
/// # let _ = checks;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthChecks {
    every: Duration,
    timeout: Duration,
    rise: u32,
    fall: u32,
}

/// Checks in a row that disagree with what is believed are this much closer together.
const HURRY: u32 = 4;
/// A pause is this much longer or shorter by chance, so that gateways do not check in step.
const JITTER: f64 = 0.2;
/// Intervals and timeouts are no longer than this.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The longest that a new endpoint waits for its first check.
const FIRST: Duration = Duration::from_secs(1);

impl HealthChecks {
    /// Checks each endpoint at this interval, with a jitter of a fifth, and four times as often while its checks
    /// disagree with what is believed of it.
    pub fn every(interval: Duration) -> Self {
        Self {
            every: interval.clamp(Duration::from_millis(1), LONGEST),
            timeout: interval.min(Duration::from_secs(5)),
            rise: 2,
            fall: 3,
        }
    }

    /// A check that takes longer has failed: 5 s, or the interval if that is shorter, unless said otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }

    /// So many checks in a row bring an endpoint back: 2 unless said otherwise, and at least 1.
    #[must_use]
    pub fn rise(mut self, passed: u32) -> Self {
        self.rise = passed.max(1);
        self
    }

    /// So many failed checks in a row take an endpoint out: 3 unless said otherwise, and at least 1.
    #[must_use]
    pub fn fall(mut self, failed: u32) -> Self {
        self.fall = failed.max(1);
        self
    }
}

impl<S, G: Gate> Endpoints<S, G> {
    /// Checks the health of all endpoints, those that come later included, as long as the future is polled: spawn it.
    ///
    /// `check` gets the name of an endpoint and a clone of its service, and says whether it is healthy. Checks of
    /// different endpoints run side by side. An endpoint whose checks fail is [`Unhealthy`](Health::Unhealthy)
    /// until they pass again; when they pass after they have failed, an ejected endpoint is probed at once. What
    /// the checks have said of a name still holds when another endpoint takes its place.
    ///
    /// The future ends when the last handle of the set is gone.
    pub fn health_checks<F, A>(&self, checks: HealthChecks, check: F) -> HealthChecker<S, G, F, A>
    where
        F: FnMut(Arc<str>, S) -> A,
        A: Future<Output = bool>,
        S: Clone,
    {
        HealthChecker {
            endpoints: self.downgrade(),
            checks,
            check,
            coin: Coin::random(),
            checked: Vec::new(),
            changed: None,
        }
    }
}

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
    tally: Tally,
    /// Of the check that runs, else the time of the next.
    timer: Pin<Box<Sleep>>,
    check: Option<Pin<Box<A>>>,
}

impl<S, G, F, A> Future for HealthChecker<S, G, F, A>
where
    S: Clone,
    G: Gate,
    F: FnMut(Arc<str>, S) -> A,
    A: Future<Output = bool>,
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
            follow(this.checked, &endpoints.names(), this.checks, this.coin);
        }
        for checked in this.checked {
            checked.poll(cx, &endpoints, *this.checks, this.check, this.coin);
        }
        Poll::Pending
    }
}

/// Checks those that are there, and no others.
fn follow<A>(
    checked: &mut Vec<Checked<A>>,
    names: &[Arc<str>],
    checks: &HealthChecks,
    coin: &mut Coin,
) {
    checked.retain(|checked| names.contains(&checked.name));
    for name in names {
        if checked.iter().any(|checked| checked.name == *name) {
            continue;
        }
        let first = checks.every.min(FIRST).mul_f64(coin.share());
        checked.push(Checked {
            name: name.clone(),
            tally: Tally::default(),
            timer: Box::pin(sleep_until(time::now() + first)),
            check: None,
        });
    }
}

impl<A: Future<Output = bool>> Checked<A> {
    fn poll<S: Clone, G: Gate>(
        &mut self,
        cx: &mut Context<'_>,
        endpoints: &Endpoints<S, G>,
        checks: HealthChecks,
        check: &mut impl FnMut(Arc<str>, S) -> A,
        coin: &mut Coin,
    ) {
        loop {
            if let Some(check) = &mut self.check {
                let passed = match check.as_mut().poll(cx) {
                    Poll::Ready(passed) => passed,
                    Poll::Pending if self.timer.as_mut().poll(cx).is_pending() => return,
                    Poll::Pending => false,
                };
                self.check = None;
                if let Some(health) = self.tally.hear(passed, checks) {
                    endpoints.set_health(&self.name, health);
                }
                let pause = self
                    .tally
                    .pause(checks)
                    .mul_f64(1.0 - JITTER + 2.0 * JITTER * coin.share());
                self.timer.as_mut().reset(time::now() + pause);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return;
            }
            let Some(member) = endpoints.member(&self.name) else {
                // It goes as soon as the change is heard of.
                return;
            };
            self.check = Some(Box::pin(check(self.name.clone(), member.service.clone())));
            self.timer.as_mut().reset(time::now() + checks.timeout);
        }
    }
}

/// What a row of checks amounts to.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    believed: Health,
    /// Checks in a row that have passed, and that have failed: one of them is zero.
    passed: u32,
    failed: u32,
    /// A check has failed since the last time that it was said to be healthy.
    shaken: bool,
}

impl Tally {
    fn hear(&mut self, passed: bool, checks: HealthChecks) -> Option<Health> {
        if passed {
            self.failed = 0;
            self.passed = self.passed.saturating_add(1);
            if self.passed < checks.rise || !self.shaken {
                return None;
            }
            self.shaken = false;
            self.believed = Health::Healthy;
        } else {
            self.passed = 0;
            self.failed = self.failed.saturating_add(1);
            self.shaken = true;
            // Said each time: another endpoint may have taken the name meanwhile, or a hand put it back.
            if self.failed < checks.fall {
                return None;
            }
            self.believed = Health::Unhealthy;
        }
        Some(self.believed)
    }

    fn pause(self, checks: HealthChecks) -> Duration {
        let disagrees = match self.believed {
            Health::Healthy => self.shaken,
            Health::Unhealthy => self.passed > 0,
        };
        if disagrees {
            checks.every / HURRY
        } else {
            checks.every
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

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(1);

    fn heard(checks: &str) -> String {
        let settings = HealthChecks::every(EVERY);
        let mut tally = Tally::default();
        let say = |check| match tally.hear(check == '+', settings) {
            None => '.',
            Some(Health::Healthy) => 'H',
            Some(Health::Unhealthy) => 'U',
        };
        checks.chars().map(say).collect()
    }

    #[test]
    fn three_failures_take_out_and_two_passes_bring_back() {
        assert_eq!(heard("++---+-++"), "....U...H");
        assert_eq!(heard("-----++"), "..UUU.H");
    }

    #[test]
    fn passing_again_is_said_even_if_it_was_never_taken_out() {
        assert_eq!(heard("+-++++--++"), "...H.....H");
    }

    #[test]
    fn checks_hurry_while_they_disagree_with_what_is_believed() {
        let checks = HealthChecks::every(EVERY);
        let mut tally = Tally::default();
        for (passed, pause) in [
            (true, 1000),
            (false, 250),
            (false, 250),
            (false, 1000),
            (true, 250),
            (true, 1000),
        ] {
            tally.hear(passed, checks);
            assert_eq!(tally.pause(checks).as_millis(), pause);
        }
    }
}
