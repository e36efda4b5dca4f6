//! The course of events: requests come, are placed, answered or given up. Times are nanoseconds.

use std::{cmp::Reverse, collections::BinaryHeap};

use palisade_core::classify::Verdict;

use super::{
    Scenario,
    jobs::{self, Job, SECOND},
    policy::{Balancer, Over},
    record::{Fate, Record},
    server::{self, Server},
    workload::Fault,
};

/// An answer to a probe is under way so long.
const PROBE_TAKES: u64 = 1_000_000;
/// Requests that no endpoint may take look again so often.
const LOOK_AGAIN: u64 = 10_000_000;
/// And give up after so long, as the service does.
const PATIENCE: u64 = 3_000_000_000;

/// The same world for every policy.
pub(super) struct World {
    pub(super) jobs: Vec<Job>,
    pub(super) servers: Vec<Server>,
    /// How long the run takes.
    pub(super) whole: f64,
    pub(super) first_work: f64,
    deadline: Option<u64>,
    /// When which endpoint leaves or joins.
    moves: Vec<(u64, Event)>,
}

impl World {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let workload = &scenario.workload;
        let whole = jobs::duration(scenario);
        let groups = workload.endpoints.iter();
        let each = groups.flat_map(|group| std::iter::repeat_n(group, group.count));
        let mut moves = Vec::new();
        let mut servers = Vec::new();
        for (at, group) in each.enumerate() {
            servers.push(Server::new(group, at as u64, whole, scenario.seed));
            let absent = group
                .troubles
                .iter()
                .filter(|trouble| trouble.fault == Fault::Absent);
            for trouble in absent {
                let from = (trouble.from * whole) as u64;
                if from > 0 {
                    moves.push((from, Event::Leaves(at as u32)));
                }
                let to = server::until(trouble.to, whole);
                if to < u64::MAX {
                    moves.push((to, Event::Joins(at as u32)));
                }
            }
        }
        Self {
            jobs: jobs::jobs(scenario),
            servers,
            whole,
            first_work: workload
                .first_data
                .map_or(f64::INFINITY, |part| part * workload.mean * SECOND),
            deadline: workload.deadline.map(|after| (after * SECOND) as u64),
            moves,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Leaves(u32),
    Joins(u32),
    /// The answers to probes: a gateway, an endpoint.
    Probed(u32, u32),
    /// A gateway asks the next endpoint.
    Asks(u32),
    FirstData(u32),
    /// A request is over for its caller.
    Over(u32),
    /// A request is over at its endpoint, and its caller has left: the endpoint, how many were there when it came, and
    /// how many milliseconds it took.
    Done(u32, u32, u32),
    LooksAgain(u32),
}

/// A request that is not over.
struct Flight<T> {
    job: u32,
    endpoint: u32,
    /// How many were at the endpoint when it came.
    level: u32,
    sent: u64,
    /// When its first data came or will come.
    first: u64,
    end: u64,
    verdict: Verdict,
    /// `None` while it has no endpoint.
    ticket: Option<T>,
}

pub(super) fn play<B: Balancer>(world: World, mut balancer: B) -> (Record, B) {
    let moves = world.moves.iter().copied();
    let mut events = BinaryHeap::with_capacity(1024);
    events.extend(moves.enumerate().map(|(order, (at, event))| {
        let order = order as u64;
        Reverse((at, order, event))
    }));
    let mut course = Course {
        record: Record::new(&world),
        order: world.moves.len() as u64,
        events,
        flights: Vec::new(),
        vacant: Vec::new(),
        asked: Vec::new(),
        last: world.jobs.last().map_or(0, |job| job.arrives),
        balancer: &mut balancer,
        world,
    };
    course.begin();
    for number in 0..course.world.jobs.len() {
        let arrives = course.world.jobs[number].arrives;
        course.advance(arrives);
        course.arrive(number as u32, arrives);
    }
    course.advance(u64::MAX);
    let record = course.record;
    (record, balancer)
}

struct Course<'a, B: Balancer> {
    world: World,
    balancer: &'a mut B,
    record: Record,
    /// Events at the same time happen in the order in which they were foreseen.
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    flights: Vec<Flight<B::Ticket>>,
    vacant: Vec<u32>,
    asked: Vec<usize>,
    /// When the last request comes.
    last: u64,
}

