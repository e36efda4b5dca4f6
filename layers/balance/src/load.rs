//! How long answers of one endpoint take, and what is under way there. Times are nanoseconds since the set began.

use crate::{
    LoadReport,
    outstanding::Outstanding,
    pace::Pace,
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
/// ... by this part of the memory.
const ODD_TAU: f64 = 0.5;
/// One that is odd is as good as its peers when nobody has waited for it this long, and not a bit before: each look at
/// one at a tenth of the speed is a request of p99.9 where 36 come in a second. At least ...
const ODD_FORGET: f64 = 50e9;
/// ... and in times that answers last.
const ODD_FORGET_TIMES: f64 = 50.0;
/// It gets one request at a time then, and the next at once if that was answered as soon as by a peer. After so many in
/// a row it is no longer odd. One small request in four finds a slow endpoint fast: believed by itself, it drew ten
/// others after it, and p99.9 was 1.16 of the oracle's where it is 1.06.
const LOOKS: u32 = 4;
/// An answer that shows that it is still odd weighs no more, so that its estimate stays where it was.
const LOOK_AT_MOST: f64 = 0.3;
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
/// One that nobody has heard of is as fast as this part of its peers: who asks one after the other would else ask the
/// same one, as long as no other is known to be faster.
const UNHEARD: f64 = 0.9;
/// A failure weighs at least this much, however soon it follows the last sample.
const FAILURE_WEIGHT: f64 = 0.25;

/// Requests count one each in what is in flight; this part of one by its size.
///
/// A large request keeps one place for longer, and is seen there for longer by itself. Counted in full, one that is
/// twenty times as large looks like twenty in a queue, which is right only where an endpoint has one place.
const BY_SIZE: f64 = 0.1;

/// Where answers stream, one that has not begun counts as so many more in what is in flight: its endpoint has no place
/// free. With answers of language models on uneven endpoints, whose sizes are known, p99 with one gateway is 1.11 of
/// the oracle's, and 1.24 without.
const UNANSWERED: f64 = 6.0;

#[derive(Debug)]
pub(crate) struct Load {
    /// How long the answer to a request of usual size takes to begin.
    estimate: Option<f64>,
    /// The same without penalties.
    typical: Option<f64>,
    sampled: u64,
    in_flight: u32,
    /// Of these, those whose answer has not begun.
    unanswered: u32,
    work: Work,
    /// What is in flight, as a choice counts it; kept here so that a scan does not count.
    queue: f64,
    /// What one that is unanswered counts more.
    waits: f64,
    pace: Pace,
    /// Since when nobody waits for an answer to begin.
    idle_since: u64,
    /// `u64::MAX` when nobody is waited for; kept here so that a scan stays in one cache line.
    oldest: u64,
    outstanding: Outstanding,
    told: Option<Told>,
    /// How long answers last.
    lasts: f64,
    tau: f64,
    /// How long answers of its peers took to begin.
    peers: f64,
    /// Above this latency it is odd.
    odd: f64,
    /// One over the time to forget: a scan multiplies.
    forget: f64,
    /// The same if it is odd.
    forget_odd: f64,
    looks: Looks,
}

/// What one that is odd has shown since somebody looked at it again.
#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    /// Answers in a row that were not odd, and how long they took together.
    good: u32,
    took: f64,
    /// The next look is due.
    due: bool,
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
    /// What the place costs that an answer keeps after it has begun.
    pub(crate) place: f64,
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
    /// It was alone there when it began.
    looks: bool,
}

impl Attempt {
    /// For how long somebody waited, and how long it has lasted.
    #[inline]
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
            unanswered: 0,
            work: Work::default(),
            queue: 0.0,
            waits: 0.0,
            pace: Pace::default(),
            idle_since: now,
            oldest: u64::MAX,
            outstanding: Outstanding::default(),
            told: None,
            lasts: 0.0,
            tau: TAU,
            peers: 0.0,
            odd: f64::INFINITY,
            forget: 1.0 / FORGET,
            forget_odd: 1.0 / ODD_FORGET,
            looks: Looks::default(),
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

    /// What is in flight, the large ones counted a little more, and those that wait where others stream.
    #[inline]
    pub(crate) fn queue(&self) -> f64 {
        self.queue
    }

    /// How long answers stream, beside those of all.
    #[inline]
    pub(crate) fn pace(&self) -> f64 {
        self.pace.factor()
    }

    /// Whether it has failed, or kept a caller waiting who left, and that is not forgotten.
    #[inline]
    pub(crate) fn has_failed(&self) -> bool {
        self.estimate > self.typical
    }

