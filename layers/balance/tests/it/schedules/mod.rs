//! Whatever happens to requests, answers and endpoints, in whatever order: nothing is left behind.
//!
//! `PALISADE_LONG=1` runs a million schedules, `PALISADE_SEED=n` only the one that has failed.

mod polled;
mod wild;

use std::{
    env,
    future::Future,
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use palisade_balance::{
    Affinity, Balance, BalanceLayer, Call, Endpoint, EndpointState, Endpoints, Health, LoadReport,
    ResponseFuture, Snapshot, Strategy,
};
use palisade_core::{
    attempt::Attempts, cost::Cost, deadline::Deadline, gate::Gate, settle::ResponseBody, time,
};
use tokio::{task::unconstrained, time::advance};
use tower::{Layer, Service};

use self::{
    polled::{Polled, Told, perhaps},
    wild::{Shared, Wild, WildBody, WildClassify, WildGate, WildJudge, World},
};

const MS: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(3);
/// Longer than anything is out, or a Retry-After counts.
const LONG: Duration = Duration::from_secs(1000);
/// So many that the rules for few and for enough endpoints both matter, as they come and go.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[test]
fn nothing_is_left_behind_by_any_schedule() {
    let first = env::var("PALISADE_SEED").map(|seed| seed.parse().unwrap());
    let schedules = match (&first, env::var_os("PALISADE_LONG")) {
        (Ok(_), _) => 1,
        (_, Some(_)) => 1_000_000,
        (_, None) => 200_000,
    };
    let first: u64 = first.unwrap_or(0);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    // As many polls as it takes: a budget would make futures pending that are not.
    runtime.block_on(unconstrained(async {
        for seed in first..first + schedules {
            let told = Told(seed);
            let world = World::new(seed);
            if seed % 2 == 0 {
                Schedule::new(world, |endpoint, _| endpoint).run().await;
            } else {
                let gated = |endpoint: Endpoint<Wild>, world: &Shared| {
                    endpoint.gate(WildGate(world.clone()))
                };
                Schedule::new(world, gated).run().await;
            }
            drop(told);
        }
    }));
}

type Answer<G> = ResponseBody<WildBody, Call<Wild, G>, WildJudge>;
type Sent<G> = Pin<Box<ResponseFuture<Wild, G, WildClassify, ()>>>;

struct Schedule<G: Gate, F> {
    world: Shared,
    gate: F,
    endpoints: Endpoints<Wild, G>,
    service: Balance<Wild, G, WildClassify>,
    names: Vec<&'static str>,
    clones: Vec<Polled<Balance<Wild, G, WildClassify>>>,
    sent: Vec<Polled<Sent<G>>>,
    bodies: Vec<Polled<Pin<Box<Answer<G>>>>>,
    drains: Vec<Polled<Pin<Box<dyn Future<Output = bool>>>>>,
}

impl<G, F> Schedule<G, F>
where
    G: Gate,
    F: Fn(Endpoint<Wild>, &Shared) -> Endpoint<Wild, G>,
{
    fn new(world: Shared, gate: F) -> Self {
        let endpoints = Endpoints::default();
        let strategy = world.one_of(&Strategy::ALL);
        let service = BalanceLayer::new(strategy)
            .classify(WildClassify(world.clone()))
            .wait(PATIENCE)
            .layer(endpoints.clone());
        Self {
            world,
            gate,
            endpoints,
            service,
            names: Vec::new(),
            clones: Vec::new(),
            sent: Vec::new(),
            bodies: Vec::new(),
            drains: Vec::new(),
        }
    }

    async fn run(mut self) {
        let end = self.world.below(4);
        // A request does not go back to an endpoint that broke as it became ready.
        self.world.never_breaks.store(end == 2, Relaxed);
        for _ in 0..1 + self.world.below(4) {
            self.insert();
        }
        for _ in 0..10 + self.world.below(50) {
            self.step().await;
        }
        match end {
            0 => self.drop_all(),
            1 => self.behave_with_room(),
            2 => self.behave_with_few_places(),
            _ => self.behave_without_endpoints().await,
        }
        self.assert_nothing_is_left();
        self.assert_all_is_well().await;
    }

    async fn step(&mut self) {
        match self.world.below(32) {
            0..5 => self.send(),
            5..8 => self.poll_sent_at_random(),
            8..11 => self.poll_woken_sent(),
            11..14 => self.poll_body(),
            14 => {
                if let Some(sent) = self.any(self.sent.len()) {
                    let sent = self.sent.swap_remove(sent);
                    perhaps(|| drop(sent));
                }
            }
            15 => {
                if let Some(body) = self.any(self.bodies.len()) {
                    let body = self.bodies.swap_remove(body);
                    perhaps(|| drop(body));
                }
            }
            16 => {
                if let Some(clone) = self.any(self.clones.len()) {
                    drop(self.clones.swap_remove(clone));
                }
            }
            17..20 => self.world.wake(),
            20 | 21 => {
                let nanos = [1, 999_999, 1_000_000, 70_000_000, 1_000_000_000];
                advance(Duration::from_nanos(self.world.one_of(&nanos))).await;
            }
            22 => {
                let seconds = self.world.one_of(&[3, 11, 70]);
                advance(Duration::from_secs(seconds)).await;
            }
            23 => self.insert(),
            24 => self.remove(),
            25 => self.drain(),
            26 => self.poll_drains(),
            _ => self.change(),
        }
    }

    fn any(&self, len: usize) -> Option<usize> {
        (len > 0).then(|| self.world.below(len))
    }

    fn insert(&mut self) {
        let name = self.world.one_of(&NAMES);
        let most = self.world.one_of(&[1, 1, 2, u32::MAX]);
        let weight = self.world.one_of(&[1.0, 0.5, 100.0]);
        self.insert_as(name, most, weight);
    }

    fn insert_as(&mut self, name: &'static str, most: u32, weight: f64) {
        let endpoint = Endpoint::new(name, Wild(self.world.clone()))
            .max_in_flight(most)
            .weight(weight);
        let endpoint = (self.gate)(endpoint, &self.world);
        // The endpoint is there also when its gate panics as it is asked for a state to report.
        perhaps(|| self.endpoints.insert(endpoint));
        if !self.names.contains(&name) {
            self.names.push(name);
        }
    }

    fn remove(&mut self) {
        if let Some(at) = self.any(self.names.len()) {
            let name = self.names.swap_remove(at);
            assert_ne!(perhaps(|| self.endpoints.remove(name)), Some(false));
        }
    }

    fn drain(&mut self) {
        if let Some(at) = self.any(self.names.len()) {
            let name = self.names.swap_remove(at);
            let endpoints = self.endpoints.clone();
            let drain = Box::pin(async move { endpoints.drain(name).await });
            self.drains.push(Polled::new(drain));
            // The first poll removes it.
            self.poll_drains();
        }
    }

    fn poll_drains(&mut self) {
        self.drains.retain_mut(|drain| {
            !drain.is_woken()
                || matches!(
                    drain.poll(|drain, cx| drain.as_mut().poll(cx)),
                    Some(Poll::Pending)
                )
        });
    }

    fn change(&mut self) {
        let (world, endpoints) = (&self.world, &self.endpoints);
        let name = world.one_of(&NAMES);
        let change = || match world.below(8) {
            0 => endpoints.suspend(name),
            1 => endpoints.resume(name),
            2 => endpoints.set_weight(name, world.one_of(&[0.0, 1.0, 7.0, f64::NAN])),
            3 => endpoints.set_health(name, Health::Unhealthy),
            4 => endpoints.set_health(name, Health::Healthy),
            5 => {
                let mut report = LoadReport::default();
                report.in_flight = world.one_of(&[None, Some(0), Some(u32::MAX)]);
                report.utilization = world.one_of(&[None, Some(0.5), Some(f64::NAN)]);
                report.latency = world.one_of(&[None, Some(MS), Some(Duration::MAX)]);
                endpoints.report(name, &report)
            }
            6 => endpoints.with_gate(name, |_| ()).is_some(),
            _ => {
                endpoints.set_strategy(world.one_of(&Strategy::ALL));
                true
            }
        };
        perhaps(change);
    }

    /// A request, by a clone that is ready.
    fn send(&mut self) {
        if self.clones.len() < 4 && self.world.below(3) == 0 {
            self.clones.push(Polled::new(self.service.clone()));
        }
        let Some(at) = self.any(self.clones.len()) else {
            return;
        };
        let ready = self.clones[at].poll(|clone, cx| clone.poll_ready(cx));
        if !matches!(ready, Some(Poll::Ready(Ok(())))) {
            return;
        }
        let mut request = Request::new(());
        let extensions = request.extensions_mut();
        match self.world.below(8) {
            0 => drop(extensions.insert(Affinity::of([self.world.below(3) as u8]))),
            1 => {
                let cost = self.world.one_of(&[f64::MIN_POSITIVE, 1.0, f64::MAX]);
                extensions.insert(Cost::new(cost).unwrap());
            }
            2 => drop(extensions.insert(Deadline(time::now() + MS * 50))),
            3 => {
                let attempts = Attempts::default();
                let all = self.endpoints_seen();
                if let Some(at) = self.any(all.len()) {
                    attempts.note(all[at]);
                }
                extensions.insert(attempts);
            }
            _ => {}
        }
        let sent = Box::pin(self.clones[at].it.call(request));
        self.sent.push(Polled::new(sent));
        if self.world.below(2) == 0 {
            self.poll_sent(self.sent.len() - 1);
        }
    }

    fn endpoints_seen(&self) -> Vec<palisade_core::attempt::EndpointId> {
        let seen = perhaps(|| self.endpoints.snapshot()).unwrap_or_default();
        seen.into_iter().map(|endpoint| endpoint.id).collect()
    }

    fn poll_sent_at_random(&mut self) {
        if let Some(at) = self.any(self.sent.len()) {
            self.poll_sent(at);
        }
    }

    fn poll_woken_sent(&mut self) {
        let mut at = 0;
        while at < self.sent.len() {
            if !self.sent[at].is_woken() || !self.poll_sent(at) {
                at += 1;
            }
        }
    }

    /// Whether it is over.
    fn poll_sent(&mut self, at: usize) -> bool {
        let polled = self.sent[at].poll(|sent, cx| sent.as_mut().poll(cx));
        let answer = match polled {
            Some(Poll::Pending) => return false,
            Some(Poll::Ready(answer)) => answer.ok(),
            None => None,
        };
        let sent = self.sent.swap_remove(at);
        perhaps(|| drop(sent));
        if let Some(body) = answer.map(Response::into_body) {
            self.bodies.push(Polled::new(Box::pin(body)));
        }
        true
    }

    fn poll_body(&mut self) {
        if let Some(at) = self.any(self.bodies.len()) {
            self.poll_body_at(at);
        }
    }

    /// Whether it is over.
    fn poll_body_at(&mut self, at: usize) -> bool {
        let polled = self.bodies[at].poll(|body, cx| body.as_mut().poll_frame(cx));
        if let Some(Poll::Pending | Poll::Ready(Some(Ok(_)))) = polled {
            return false;
        }
        // Some readers keep what they have read to its end.
        if self.world.below(4) == 0 && polled.is_some() {
            return false;
        }
        let body = self.bodies.swap_remove(at);
        perhaps(|| drop(body));
        true
    }

    /// Callers leave, also while nothing behaves.
    fn drop_all(&mut self) {
        while self.sent.len() + self.bodies.len() > 0 {
            if let Some(at) = self.any(self.sent.len()) {
                let sent = self.sent.swap_remove(at);
                perhaps(|| drop(sent));
            }
            if let Some(at) = self.any(self.bodies.len()) {
                let body = self.bodies.swap_remove(at);
                perhaps(|| drop(body));
            }
        }
        self.behave();
    }

    fn behave(&self) {
        self.world.behave();
        for name in &self.names {
            self.endpoints.with_gate(name, |_| ());
            self.endpoints.set_health(name, Health::Healthy);
            self.endpoints.resume(name);
        }
    }

    /// All who wait are woken when an endpoint comes that has room for them all, and nobody else is polled.
    fn behave_with_room(&mut self) {
        self.behave();
        self.insert_as("z", u32::MAX, 1.0);
        self.finish_those_woken();
        assert_eq!(self.sent.len(), 0, "waits beside a free endpoint");
        self.finish_bodies();
    }

    /// Who waits is woken when another request ends.
    fn behave_with_few_places(&mut self) {
        self.behave();
        let all = self.endpoints.snapshot();
        let able = [EndpointState::Serving, EndpointState::SlowStart];
        if !all.iter().any(|endpoint| able.contains(&endpoint.state)) {
            return self.drop_all();
        }
        self.finish_those_woken();
        while !self.bodies.is_empty() {
            while !self.poll_body_at(0) {}
            self.finish_those_woken();
        }
        assert_eq!(self.sent.len(), 0, "waits beside endpoints with room");
    }

    /// Who waits in vain hears so in time.
    async fn behave_without_endpoints(&mut self) {
        self.behave();
        for name in self.names.drain(..) {
            assert!(self.endpoints.remove(name));
        }
        self.finish_those_woken();
        self.finish_bodies();
        advance(PATIENCE).await;
        // Timers count whole milliseconds.
        advance(MS).await;
        self.finish_those_woken();
        assert_eq!(self.sent.len(), 0, "waits longer than it may");
        self.finish_bodies();
    }

    fn finish_those_woken(&mut self) {
        for _ in 0..100 {
            if !self.sent.iter().any(Polled::is_woken) {
                return;
            }
            self.poll_woken_sent();
        }
        panic!("they wake each other for ever");
    }

    fn finish_bodies(&mut self) {
        while !self.bodies.is_empty() {
            while !self.poll_body_at(0) {}
        }
    }

    fn assert_nothing_is_left(&mut self) {
        self.poll_drains();
        assert_eq!(self.drains.len(), 0, "drains that nobody has woken");
        let all = self.endpoints.snapshot();
        let mut names: Vec<_> = all.iter().map(|endpoint| &*endpoint.name).collect();
        names.sort_unstable();
        self.names.sort_unstable();
        assert_eq!(names, self.names, "indices that are stale");
        assert_eq!(self.endpoints.len(), names.len());
        for endpoint in &all {
            assert_eq!(endpoint.in_flight, 0, "{endpoint:?}");
        }
        let (admitted, told) = (&self.world.admitted, &self.world.told);
        assert_eq!(admitted.load(Relaxed), told.load(Relaxed), "guards, told");
        assert!(!self.world.told_twice.load(Relaxed));
        for clone in &self.clones {
            assert!(
                !clone.pending || clone.is_woken(),
                "a clone that nobody has woken"
            );
        }
        assert!(
            is_ready(&self.service),
            "the shortage outlives its requests"
        );
    }

    /// Each that has stayed can be picked, and a request goes there at once.
    async fn assert_all_is_well(&mut self) {
        // Nobody probes any more, so whoever waits for a probe gets one now.
        self.assert_picked(|endpoint| endpoint.state == EndpointState::Probing);
        advance(LONG).await;
        if self.names.is_empty() {
            self.insert_as("a", 1, 1.0);
        }
        self.assert_picked(|_| true);
        for endpoint in self.endpoints.snapshot() {
            assert_eq!(endpoint.in_flight, 0, "{endpoint:?}");
        }
    }

    /// A request that would rather go to one of these does, and gets its answer.
    fn assert_picked(&mut self, which: impl Fn(&Snapshot) -> bool) {
        let all = self.endpoints.snapshot();
        for wanted in all.iter().filter(|wanted| which(wanted)) {
            let attempts = Attempts::default();
            let others = all.iter().filter(|other| other.id != wanted.id);
            others.for_each(|other| attempts.note(other.id));
            let mut request = Request::new(());
            request.extensions_mut().insert(attempts.clone());
            self.sent
                .push(Polled::new(Box::pin(self.service.call(request))));
            assert!(self.poll_sent(0), "waits");
            assert_eq!(self.bodies.len(), 1, "an error");
            assert_eq!(attempts.last(), Some(wanted.id), "{wanted:?} is not picked");
            self.finish_bodies();
        }
    }
}

fn is_ready<G: Gate>(service: &Balance<Wild, G, WildClassify>) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    service.clone().poll_ready(&mut cx).is_ready()
}