impl<B: Balancer> Course<'_, B> {
    fn advance(&mut self, to: u64) {
        while let Some(&Reverse((now, _, event))) = self.events.peek()
            && now <= to
        {
            self.events.pop();
            self.happens(event, now);
        }
    }

    fn foresee(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at, self.order, event)));
    }

    fn happens(&mut self, event: Event, now: u64) {
        match event {
            Event::Leaves(at) => {
                self.world.servers[at as usize].present = false;
                self.balancer.leave(at as usize, now);
            }
            Event::Joins(at) => {
                self.world.servers[at as usize].present = true;
                self.balancer.join(at as usize, now);
            }
            Event::Probed(gateway, at) => {
                let server = &self.world.servers[at as usize];
                if server.tells(now) {
                    let report = server.report(now);
                    self.balancer
                        .probed(gateway as usize, at as usize, report, now);
                }
            }
            Event::Asks(gateway) => self.ask(gateway, now),
            Event::FirstData(at) => {
                let flight = &mut self.flights[at as usize];
                let gateway = self.world.jobs[flight.job as usize].gateway;
                if let Some(ticket) = &mut flight.ticket {
                    self.balancer.first_data(gateway as usize, ticket, now);
                }
            }
            Event::Over(at) => self.over(at, now),
            Event::Done(at, level, took) => {
                self.world.servers[at as usize].over(
                    level,
                    u64::from(took) * 1_000_000,
                    false,
                    now,
                );
            }
            Event::LooksAgain(at) => self.place(at, now),
        }
    }

    fn arrive(&mut self, job: u32, now: u64) {
        let gateway = self.world.jobs[job as usize].gateway;
        let flight = Flight {
            job,
            endpoint: 0,
            level: 0,
            sent: now,
            first: u64::MAX,
            end: u64::MAX,
            verdict: Verdict::Canceled,
            ticket: None,
        };
        let at = match self.vacant.pop() {
            Some(at) => {
                self.flights[at as usize] = flight;
                at
            }
            None => {
                self.flights.push(flight);
                self.flights.len() as u32 - 1
            }
        };
        let mut asked = std::mem::take(&mut self.asked);
        self.balancer
            .probes(gateway as usize, &self.world.servers, &mut asked);
        self.probe(gateway, asked, now);
        self.place(at, now);
    }

    /// Gateways that ask in a rhythm begin, each at its own time.
    fn begin(&mut self) {
        for gateway in 0..self.balancer.gateways() {
            let at = self.balancer.pause();
            self.foresee(at, Event::Asks(gateway as u32));
        }
    }

    fn ask(&mut self, gateway: u32, now: u64) {
        if now > self.last {
            return;
        }
        let mut asked = std::mem::take(&mut self.asked);
        self.balancer
            .probes_next(gateway as usize, &self.world.servers, &mut asked);
        self.probe(gateway, asked, now);
        let next = now + self.balancer.pause();
        self.foresee(next, Event::Asks(gateway));
    }

    fn probe(&mut self, gateway: u32, mut asked: Vec<usize>, now: u64) {
        self.record.probes += asked.len() as u64;
        for endpoint in asked.drain(..) {
            self.foresee(now + PROBE_TAKES, Event::Probed(gateway, endpoint as u32));
        }
        self.asked = asked;
    }

    /// Finds an endpoint.
    fn place(&mut self, at: u32, now: u64) {
        let number = self.flights[at as usize].job;
        let job = self.world.jobs[number as usize];
        let deadline = self
            .world
            .deadline
            .map_or(u64::MAX, |after| job.arrives + after);
        let (endpoint, ticket) = match self.balancer.choose(&job, &self.world.servers, now) {
            Ok(chosen) => chosen,
            Err(until) => {
                let last = deadline.min(job.arrives + PATIENCE);
                if now >= last {
                    self.record.note(number, &job, now, now, Fate::Unplaced);
                    self.vacant.push(at);
                    return;
                }
                let soon = now + LOOK_AGAIN;
                let next = until.map_or(soon, |until| until.clamp(now + 1, soon));
                self.foresee(next.min(last), Event::LooksAgain(at));
                return;
            }
        };
        self.record.sent(number, endpoint);
        let server = &mut self.world.servers[endpoint];
        let level = server.in_flight;
        let served = server.serve(&job, self.world.first_work, now);
        let gives_up = served.end > deadline;
        let flight = &mut self.flights[at as usize];
        flight.endpoint = endpoint as u32;
        flight.level = level;
        flight.sent = now;
        flight.first = served.first;
        flight.end = served.end.min(deadline);
        flight.verdict = if gives_up {
            Verdict::Canceled
        } else {
            served.verdict
        };
        flight.ticket = Some(ticket);
        let end = flight.end;
        if served.first < end {
            self.foresee(served.first, Event::FirstData(at));
        }
        if end < u64::MAX {
            self.foresee(end, Event::Over(at));
        }
        if gives_up && served.end < u64::MAX {
            let took = ((served.end - now) / 1_000_000).min(u64::from(u32::MAX)) as u32;
            self.foresee(served.end, Event::Done(endpoint as u32, level, took));
        }
    }

    fn over(&mut self, at: u32, now: u64) {
        let flight = &mut self.flights[at as usize];
        let ticket = flight.ticket.take().expect("it is over once");
        let (number, verdict, first) = (flight.job, flight.verdict, flight.first);
        let (endpoint, level, sent) = (flight.endpoint as usize, flight.level, flight.sent);
        let job = self.world.jobs[number as usize];
        self.vacant.push(at);
        let server = &mut self.world.servers[endpoint];
        let fate = match verdict {
            Verdict::Success => Fate::Answered,
            Verdict::Canceled => Fate::GivenUp,
            _ => Fate::Failed,
        };
        // Who gives up leaves the endpoint at work, unless that never began.
        if fate != Fate::GivenUp || first == u64::MAX {
            server.over(level, now - sent, fate == Fate::Failed, now);
        }
        self.record.note(number, &job, first, now, fate);
        let over = Over {
            server,
            verdict,
            age: now - sent,
            now,
        };
        self.balancer.over(job.gateway as usize, ticket, &over);
    }
}
