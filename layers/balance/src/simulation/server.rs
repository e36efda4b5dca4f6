//! One simulated endpoint: slots, a line in front of them, and its troubles. Times are nanoseconds.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use palisade_core::classify::Verdict;

use super::{
    jobs::{Job, SECOND, Stream, exponential},
    workload::{Fault, Group},
};
use crate::{LoadReport, coin::Coin};

const FAILS_AFTER: u64 = 1_000_000;
/// Latencies are kept apart for so many requests in flight.
const LEVELS: usize = 64;
/// How much the last answer counts in what is told of latencies.
const LAST: f64 = 0.3;

/// How long requests count in how many there are in a second, in nanoseconds.
const MEMORY: f64 = 5e9;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Served {
    /// When the first data come.
    pub(super) first: u64,
    /// When it is over; `u64::MAX` for never.
    pub(super) end: u64,
    pub(super) verdict: Verdict,
}

#[derive(Debug)]
pub(super) struct Server {
    slots: u32,
    /// When each slot is free.
    free: BinaryHeap<Reverse<u64>>,
    /// Since when it is how fast, in order.
    speeds: Vec<(u64, f64)>,
    faults: Vec<(u64, u64, Fault)>,
    pub(super) present: bool,
    /// What it works on and what waits.
    pub(super) in_flight: u32,
    /// How long answers took that began with so many in flight; 0 when nobody knows.
    latencies: [f64; LEVELS],
    /// Answers in a second, and those of them that were errors, at the time of the last one.
    ended: f64,
    failed: f64,
    ended_at: u64,
}

impl Server {
    pub(super) fn new(group: &Group, at: u64, whole: f64, seed: u64) -> Self {
        let when = |moment: f64| (moment * whole) as u64;
        let mut factors = Vec::new();
        let mut faults = Vec::new();
        let mut present = true;
        for (number, trouble) in (0..).zip(&group.troubles) {
            let (from, to) = (when(trouble.from), until(trouble.to, whole));
            match trouble.fault {
                Fault::Slow { speed } => factors.push((from, to, speed)),
                Fault::Flips { speed, fast, slow } => {
                    let mut coin = Stream::Speeds.coin(seed, at << 8 | number);
                    flips(&mut factors, &mut coin, (from, to), (fast, slow), speed);
                }
                Fault::Absent => {
                    present &= from > 0;
                    let warm = to.saturating_add((group.cold * SECOND) as u64);
                    factors.push((to, warm, group.cold_speed));
                }
                fault => faults.push((from, to, fault)),
            }
        }
        Self {
            slots: group.slots,
            free: std::iter::repeat_n(Reverse(0), group.slots as usize).collect(),
            speeds: steps(group.speed, &factors),
            faults,
            present,
            in_flight: 0,
            latencies: [0.0; LEVELS],
            ended: 0.0,
            failed: 0.0,
            ended_at: 0,
        }
    }

    /// Takes a request that comes now.
    pub(super) fn serve(&mut self, job: &Job, first_work: f64, now: u64) -> Served {
        self.in_flight += 1;
        if let Some(served) = self.refuse(job, now) {
            return served;
        }
        let served = self.look_ahead(job, first_work, now);
        self.free.pop();
        self.free.push(Reverse(served.end));
        served
    }

    /// What would become of it, were nothing wrong with this endpoint.
    pub(super) fn look_ahead(&self, job: &Job, first_work: f64, now: u64) -> Served {
        let Reverse(free) = *self.free.peek().expect("at least one slot");
        let start = free.max(now);
        Served {
            first: self.done(start, first_work.min(job.work)),
            end: self.done(start, job.work),
            verdict: Verdict::Success,
        }
    }

    /// One request fewer, which had come with so many in flight.
    pub(super) fn over(&mut self, level: u32, took: u64, failed: bool, now: u64) {
        self.in_flight -= 1;
        let (ended, errors) = self.rates(now);
        let one = SECOND / MEMORY;
        self.ended = ended + one;
        self.failed = errors + one * f64::from(u8::from(failed));
        self.ended_at = now;
        let known = &mut self.latencies[(level as usize).min(LEVELS - 1)];
        let took = took.max(1) as f64;
        *known = if *known > 0.0 {
            *known + (took - *known) * LAST
        } else {
            took
        };
    }

    /// Answers and errors in a second.
    fn rates(&self, now: u64) -> (f64, f64) {
        let faded = (-((now - self.ended_at) as f64) / MEMORY).exp();
        (self.ended * faded, self.failed * faded)
    }

