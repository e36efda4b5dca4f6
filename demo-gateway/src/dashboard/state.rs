//! What is remembered from second to second.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use palisade::balance::Snapshot;

use super::{
    collect::Collector,
    gather::shown_ms,
    history::{History, Row},
    second::{Refused, Second, Seen, weight},
    times::Times,
    watched::Watched,
    wire::{FirstToken, Latency, Num, Overhead, Rate},
};
use crate::{changes::Change, record::Record};

/// Seconds that percentiles and shares are of.
pub(super) const WINDOW: usize = 10;

/// Requests that who comes later is shown.
const REQUESTS: usize = 60;

/// Changes that one tick tells; more come with the next ones.
const TOLD: usize = 4;

/// Changes that who comes later is shown.
const EVENTS: usize = 50;

/// What is remembered from second to second.
#[derive(Debug)]
pub(super) struct State {
    pub(super) seq: u64,
    /// The second of the Unix epoch that the newest tick stands for.
    pub(super) at: u64,
    /// The last seconds, the newest at `seq % WINDOW`.
    seconds: [Second; WINDOW],
    lengths: [f64; WINDOW],
    total: u64,
    pub(super) history: History,
    /// What each endpoint had counted at the end of each of these seconds and of the one before.
    counted: HashMap<Arc<str>, VecDeque<(u64, u64)>>,
    watched: Watched,
    /// Newest first.
    pub(super) requests: VecDeque<Record>,
    /// Newest first.
    events: VecDeque<Arc<Change>>,
    /// How many of them no tick has told yet.
    untold: usize,
    times: Times,
    first_token: Times,
    own: Times,
}

impl Default for State {
    fn default() -> Self {
        Self {
            seq: 0,
            at: 0,
            seconds: Default::default(),
            lengths: [0.0; WINDOW],
            total: 0,
            history: History::default(),
            counted: HashMap::new(),
            watched: Watched::default(),
            requests: VecDeque::new(),
            events: VecDeque::new(),
            untold: 0,
            times: Times::default(),
            first_token: Times::default(),
            own: Times::default(),
        }
    }
}

impl State {
    /// Closes a second that took so long and ended then.
    pub(super) fn roll(
        &mut self,
        collector: &Collector,
        endpoints: &[Snapshot],
        took: Duration,
        unix: Duration,
    ) {
        self.seq += 1;
        self.at = next_second(self.at, unix);
        let newest = self.newest();
        let second = &mut self.seconds[newest];
        second.clear();
        collector.collect(second);
        second
            .listed
            .sort_by_key(|record| record.received + record.took);
        self.lengths[newest] = took.as_secs_f64().max(0.001);
        self.total += second.ended;
        self.watched.add(&second.seen, &second.refused);
        for record in &second.listed {
            self.requests.push_front(record.clone());
        }
        self.requests.truncate(REQUESTS);
        self.times.clear();
        self.first_token.clear();
        self.own.clear();
        for second in &self.seconds {
            self.times.add(&second.total);
            self.first_token.add(&second.first_token);
            self.own.add(&second.own);
        }
        self.count(endpoints);
        let row = self.row();
        self.history.push(self.at, row);
    }

    fn count(&mut self, endpoints: &[Snapshot]) {
        self.counted
            .retain(|name, _| endpoints.iter().any(|it| it.name == *name));
        for endpoint in endpoints {
            let counted = self.counted.entry(endpoint.name.clone()).or_default();
            let now = (endpoint.requests, endpoint.failures);
            // Another of the same name begins anew.
            if counted.back().is_some_and(|last| last.0 > now.0) {
                counted.clear();
            }
            if counted.is_empty() {
                counted.push_back((0, 0));
            }
            counted.push_back(now);
            if counted.len() > WINDOW + 1 {
                counted.pop_front();
            }
        }
    }

    pub(super) fn changed(&mut self, changes: impl IntoIterator<Item = Arc<Change>>) {
        for change in changes {
            self.events.push_front(change);
            self.untold += 1;
        }
        self.events.truncate(EVENTS);
        self.untold = self.untold.min(EVENTS);
    }

    /// What the next tick tells: the oldest of those that none has told, newest first.
    pub(super) fn fresh(&self) -> impl Iterator<Item = &Arc<Change>> {
        let oldest = self.untold.saturating_sub(TOLD);
        self.events.range(oldest..self.untold)
    }

    /// What ticks have told, newest first.
    pub(super) fn told(&self) -> impl Iterator<Item = &Arc<Change>> {
        self.events.range(self.untold..)
    }

    /// A tick has told its part, or there is nobody to tell.
    pub(super) fn tell(&mut self, is_heard: bool) {
        self.untold = match is_heard {
            true => self.untold.saturating_sub(TOLD),
            false => 0,
        };
    }

