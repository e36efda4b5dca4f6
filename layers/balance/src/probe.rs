//! Probes: questions to endpoints about their load, asked in the rhythm of the requests or of the clock.

mod targets;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::AcqRel},
    },
    task::{Context, Poll},
    time::Duration,
};

use palisade_core::{attempt::EndpointId, gate::Gate, time};
use pin_project::pin_project;
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::{Instant, Sleep, sleep_until},
};

use self::targets::{Answer, Targets};
use crate::{Endpoints, LoadReport, Strategy, coin::Coin, endpoints::Shared};

/// No more than this are under way at a time, whatever the number of endpoints.
const MOST: usize = 64;
/// A pause without requests is this much longer or shorter by chance, so that gateways do not probe in step.
const JITTER: f64 = 0.2;
/// Who is asked in a rhythm and says nothing is asked again after so many times as long.
const SILENCE: u32 = 30;
/// Times are no longer than this.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// How often to probe, and for how long.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_balance::Probes;
///
/// let probes = Probes::default().per_request(1.5).timeout(Duration::from_millis(20));
/// # let _ = probes;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probes {
    per_request: f64,
    timeout: Duration,
    spacing: Duration,
    idle: Duration,
    steady: Option<Duration>,
}

impl Default for Probes {
    /// Each endpoint once a second while the strategy is [`Adaptive`](Strategy::Adaptive), and three for each request
    /// with [`Prequal`](Strategy::Prequal), as its paper has it; of 100 ms at most. None for the other strategies.
    fn default() -> Self {
        Self {
            per_request: 3.0,
            timeout: Duration::from_millis(100),
            spacing: Duration::from_millis(10),
            idle: Duration::from_millis(100),
            steady: Some(Duration::from_secs(1)),
        }
    }
}

impl Probes {
    /// So many for each request: 3 unless said otherwise, 64 at most. Fractions add up; what is negative or no number
    /// is 0.
    #[must_use]
    pub fn per_request(mut self, probes: f64) -> Self {
        self.per_request = probes.max(0.0).min(MOST as f64);
        self
    }

    /// A probe that takes longer is given up: 100 ms unless said otherwise. What was known of the endpoint stays.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }

    /// No endpoint is probed more often than this, however many requests there are: every 10 ms unless said otherwise.
    #[must_use]
    pub fn spacing(mut self, spacing: Duration) -> Self {
        self.spacing = spacing.min(LONGEST);
        self
    }

    /// After this long without a probe one is sent, so that the next request finds something known: 100 ms unless said
    /// otherwise, with a jitter of a fifth, and at least 1 ms.
    #[must_use]
    pub fn idle(mut self, pause: Duration) -> Self {
        self.idle = pause.clamp(Duration::from_millis(1), LONGEST);
        self
    }

    /// While the strategy is [`Adaptive`](Strategy::Adaptive), each endpoint is probed this often, with a jitter of a
    /// fifth, however few requests there are: once a second unless said otherwise, every 10 ms at most, and never with
    /// `None`.
    ///
    /// For many gateways that each send little of what an endpoint gets: what one has in flight says little then, and
    /// answers come too seldom to tell. Simulated with fifty gateways at load 0.9 and a probe a second, p99 of streams
    /// of language models is 1.4 of what one that knows all queues would reach, and 3.4 without; an endpoint that begins
    /// to fail is left alone after 0.6 s instead of 4.8. One that has not said anything three times in a row is asked
    /// thirty times less often until it does.
    #[must_use]
    pub fn steady(mut self, every: impl Into<Option<Duration>>) -> Self {
        let every: Option<Duration> = every.into();
        self.steady = every.map(|every| every.clamp(Duration::from_millis(10), LONGEST));
        self
    }

    /// How to probe for this strategy, where there are so many endpoints; `None` for not at all.
    fn by(&self, strategy: Strategy, of: usize) -> Option<Self> {
        match (strategy, self.steady) {
            (Strategy::Prequal, _) => Some(*self),
            (Strategy::Adaptive, Some(every)) => Some(Self {
                per_request: 0.0,
                // None has two turns where others that say nothing have none.
                spacing: every / 2,
                idle: (every / of.clamp(1, 10_000) as u32).max(Duration::from_millis(1)),
                ..*self
            }),
            _ => None,
        }
    }
}