    /// What it said of itself last.
    #[inline]
    pub(crate) fn told(&self) -> Option<&Told> {
        self.told.as_ref()
    }

    /// For how long nobody has waited for it to answer.
    #[inline]
    fn idle(&self, now: u64) -> Option<f64> {
        (self.oldest == u64::MAX).then(|| passed(self.idle_since, now))
    }

    /// Whether what is known of it is so old that somebody should look again.
    #[inline]
    pub(crate) fn is_overdue(&self, now: u64) -> bool {
        self.idle(now).is_some_and(|idle| self.is_forgotten(idle))
    }

    /// Whether it has shown that it may be as fast as its peers again, and another look should tell.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.looks.due && self.oldest == u64::MAX
    }

    /// Whether nobody has heard of it: neither an answer nor a failure.
    #[inline]
    pub(crate) fn is_unheard(&self) -> bool {
        self.estimate.is_none()
    }

    #[inline]
    fn is_forgotten(&self, idle: f64) -> bool {
        if self.is_odd() {
            idle * self.forget_odd >= 1.0
        } else {
            self.is_unheard() || idle * self.forget >= OVERDUE
        }
    }

    #[inline]
    fn is_odd(&self) -> bool {
        self.typical.is_some_and(|typical| typical > self.odd)
    }

    /// How long the next answer of usual size is expected to take, where `peers` take this long.
    #[inline]
    pub(crate) fn latency(&self, peers: f64, now: u64) -> f64 {
        self.expect(peers, now).0
    }

    /// The same, and whether what is known is so old that somebody should look again: an [`idle`](Self::idle) endpoint
    /// is asked for both.
    #[inline]
    pub(crate) fn expect(&self, peers: f64, now: u64) -> (f64, bool) {
        let estimate = self.estimate.unwrap_or(peers);
        let Some(idle) = self.idle(now) else {
            // No decay: the longer it lasts, the worse it is.
            return (estimate.max(passed(self.oldest, now) * AGE), false);
        };
        let Some(typical) = self.typical else {
            if self.is_unheard() {
                return (UNHEARD * peers, true);
            }
            let is_overdue = idle * self.forget >= OVERDUE;
            return (peers + self.penalty(peers, idle), is_overdue);
        };
        let penalty = if estimate == typical {
            0.0
        } else {
            self.penalty(peers, idle)
        };
        if typical > self.odd {
            let is_forgotten = idle * self.forget_odd >= 1.0;
            let drifted = if is_forgotten { peers } else { typical };
            return (drifted + penalty, is_forgotten);
        }
        // Late rather than soon: after half of the time it is still three quarters away from its peers.
        let times = idle * self.forget;
        let forgotten = if times < 1.0 { times } else { 1.0 };
        let drifted = typical + (peers - typical) * forgotten * forgotten;
        (drifted + penalty, times >= OVERDUE)
    }

    /// What is left of penalties.
    #[inline]
    fn penalty(&self, peers: f64, idle: f64) -> f64 {
        let penalty = self.estimate.unwrap_or(peers) - self.typical.unwrap_or(peers);
        penalty * (1.0 - (idle * (1.0 / FORGIVE)).min(1.0))
    }

    #[inline(always)]
    pub(crate) fn start(&mut self, size: Size, norm: &Norm, now: u64) -> Attempt {
        match self.idle(now) {
            // The next look tells, and nobody follows before that.
            Some(idle) if self.is_odd() && self.is_forgotten(idle) => {
                self.estimate = self.typical;
            }
            // As if it were new.
            Some(idle) if self.is_forgotten(idle) => {
                (self.estimate, self.typical) = (None, None);
            }
            // Penalties are forgotten and latencies are not: one request finds out, and none follows it before that.
            Some(idle) if self.estimate.is_some() => {
                let typical = self.typical.unwrap_or(norm.latency);
                self.estimate = Some(typical + self.penalty(norm.latency, idle));
            }
            _ => {}
        }
        self.peers = norm.latency;
        // As far apart as their prices are.
        self.odd = ODD * norm.latency + (ODD - 1.0) * norm.place;
        self.lasts = norm.lasts;
        self.tau = TAU.max(TAU_TIMES * norm.lasts);
        self.forget = 1.0 / FORGET.max(FORGET_TIMES * norm.lasts);
        self.forget_odd = 1.0 / ODD_FORGET.max(ODD_FORGET_TIMES * norm.lasts);
        self.waits = UNANSWERED * norm.streams;
        self.looks = Looks {
            due: false,
            ..if self.looks.due {
                self.looks
            } else {
                Looks::default()
            }
        };
        let looks = self.in_flight == 0;
        self.in_flight += 1;
        self.unanswered += 1;
        self.work.add(size);
        self.count();
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
            looks,
        }
    }

    /// Nobody waits for this attempt any more; returns for how long somebody did.
    #[inline]
    pub(crate) fn heard(&mut self, attempt: &mut Attempt, now: u64) -> f64 {
        let start = self.outstanding.remove(attempt.at);
        self.oldest = match self.outstanding.oldest() {
            Some(oldest) => oldest,
            None => {
                self.idle_since = now;
                u64::MAX
            }
        };
        self.unanswered -= 1;
        self.count();
        attempt.waited = now.saturating_sub(start) as f64;
        attempt.waited
    }

    pub(crate) fn report(&mut self, report: LoadReport, now: u64) {
        self.told = Some(Told::new(report, self.in_flight, self.lasts, now));
    }

    #[inline]
    pub(crate) fn end(&mut self, attempt: &Attempt) {
        self.in_flight -= 1;
        self.work.take(attempt.size);
        self.count();
    }

    fn count(&mut self) {
        let all = by_size(f64::from(self.in_flight), self.work.usual());
        self.queue = all + self.waits * f64::from(self.unanswered);
    }

    /// An answer of this attempt took so long.
    #[inline]
    pub(crate) fn sample(&mut self, attempt: &Attempt, latency: f64, now: u64) {
        let looks = attempt.looks && self.is_odd();
        let weight = self.weight(now);
        let weight = if looks {
            weight.min(LOOK_AT_MOST)
        } else {
            weight
        };
        let (latency, share) = Self::divide(attempt, latency, weight);
        if looks && latency <= self.odd {
            self.looked_well(latency, now);
            return;
        }
        self.typical = Some(blend(self.typical, latency, share));
        self.update(latency, share, now);
    }

    /// Somebody looked at one that is odd, and it was not.
    fn looked_well(&mut self, latency: f64, now: u64) {
        let Looks { good, took, .. } = self.looks;
        let (good, took) = (good + 1, took + latency);
        self.sampled = now;
        self.looks = Looks {
            good,
            took,
            due: good < LOOKS,
        };
        if good >= LOOKS {
            // As good as its peers and no better: the requests that were answered soon were small ones, too.
            let usual = (took / f64::from(good)).max(self.peers);
            (self.estimate, self.typical) = (Some(usual), Some(usual));
        }
    }

    /// An answer of this attempt was over after so long, of which somebody `waited` until it began; `usual` is how long
    /// answers stream.
    pub(crate) fn streamed(&mut self, attempt: &Attempt, whole: f64, usual: f64) {
        self.pace
            .note(whole - attempt.waited, attempt.size.usual(), usual);
    }

    /// An answer that took at least this long, if that says more than is known: of one that nobody has heard of, what is
    /// known of its peers, so that a caller who leaves at once makes nobody cheap.
    pub(crate) fn censored(&mut self, attempt: &Attempt, latency: f64, now: u64) {
        let (latency, share) = Self::divide(attempt, latency, self.share(self.tau, now));
        if latency > self.estimate.unwrap_or(self.peers) {
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

    #[inline]
    fn update(&mut self, latency: f64, share: f64, now: u64) {
        self.estimate = Some(blend(self.estimate, latency, share));
        self.sampled = now;
    }

    /// How long the answer to a request of usual size would have taken to begin, and what this sample weighs.
    ///
    /// By its size: the estimate is the time of all over the size of all, so that what small ones wait for, which has
    /// little to do with how small they are, does not count a hundred times.
    #[inline]
    fn divide(attempt: &Attempt, latency: f64, share: f64) -> (f64, f64) {
        let part = attempt.part;
        if part == 1.0 {
            return (latency, share);
        }
        (latency / part, share * part / (1.0 + share * (part - 1.0)))
    }

    /// What an answer weighs.
    #[inline]
    fn weight(&self, now: u64) -> f64 {
        match self.estimate {
            Some(estimate) if estimate > self.odd => self.share(ODD_TAU * self.tau, now),
            Some(_) => self.share(self.tau, now).min(ANSWER_AT_MOST),
            None => 1.0,
        }
    }

    /// As `1 - exp(-t / tau)` for short gaps, without the `exp`.
    #[inline]
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

/// For how long, as no set is older than 292 years: from what is signed that takes an instruction.
#[inline]
fn passed(since: u64, now: u64) -> f64 {
    (now.wrapping_sub(since) as i64 as f64).max(0.0)
}

fn blend(old: Option<f64>, new: f64, share: f64) -> f64 {
    old.map_or(new, |old| old + (new - old) * share)
}
