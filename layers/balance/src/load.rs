//! How long answers of one endpoint take, and what is under way there. Times are nanoseconds since the set began.

use crate::{
    LoadReport,
    outstanding::Outstanding,
    size::{Size, Work},
    told::Told,
};

#[cfg(test)]
mod tests;

/// How long a latency is remembered, at least ...
const TAU: f64 = 10e9;
/// ... and in times that answers last, so that as many count where they last long. Of ten seconds each, on uneven
/// endpoints and with fifty gateways, p99 is 9.7 of the oracle's with the first bound alone, and 3.0 with this.
const TAU_TIMES: f64 = 10.0;
/// One answer weighs no more, however long ago the last was: of many gateways each hears of an endpoint seldom, and
/// chance must not price it out.
const ANSWER_AT_MOST: f64 = 0.1;
/// So many times as slow as its peers an endpoint is odd, and few answers say whether it still is ...
const ODD: f64 = 2.0;
/// ... by this part of the memory. Eight gateways bring back one that was slow in 39 s, and in 80 s without.
const ODD_TAU: f64 = 0.5;
/// An endpoint that nobody waits for is as good as its peers after this long, so that one that was priced out is tried
/// again. At least ...
const FORGET: f64 = 30e9;
/// ... and in times that answers last.
const FORGET_TIMES: f64 = 30.0;
/// Penalties of such an endpoint are forgotten after this long: failing passes sooner than being slow.
const FORGIVE: f64 = 10e9;
/// An endpoint that could be picked and was not is overdue when it could have been forgotten so often, and then it is.
const OVERDUE: f64 = 2.0;
/// An endpoint is no faster than the oldest unanswered attempt says: this part of its age. The oldest of several has
/// waited longer than they all will on average. At load 0.9, p99 of log-normal sizes is 1.09
/// of the oracle's with half of the age and 1.04 with this; endpoints that hang or become slow are found as soon.
const AGE: f64 = 0.3;
/// A failure weighs at least this much, however soon it follows the last sample.
const FAILURE_WEIGHT: f64 = 0.25;

/// Requests count one each in what is in flight; this part of one by its size.
///
/// A large request keeps one place for longer, and is seen there for longer by itself. Counted in full, one that is
/// twenty times as large looks like twenty in a queue, which is right only where an endpoint has one place.
const BY_SIZE: f64 = 0.1;

#[derive(Debug)]
pub(crate) struct Load {
    /// How long the answer to a request of usual size takes to begin.
    estimate: Option<f64>,
    /// The same without penalties.
    typical: Option<f64>,
    sampled: u64,
    in_flight: u32,
    work: Work,
    /// Since when nobody waits for an answer to begin.
    idle_since: u64,
    /// `u64::MAX` when nobody is waited for; kept here so that a scan stays in one cache line.
    oldest: u64,
    outstanding: Outstanding,
    told: Option<Told>,
    tau: f64,
    /// Above this latency it is odd.
    odd: f64,
    /// One over the time to forget: a scan multiplies.
    forget: f64,
}

/// What is usual in a set, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    /// Until an answer begins: the median of the endpoints.
    pub(crate) latency: f64,
    /// Until it ends.
    pub(crate) lasts: f64,
    /// How much of that comes after it has begun, from 0 to 1.
    pub(crate) streams: f64,
}

/// An attempt under way.
#[derive(Debug)]
pub(crate) struct Attempt {
    at: u32,
    size: Size,
    /// What the time to the beginning of its answer is divided by.
    part: f64,
    start: u64,
    waited: f64,
}

impl Attempt {
    /// For how long somebody waited, and how long it has lasted.
    pub(crate) fn lasted(&self, now: u64) -> (f64, f64) {
        let whole = now.saturating_sub(self.start) as f64;
        (self.waited, whole)
    }
}

impl Load {
    pub(crate) fn new(now: u64) -> Self {
        Self {
            estimate: None,
            typical: None,
            sampled: now,
            in_flight: 0,
            work: Work::default(),
            idle_since: now,
            oldest: u64::MAX,
            outstanding: Outstanding::default(),
            told: None,
            tau: TAU,
            odd: f64::INFINITY,
            forget: 1.0 / FORGET,
        }
    }

    pub(crate) fn estimate(&self) -> Option<f64> {
        self.estimate
    }

    pub(crate) fn typical(&self) -> Option<f64> {
        self.typical
    }

    #[inline]
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// What is in flight, the large ones counted a little more.
    #[inline]
    pub(crate) fn queue(&self) -> f64 {
        by_size(f64::from(self.in_flight), self.work.usual())
    }

    /// What it said of itself last.
    #[inline]
    pub(crate) fn told(&self) -> Option<&Told> {
        self.told.as_ref()
    }

    /// For how long nobody has waited for it to answer.
    #[inline]
    fn idle(&self, now: u64) -> Option<u64> {
        (self.oldest == u64::MAX).then(|| now.saturating_sub(self.idle_since))
    }

    /// Whether what is known of it is so old that somebody should look again.
    #[inline]
    pub(crate) fn is_overdue(&self, now: u64) -> bool {
        self.idle(now)
            .is_some_and(|idle| idle as f64 * self.forget >= OVERDUE)
    }