impl<S, G: Gate> Endpoints<S, G> {
    /// Asks endpoints for their load while the strategy is [`Adaptive`](Strategy::Adaptive) or
    /// [`Prequal`](Strategy::Prequal), as long as the future is polled: spawn it.
    ///
    /// `probe` gets the name of an endpoint and a clone of its service, and says what the endpoint says, or `None`;
    /// [`OrcaProbe`](crate::OrcaProbe) asks over HTTP. Each request has some probes sent, to endpoints in a random order
    /// in which all have their turn. There is one probe at a time for an endpoint and 64 for the set; what would be more
    /// is left out, not put off. When the strategy becomes one that wants probes all endpoints are probed once.
    ///
    /// Requests neither wait for probes nor pay for them: they count up, and the future does the rest. Dropping it drops
    /// the probes that are under way. It ends when the last handle of the set is gone.
    ///
    /// ```
    /// use palisade_balance::{Endpoint, Endpoints, LoadReport, Probes, Strategy};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let endpoints = Endpoints::default();
    /// endpoints.set_strategy(Strategy::Prequal);
    /// endpoints.insert(Endpoint::new("a", "client of a"));
    /// let (tell, mut told) = tokio::sync::mpsc::channel(1);
    /// let prober = endpoints.probes(Probes::default(), move |name, _client| {
    ///     let _ = tell.try_send(name);
    ///     async { Some(LoadReport::default()) }
    /// });
    /// let prober = tokio::spawn(prober);
    /// assert_eq!(told.recv().await.as_deref(), Some("a"));
    ///
    /// drop(endpoints);
    /// prober.await.expect("ends with the set");
    /// # }
    /// ```
    pub fn probes<F, A>(&self, probes: Probes, probe: F) -> Prober<S, G, F, A>
    where
        F: FnMut(Arc<str>, S) -> A,
        A: Future<Output = Option<LoadReport>>,
        S: Clone,
    {
        let now = time::now();
        Prober {
            endpoints: self.downgrade(),
            probes,
            probe,
            changed: None,
            demanded: Box::pin(self.0.demand.raised.clone().notified_owned()),
            timer: Box::pin(sleep_until(now)),
            pace: Pace::new(now, Coin::random()),
            targets: Targets::new(Coin::random()),
            running: Vec::new(),
        }
    }
}

/// Picks that want probes. All that requests have to do with probing.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    picks: AtomicU64,
    raised: Arc<Notify>,
}

impl Demand {
    /// The first since the last look calls for the next one.
    #[inline]
    pub(crate) fn picked(&self) {
        if self.picks.fetch_add(1, AcqRel) == 0 {
            self.look();
        }
    }

    /// Something has changed that the prober should know.
    pub(crate) fn look(&self) {
        self.raised.notify_one();
    }

    fn take(&self) -> u64 {
        self.picks.swap(0, AcqRel)
    }
}

/// The future of [`Endpoints::probes`].
#[must_use = "probes nothing unless it is polled"]
#[pin_project]
pub struct Prober<S, G, F, A> {
    endpoints: Weak<Shared<S, G>>,
    probes: Probes,
    probe: F,
    /// Listens for endpoints that come or go; `None` when it is time to look at them all.
    changed: Option<Pin<Box<OwnedNotified>>>,
    demanded: Pin<Box<OwnedNotified>>,
    timer: Pin<Box<Sleep>>,
    pace: Pace,
    targets: Targets,
    running: Vec<Running<A>>,
}

struct Running<A> {
    name: Arc<str>,
    id: EndpointId,
    probe: Pin<Box<A>>,
    until: Instant,
}