    /// What it says when it is asked how it does.
    pub(super) fn report(&self, now: u64) -> LoadReport {
        let (ended, failed) = self.rates(now);
        LoadReport {
            in_flight: Some(self.in_flight),
            utilization: Some(f64::from(self.in_flight) / f64::from(self.slots)),
            latency: self.latency().map(Duration::from_nanos),
            errors: Some(LoadReport::error_share(failed, ended)),
        }
    }

    /// How long answers took that began with about as many in flight as now.
    fn latency(&self) -> Option<u64> {
        let level = (self.in_flight as usize).min(LEVELS - 1);
        let near = (0..LEVELS).flat_map(|far| [level.checked_sub(far), level.checked_add(far)]);
        let mut known = near.flatten().filter_map(|level| self.latencies.get(level));
        known
            .find(|&&latency| latency > 0.0)
            .map(|&latency| latency as u64)
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    pub(super) fn speed(&self, now: u64) -> f64 {
        self.speeds[self.step(now)].1
    }

    /// Whether requests that come now come to something.
    pub(super) fn works(&self, now: u64) -> bool {
        self.present && self.fault(now).is_none()
    }

    /// Whether it says anything when it is asked how it does.
    pub(super) fn tells(&self, now: u64) -> bool {
        self.present && !matches!(self.fault(now), Some(Fault::Hangs))
    }

    /// Whether a health check passes. What it refuses for overload it still says of itself.
    pub(super) fn passes(&self, luck: f64, now: u64) -> bool {
        match self.fault(now) {
            Some(Fault::Fails { share }) => luck >= share,
            Some(Fault::Hangs) => false,
            _ => true,
        }
    }

    fn fault(&self, now: u64) -> Option<Fault> {
        let mut faults = self.faults.iter();
        let found = faults.find(|(from, to, _)| *from <= now && now < *to);
        found.map(|&(_, _, fault)| fault)
    }

    fn refuse(&self, job: &Job, now: u64) -> Option<Served> {
        let at_once = |verdict| {
            let end = now + FAILS_AFTER;
            let first = end;
            Some(Served {
                first,
                end,
                verdict,
            })
        };
        match self.fault(now)? {
            Fault::Fails { share } if job.luck < share => at_once(Verdict::Failure),
            Fault::Overloaded { retry_after } => at_once(Verdict::Overload {
                retry_after: Some(Duration::from_secs_f64(retry_after)),
            }),
            Fault::Hangs => Some(Served {
                first: u64::MAX,
                end: u64::MAX,
                verdict: Verdict::Canceled,
            }),
            _ => None,
        }
    }

    fn step(&self, at: u64) -> usize {
        self.speeds.partition_point(|&(since, _)| since <= at) - 1
    }

    /// When work that begins then is done.
    fn done(&self, start: u64, mut work: f64) -> u64 {
        let mut at = start;
        let mut step = self.step(start);
        while let Some(&(next, _)) = self.speeds.get(step + 1) {
            let speed = self.speeds[step].1;
            let possible = (next - at) as f64 * speed;
            if possible >= work {
                break;
            }
            work -= possible;
            at = next;
            step += 1;
        }
        at.saturating_add((work / self.speeds[step].1) as u64)
    }
}

/// When a trouble ends: one that lasts to the end of the run outlasts it.
pub(super) fn until(moment: f64, whole: f64) -> u64 {
    if moment >= 1.0 {
        return u64::MAX;
    }
    (moment * whole) as u64
}

fn flips(
    factors: &mut Vec<(u64, u64, f64)>,
    coin: &mut Coin,
    (from, to): (u64, u64),
    (fast, slow): (f64, f64),
    speed: f64,
) {
    // A run may last a bit longer than planned, and nobody counts what comes long after.
    let last = to.min(from.saturating_add(1 << 53));
    let mut at = from as f64;
    // As often slow at the beginning as at any other time.
    if coin.share() < fast / (fast + slow) {
        at += exponential(coin) * fast * SECOND;
    }
    while (at as u64) < last && factors.len() < 100_000 {
        let end = at + exponential(coin) * slow * SECOND;
        factors.push((at as u64, (end as u64).min(last), speed));
        at = end + exponential(coin) * fast * SECOND;
    }
}

/// The speed since each moment at which it changes.
fn steps(speed: f64, factors: &[(u64, u64, f64)]) -> Vec<(u64, f64)> {
    let mut changes: Vec<_> = factors
        .iter()
        .flat_map(|&(from, to, factor)| [(from, factor), (to, 1.0 / factor)])
        .filter(|&(at, _)| at < u64::MAX)
        .collect();
    changes.sort_by_key(|&(at, _)| at);
    let mut steps = vec![(0, speed)];
    let mut now = speed;
    for (at, factor) in changes {
        now *= factor;
        match steps.last_mut() {
            Some(last) if last.0 == at => last.1 = now,
            _ => steps.push((at, now)),
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const WHOLE: f64 = 100e9;

    fn job(seconds: f64) -> Job {
        Job {
            arrives: 0,
            work: seconds * SECOND,
            gateway: 0,
            luck: 0.5,
            session: 0,
        }
    }

    fn server(group: &Group) -> Server {
        Server::new(group, 0, WHOLE, 1)
    }

    #[test]
    fn who_finds_no_slot_waits_for_the_first_that_is_free() {
        let mut server = server(&Group::of(1).slots(2));
        let ends =
            [3.0, 1.0, 1.0, 5.0].map(|work| server.serve(&job(work), f64::INFINITY, 0).end / S);
        assert_eq!(ends, [3, 1, 2, 7]);
        assert_eq!(server.in_flight, 4);
        let first = server.serve(&job(2.0), SECOND, 10 * S);
        assert_eq!((first.first / S, first.end / S), (11, 12));
    }

    #[test]
    fn work_goes_on_at_the_speed_of_the_hour() {
        let slow = Fault::Slow { speed: 0.1 };
        let mut server = server(&Group::of(1).trouble(slow, 0.1, 0.2));
        // Five seconds before, one in the slow ten, and the rest after.
        assert_eq!(server.serve(&job(8.0), f64::INFINITY, 5 * S).end / S, 22);
        assert_eq!((server.speed(0), server.speed(15 * S)), (1.0, 0.1));
        assert!((server.speed(25 * S) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn troubles_are_there_when_they_should_be() {
        let overloaded = Fault::Overloaded { retry_after: 30.0 };
        let half = Fault::Fails { share: 0.5 };
        let group = Group::of(1)
            .trouble(Fault::Hangs, 0.1, 0.2)
            .trouble(overloaded, 0.3, 0.4)
            .trouble(half, 0.5, 1.0);
        let mut server = server(&group);
        let mut at = |second, luck| {
            let job = Job { luck, ..job(1.0) };
            let served = server.serve(&job, f64::INFINITY, second * S);
            (served.verdict, served.end)
        };
        assert_eq!(at(0, 0.0).0, Verdict::Success);
        assert_eq!(at(15, 0.0).1, u64::MAX);
        assert_eq!(at(25, 0.0).0, Verdict::Success);
        let retry_after = Some(Duration::from_secs(30));
        assert_eq!(at(35, 0.9).0, Verdict::Overload { retry_after });
        let soon = 55 * S + FAILS_AFTER;
        assert_eq!(at(55, 0.4), (Verdict::Failure, soon));
        assert_eq!(at(55, 0.6).0, Verdict::Success);
        assert_eq!(at(155, 0.4).0, Verdict::Failure);
    }

    #[test]
    fn flips_leave_the_mean_speed_that_they_promise() {
        let flips = Fault::Flips {
            speed: 0.3,
            fast: 30.0,
            slow: 10.0,
        };
        let group = Group::of(1).slots(1).trouble(flips, 0.0, 1.0);
        let mut server = Server::new(&group, 0, 100_000e9, 1);
        let end = server.serve(&job(50_000.0), f64::INFINITY, 0).end as f64 / SECOND;
        let speed = 50_000.0 / end;
        assert!((speed - 0.825).abs() < 0.02, "{speed}");
    }

    #[test]
    fn it_tells_how_long_answers_take_that_begin_now() {
        let mut server = server(&Group::of(1));
        assert_eq!(server.report(0).latency, None);
        server.in_flight = 3;
        server.over(1, 7 * S, false, 0);
        assert_eq!(server.report(0).latency, Some(Duration::from_secs(7)));
        server.in_flight = 6;
        server.over(5, 9 * S, false, 0);
        let report = server.report(0);
        assert_eq!(report.latency, Some(Duration::from_secs(9)));
        assert_eq!(report.utilization, Some(1.25));
    }

    #[test]
    fn it_tells_how_many_of_its_answers_are_errors_until_nobody_asks() {
        let mut server = server(&Group::of(1));
        assert_eq!(server.report(0).errors, Some(0.0));
        let mut errors = |fails: bool, from: u64| {
            for tenth in 0..300 {
                let now = from + tenth * S / 10;
                server.in_flight += 1;
                server.over(0, S, fails, now);
            }
            let end = from + 30 * S;
            [0, 60].map(|later| server.report(end + later * S).errors.unwrap())
        };
        assert_eq!(errors(false, 0), [0.0, 0.0]);
        let [now, later] = errors(true, 100 * S);
        // Ten in a second, and the half that nobody counts.
        assert!((now - 10.0 / 10.5).abs() < 0.01, "{now}");
        assert!(later < 0.001, "{later}");
    }
}