    /// How long the next answer of usual size is expected to take, where `peers` take this long.
    #[inline]
    pub(crate) fn latency(&self, peers: f64, now: u64) -> f64 {
        let estimate = self.estimate.unwrap_or(peers);
        let Some(idle) = self.idle(now) else {
            // No decay: the longer it lasts, the worse it is.
            return estimate.max(now.saturating_sub(self.oldest) as f64 * AGE);
        };
        let idle = idle as f64;
        let typical = self.typical.unwrap_or(peers);
        // Late rather than soon: after half of the time it is still three quarters away from its peers.
        let forgotten = (idle * self.forget).min(1.0);
        let drifted = typical + (peers - typical) * forgotten * forgotten;
        drifted + self.penalty(peers, idle)
    }

    /// What is left of penalties.
    #[inline]
    fn penalty(&self, peers: f64, idle: f64) -> f64 {
        let penalty = self.estimate.unwrap_or(peers) - self.typical.unwrap_or(peers);
        penalty * (1.0 - (idle * (1.0 / FORGIVE)).min(1.0))
    }

    pub(crate) fn start(&mut self, size: Size, norm: &Norm, now: u64) -> Attempt {
        match self.idle(now).map(|idle| idle as f64) {
            // As if it were new.
            Some(idle) if idle * self.forget >= OVERDUE => {
                (self.estimate, self.typical) = (None, None);
            }
            // Penalties are forgotten and latencies are not: one request finds out, and none follows it before that.
            Some(idle) if self.estimate.is_some() => {
                let typical = self.typical.unwrap_or(norm.latency);
                self.estimate = Some(typical + self.penalty(norm.latency, idle));
            }
            _ => {}
        }
        self.odd = ODD * norm.latency;
        self.tau = TAU.max(TAU_TIMES * norm.lasts);
        self.forget = 1.0 / FORGET.max(FORGET_TIMES * norm.lasts);
        self.in_flight += 1;
        self.work.add(size);
        if let Some(told) = &mut self.told {
            told.sent();
        }
        let at = self.outstanding.push(now);
        self.oldest = self.outstanding.oldest().unwrap_or(now);
        Attempt {
            at,
            size,
            // What is written piece by piece begins as soon when it is long.
            part: norm.streams + (1.0 - norm.streams) * size.usual(),
            start: now,
            waited: 0.0,
        }
    }

    /// Nobody waits for this attempt any more; returns for how long somebody did.
    pub(crate) fn heard(&mut self, attempt: &mut Attempt, now: u64) -> f64 {
        let start = self.outstanding.remove(attempt.at);
        self.oldest = match self.outstanding.oldest() {
            Some(oldest) => oldest,
            None => {
                self.idle_since = now;
                u64::MAX
            }
        };
        attempt.waited = now.saturating_sub(start) as f64;
        attempt.waited
    }

    pub(crate) fn report(&mut self, report: LoadReport, now: u64) {
        self.told = Some(Told::new(report, self.in_flight, now));
    }

    pub(crate) fn end(&mut self, attempt: &Attempt) {
        self.in_flight -= 1;
        self.work.take(attempt.size);
    }

    /// An answer of this attempt took so long.
    pub(crate) fn sample(&mut self, attempt: &Attempt, latency: f64, now: u64) {
        let (latency, share) = Self::divide(attempt, latency, self.weight(now));
        self.typical = Some(blend(self.typical, latency, share));
        self.update(latency, share, now);
    }

    /// An answer that took at least this long, if that says more than is known.
    pub(crate) fn censored(&mut self, attempt: &Attempt, latency: f64, now: u64) {
        let (latency, share) = Self::divide(attempt, latency, self.share(self.tau, now));
        if self.estimate.is_some_and(|estimate| latency > estimate) {
            self.update(latency, share, now);
        }
    }

    pub(crate) fn penalise(&mut self, latency: f64, now: u64) {
        let latency = latency.max(self.estimate.unwrap_or(0.0));
        self.update(latency, self.share(self.tau, now).max(FAILURE_WEIGHT), now);
    }

    /// Forgets penalties.
    pub(crate) fn forgive(&mut self, now: u64) {
        self.estimate = self.typical;
        self.sampled = now;
    }

    fn update(&mut self, latency: f64, share: f64, now: u64) {
        self.estimate = Some(blend(self.estimate, latency, share));
        self.sampled = now;
    }

    /// How long the answer to a request of usual size would have taken to begin, and what this sample weighs.
    ///
    /// By its size: the estimate is the time of all over the size of all, so that what small ones wait for, which has
    /// little to do with how small they are, does not count a hundred times.
    fn divide(attempt: &Attempt, latency: f64, share: f64) -> (f64, f64) {
        let part = attempt.part;
        if part == 1.0 {
            return (latency, share);
        }
        (latency / part, share * part / (1.0 + share * (part - 1.0)))
    }

    /// What an answer weighs.
    fn weight(&self, now: u64) -> f64 {
        match self.estimate {
            Some(estimate) if estimate > self.odd => self.share(ODD_TAU * self.tau, now),
            Some(_) => self.share(self.tau, now).min(ANSWER_AT_MOST),
            None => 1.0,
        }
    }

    /// As `1 - exp(-t / tau)` for short gaps, without the `exp`.
    fn share(&self, tau: f64, now: u64) -> f64 {
        let elapsed = now.saturating_sub(self.sampled) as f64;
        elapsed / (elapsed + tau)
    }
}

/// So many requests of so much work together.
#[inline]
pub(crate) fn by_size(requests: f64, work: f64) -> f64 {
    requests + BY_SIZE * (work - requests)
}

fn blend(old: Option<f64>, new: f64, share: f64) -> f64 {
    old.map_or(new, |old| old + (new - old) * share)
}