impl<S, G, F, A> Future for Prober<S, G, F, A>
where
    S: Clone,
    G: Gate,
    F: FnMut(Arc<str>, S) -> A,
    A: Future<Output = Option<LoadReport>>,
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
            let new = this.targets.follow(&endpoints.names(), time::now());
            this.pace.welcome(new);
        }
        let demand = &endpoints.0.demand;
        while this.demanded.as_mut().poll(cx).is_ready() {
            this.demanded.set(demand.raised.clone().notified_owned());
        }
        loop {
            let now = time::now();
            let of = this.targets.len();
            let strategy = endpoints.strategy();
            let probes = this.probes.by(strategy, of);
            let silence = match this.probes.steady {
                Some(every) if strategy == Strategy::Adaptive => every * SILENCE,
                _ => Duration::ZERO,
            };
            let targets = &mut *this.targets;
            this.running.retain_mut(|running| {
                let end = running.poll(cx, &endpoints, now);
                if let Some(answer) = end {
                    targets.heard(&running.name, answer, now + silence);
                }
                end.is_none()
            });
            let picks = demand.take();
            let mut due = this.pace.due(picks, of, probes.as_ref(), now);
            let probes = probes.unwrap_or(*this.probes);
            if due >= of {
                this.targets.deal();
            }
            let mut turns = of;
            let before = this.running.len();
            while due > 0 && turns > 0 && this.running.len() < MOST {
                turns -= 1;
                let target = this.targets.next();
                let asked = |running: &Running<A>| running.name == target.name;
                if now < target.rests_until || this.running.iter().any(asked) {
                    continue;
                }
                let Some(member) = endpoints.member(&target.name) else {
                    // It goes as soon as the change is heard of.
                    continue;
                };
                due -= 1;
                target.rests_until = now + probes.spacing;
                this.running.push(Running {
                    probe: Box::pin((this.probe)(target.name.clone(), member.service.clone())),
                    name: target.name.clone(),
                    id: member.id,
                    until: now + probes.timeout,
                });
            }
            if this.running.len() > before {
                continue;
            }
            let timeouts = this.running.iter().map(|running| running.until);
            let idle = (this.pace.on && of > 0).then_some(this.pace.idle_until);
            let Some(next) = timeouts.chain(idle).min() else {
                return Poll::Pending;
            };
            if this.timer.deadline() != next {
                this.timer.as_mut().reset(next);
            }
            if this.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<A: Future<Output = Option<LoadReport>>> Running<A> {
    /// How it ended, unless it goes on.
    fn poll<S, G: Gate>(
        &mut self,
        cx: &mut Context<'_>,
        endpoints: &Endpoints<S, G>,
        now: Instant,
    ) -> Option<Answer> {
        let Poll::Ready(report) = self.probe.as_mut().poll(cx) else {
            return (now >= self.until).then_some(Answer::Silence);
        };
        let Some(report) = report else {
            return Some(Answer::Silence);
        };
        // Not by name: another endpoint may have taken it meanwhile.
        let mut fleet = endpoints.lock();
        fleet.report(|member| member.id == self.id, &report, now);
        Some(Answer::Report)
    }
}

/// How many probes are due.
#[derive(Debug)]
struct Pace {
    on: bool,
    owed: f64,
    idle_until: Instant,
    coin: Coin,
}

impl Pace {
    fn new(now: Instant, coin: Coin) -> Self {
        Self {
            on: false,
            owed: 0.0,
            idle_until: now,
            coin,
        }
    }

    /// So many endpoints have come.
    fn welcome(&mut self, endpoints: usize) {
        if self.on {
            self.owed += endpoints as f64;
        }
    }

    fn due(&mut self, picks: u64, of: usize, probes: Option<&Probes>, now: Instant) -> usize {
        let Some(probes) = probes else {
            self.on = false;
            self.owed = 0.0;
            return 0;
        };
        self.owed += picks as f64 * probes.per_request;
        if !self.on {
            self.on = true;
            self.owed = of as f64;
        } else if now >= self.idle_until {
            self.owed = self.owed.max(1.0);
        }
        // More than one for each would ask again what has just been asked.
        self.owed = self.owed.min(of as f64);
        let due = self.owed as usize;
        self.owed -= due as f64;
        if due > 0 || now >= self.idle_until {
            let jitter = 1.0 - JITTER + 2.0 * JITTER * self.coin.share();
            self.idle_until = now + probes.idle.mul_f64(jitter);
        }
        due
    }
}

impl<S, G, F, A> fmt::Debug for Prober<S, G, F, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prober")
            .field("probes", &self.probes)
            .field("endpoints", &self.targets.len())
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}