    fn newest(&self) -> usize {
        (self.seq % WINDOW as u64) as usize
    }

    /// The newest second.
    pub(super) fn second(&self) -> &Second {
        &self.seconds[self.newest()]
    }

    /// Requests that have ended since the start.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Seconds that the window covers.
    pub(super) fn covered(&self) -> f64 {
        self.lengths.iter().sum::<f64>().max(1.0)
    }

    pub(super) fn rate(&self) -> Rate {
        let (second, took) = (self.second(), self.lengths[self.newest()].max(0.001));
        let rate = |count: u64| Num::new(count as f64 / took, 1);
        Rate {
            requests: rate(second.ended),
            rejected: rate(second.rejected),
            failed: rate(second.failed),
            tokens_out: Num::whole(second.tokens_out as f64 / took),
            tokens_in: Num::whole(second.tokens_in as f64 / took),
        }
    }

    pub(super) fn latency(&self) -> Latency {
        let quantile = |share| self.times.quantile(share).map(shown_ms);
        Latency {
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
        }
    }

    pub(super) fn first_token(&self) -> FirstToken {
        let quantile = |share| self.first_token.quantile(share).map(shown_ms);
        FirstToken {
            p50: quantile(0.5),
            p95: quantile(0.95),
        }
    }

    /// What the gateway itself took of requests.
    pub(super) fn overhead(&self) -> Overhead {
        let quantile = |share| self.own.quantile(share).map(|ms| Num::whole(ms * 1e3));
        Overhead {
            p50: quantile(0.5),
            p99: quantile(0.99),
        }
    }

    fn row(&self) -> Row {
        let (rate, latency, first) = (self.rate(), self.latency(), self.first_token());
        Row {
            requests: Some(rate.requests),
            rejected: Some(rate.rejected),
            failed: Some(rate.failed),
            tokens_out: Some(rate.tokens_out),
            tokens_in: Some(rate.tokens_in),
            p50: latency.p50,
            p95: latency.p95,
            p99: latency.p99,
            first_p50: first.p50,
            first_p95: first.p95,
        }
    }

    /// Attempts for each request that any were made for.
    pub(super) fn attempts(&self) -> Option<f64> {
        let sum = |pick: fn(&Second) -> u64| self.seconds.iter().map(pick).sum::<u64>();
        let (attempts, requests) = (sum(|it| it.attempts), sum(|it| it.attempted));
        (requests > 0).then(|| attempts as f64 / requests as f64)
    }

    /// Attempts at an endpoint in the window, and those that it failed.
    pub(super) fn attempts_of(&self, endpoint: &str) -> (u64, u64) {
        let counted = self.counted.get(endpoint);
        let ends = counted.and_then(|counted| Some((counted.front()?, counted.back()?)));
        ends.map_or((0, 0), |(first, last)| {
            (
                last.0.saturating_sub(first.0),
                last.1.saturating_sub(first.1),
            )
        })
    }

    pub(super) fn all_attempts(&self) -> u64 {
        let names = self.counted.keys();
        names.map(|name| self.attempts_of(name).0).sum()
    }

    pub(super) fn times_of(&self, endpoint: &str) -> Times {
        let mut times = Times::default();
        let of = self.seconds.iter();
        for part in of.filter_map(|second| second.endpoints.get(endpoint)) {
            times.add(part);
        }
        times
    }

    pub(super) fn watched(&self) -> impl Iterator<Item = &Seen> {
        self.watched.iter()
    }

    pub(super) fn refused(&self) -> impl Iterator<Item = &Refused> {
        self.seconds.iter().flat_map(|second| &second.refused)
    }

    /// At most so many of the newest second, those that say most, oldest first.
    pub(super) fn listed(&self, most: usize) -> Vec<&Record> {
        let mut listed: Vec<&Record> = self.second().listed.iter().collect();
        while listed.len() > most {
            let least = (0..listed.len()).min_by_key(|place| weight(listed[*place]));
            listed.remove(least.unwrap_or(0));
        }
        listed
    }

    /// Requests of the newest second that are not shown, when so many are.
    pub(super) fn skipped(&self, shown: usize) -> u64 {
        self.second().ended.saturating_sub(shown as u64)
    }
}

/// The second after this one, unless the clock says something else altogether: looks a few milliseconds early or late
/// make neither holes nor doubles.
fn next_second(last: u64, unix: Duration) -> u64 {
    let clock = unix.as_secs_f64();
    match (last + 1) as f64 - clock {
        off if off.abs() < 1.5 => last + 1,
        _ => clock.round() as u64,
    }
}

#[cfg(test)]
mod tests;
