//! How soon an endpoint that fails is found, and how soon one that works again has its share, in virtual time.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use palisade_core::{classify::Verdict, gate::Outlook, settle::End, time};
use tokio::time::Instant;

use super::{Fleet, Item, Need, Want};
use crate::{LoadReport, coin::Coin, slot::Ticket, strategy::Strategy};

const ENDPOINTS: usize = 10;
const MS: Duration = Duration::from_millis(1);
const ANSWER: Duration = Duration::from_millis(50);
const GIVES_UP: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Number(usize);

impl Item for Number {
    fn is_gated(&self) -> bool {
        false
    }

    fn outlook(&self, _: Instant) -> Outlook {
        Outlook::Admits
    }

    fn hash(&self) -> u64 {
        self.0 as u64
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    FailsAtOnce,
    /// Its caller gives up.
    Hangs,
    TimesOut,
    FailsHalf,
    Sheds,
    Slow,
}

impl Fault {
    fn answer(self, request: u64) -> (Duration, Verdict) {
        match self {
            Self::FailsHalf if request.is_multiple_of(2) => (ANSWER, Verdict::Failure),
            Self::None | Self::FailsHalf => (ANSWER, Verdict::Success),
            Self::FailsAtOnce => (MS, Verdict::Failure),
            Self::Hangs => (GIVES_UP, Verdict::Canceled),
            Self::TimesOut => (GIVES_UP, Verdict::TimedOut),
            Self::Sheds => (MS, Verdict::Overload { retry_after: None }),
            Self::Slow => (ANSWER * 10, Verdict::Success),
        }
    }
}

/// A fleet under steady traffic, of which endpoint 0 has the fault.
struct Traffic {
    /// Between two requests.
    pause: Duration,
    fleet: Fleet<Number>,
    now: Instant,
    sent: u64,
    to_first: u64,
    /// When each attempt ends, and which it is.
    ends: BinaryHeap<Reverse<(Instant, u64)>>,
    flying: std::collections::HashMap<u64, (Ticket, Verdict)>,
}

impl Traffic {
    fn new(strategy: Strategy, pause: Duration, seed: u64) -> Self {
        let now = time::now();
        let mut fleet = Fleet::new(now, Coin::seeded(seed));
        fleet.strategy = strategy;
        for number in 0..ENDPOINTS {
            fleet.insert(Number(number), 1.0, u32::MAX, now);
        }
        let mut traffic = Self {
            pause,
            fleet,
            now,
            sent: 0,
            to_first: 0,
            ends: BinaryHeap::new(),
            flying: std::collections::HashMap::new(),
        };
        // Past the slow start.
        traffic.share(15_000, Fault::None);
        traffic
    }

    /// The part of the requests of so many milliseconds that endpoint 0 gets.
    fn share(&mut self, millis: u64, fault: Fault) -> f64 {
        let (sent, to_first) = (self.sent, self.to_first);
        let until = self.now + MS * millis as u32;
        while self.now < until {
            while let Some(&Reverse((at, number))) = self.ends.peek()
                && at <= self.now
            {
                self.ends.pop();
                let (mut ticket, verdict) = self.flying.remove(&number).unwrap();
                self.fleet.settle(&mut ticket, &End::new(verdict), at);
                self.fleet.end(&mut ticket, at);
            }
            let picked = self.fleet.pick(self.now, &Need::default(), |_| Want::Yes);
            let (one, ticket) = picked.unwrap();
            let first = one.0 == 0;
            self.sent += 1;
            self.to_first += u64::from(first);
            let fault = if first { fault } else { Fault::None };
            let (takes, verdict) = fault.answer(self.to_first);
            self.ends.push(Reverse((self.now + takes, self.sent)));
            self.flying.insert(self.sent, (ticket, verdict));
            self.now += self.pause;
        }
        (self.to_first - to_first) as f64 / (self.sent - sent) as f64
    }
}

const FAULTS: [Fault; 5] = [
    Fault::FailsAtOnce,
    Fault::Hangs,
    Fault::TimesOut,
    Fault::FailsHalf,
    Fault::Sheds,
];

#[test]
fn two_seconds_after_it_began_to_fail_it_gets_less_than_a_hundredth() {
    for fault in FAULTS {
        for strategy in [
            Strategy::Adaptive,
            Strategy::LeastConnections,
            Strategy::RoundRobin,
        ] {
            for seed in 1..3 {
                let mut traffic = Traffic::new(strategy, MS * 2, seed);
                let fair = traffic.share(1000, Fault::None);
                assert!((0.09..0.11).contains(&fair), "{fair}");
                traffic.share(2000, fault);
                let share = traffic.share(10_000, fault);
                // Half of its probes pass, and only the price says no until it has failed again.
                let blind = matches!(fault, Fault::FailsHalf) && strategy != Strategy::Adaptive;
                let most = if blind { 0.04 } else { 0.01 };
                assert!(share < most, "{fault:?} {strategy} {seed}: {share}");
            }
        }
    }
}

#[test]
fn one_at_a_tenth_of_the_speed_gets_a_fifth_of_its_share_after_two_seconds() {
    let mut traffic = Traffic::new(Strategy::Adaptive, MS * 2, 1);
    traffic.share(2000, Fault::Slow);
    let share = traffic.share(10_000, Fault::Slow);
    assert!(share < 0.02, "{share}");
    let first = traffic.fleet.slots().next().unwrap();
    assert_eq!(first.machine.ejections, 0, "slow is not out");
}

#[test]
fn sixty_seconds_after_it_works_again_it_has_four_fifths_of_its_share_however_long_it_was_out() {
    for fault in FAULTS {
        for (outage, seed) in [(5_000, 1), (120_000, 2), (120_000, 3)] {
            let mut traffic = Traffic::new(Strategy::Adaptive, MS * 5, seed);
            traffic.share(outage, fault);
            traffic.share(60_000, Fault::None);
            let share = traffic.share(2000, Fault::None);
            assert!(share >= 0.08, "{fault:?} {outage} ms {seed}: {share}");
        }
    }
}

#[test]
fn one_that_says_that_it_fails_and_does_not_gets_a_request_of_thousands_at_last() {
    let mut traffic = Traffic::new(Strategy::Adaptive, MS * 60, 1);
    let mut shares = |first: f64, seconds: u32| {
        let (sent, to_first) = (traffic.sent, traffic.to_first);
        for _ in 0..seconds {
            for number in 0..ENDPOINTS {
                let report = LoadReport {
                    errors: Some(if number == 0 { first } else { 0.0 }),
                    ..LoadReport::default()
                };
                let now = traffic.now;
                traffic.fleet.report(|one| one.0 == number, &report, now);
            }
            traffic.share(1000, Fault::None);
        }
        let to_first = traffic.to_first - to_first;
        (to_first, to_first as f64 / (traffic.sent - sent) as f64)
    };
    let (looks, share) = shares(1.0, 3000);
    assert!(looks >= 3 && share < 0.001, "{looks} {share}");
    shares(0.0, 60);
    let (_, share) = shares(0.0, 100);
    assert!(share >= 0.08, "{share}");
}
