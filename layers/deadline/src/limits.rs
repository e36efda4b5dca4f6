//! What holds for one request.

use std::time::Duration;

use http::Response;
use http_body::Frame;
use palisade_core::{BoxError, reject::Rejected, time};
use tokio::time::Instant;

use crate::{
    error::{Awaited, Elapsed, Limit},
    life::Life,
    samples::Samples,
    tally::{Tally, Why},
};

/// The limits of one request, carried from its future into its body: small, as it is moved a few times.
pub(crate) struct Limits {
    pub(crate) since: Instant,
    /// How long after the call the first data have to be there.
    pub(crate) first: After,
    /// How long after the call all has to be there, and who says so.
    pub(crate) whole: After,
    pub(crate) whole_is: Limit,
    /// How long a silence may be.
    pub(crate) idle: After,
    pub(crate) life: Life,
    pub(crate) samples: Samples,
    stage: Stage,
    /// How long after the call the silence that is being waited in has to be over.
    silent_by: After,
}

/// A span in nanoseconds, or for ever: 584 years are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct After(u64);

impl After {
    pub(crate) const NEVER: Self = Self(u64::MAX);

    #[inline]
    pub(crate) fn new(span: Duration) -> Self {
        Self(span.as_nanos().try_into().unwrap_or(u64::MAX))
    }

    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub(crate) fn nanos(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) fn is_never(self) -> bool {
        self == Self::NEVER
    }

    #[inline]
    pub(crate) fn get(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Head,
    FirstData,
    Data,
}

impl Limits {
    #[inline]
    pub(crate) fn new(since: Instant, whole_is: Limit) -> Self {
        Self {
            since,
            first: After::NEVER,
            whole: After::NEVER,
            whole_is,
            idle: After::NEVER,
            life: Life::default(),
            samples: Samples::default(),
            stage: Stage::Head,
            silent_by: After::NEVER,
        }
    }

    /// Whether nothing ends the request as things stand.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.first.min(self.whole).min(self.silent_by).is_never()
    }

    /// Whether nothing can end the request any more, and nobody wants to know when it ends.
    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        self.is_free() && self.idle.is_never() && self.samples.is_empty()
    }

    /// What is reached next, and how long after the call.
    #[inline]
    fn soonest(&self) -> Option<(After, Limit)> {
        // Of the same instant, the one that says most.
        let (first, idle) = (
            (self.first, Limit::FirstByte),
            (self.silent_by, Limit::Idle),
        );
        let soonest = first.min(idle).min((self.whole, self.whole_is));
        (!soonest.0.is_never()).then_some(soonest)
    }

    /// What is reached next, and when.
    pub(crate) fn next(&self) -> Option<(Instant, Limit)> {
        let (after, limit) = self.soonest()?;
        // What overflows the clock is no limit.
        Some((self.since.checked_add(after.get())?, limit))
    }

    /// Hears the head.
    #[inline]
    pub(crate) fn head<B>(&mut self, response: &Response<B>) {
        self.stage = Stage::FirstData;
        self.samples.judge(response);
        self.life.head(response);
    }

    /// Hears that something is waited for in vain.
    pub(crate) fn wait(&mut self) {
        if !self.idle.is_never() && self.stage == Stage::Data && self.silent_by.is_never() {
            // From here and not from the last data: a reader who comes late has not been waiting.
            let age = self.age(time::now());
            self.silent_by = After::new(age.saturating_add(self.idle.get()));
        }
    }

    /// Hears a frame.
    #[inline]
    pub(crate) fn frame<D: bytes::Buf>(&mut self, frame: &Frame<D>) {
        if !self.life.shows_in(frame) {
            return;
        }
        self.silent_by = After::NEVER;
        if self.stage == Stage::FirstData {
            self.begin();
        }
    }

    fn begin(&mut self) {
        self.stage = Stage::Data;
        self.first = After::NEVER;
        if self.samples.first.is_some() {
            let now = time::now();
            self.samples.first(self.age(now), now);
        }
    }

    /// Hears the end.
    #[inline]
    pub(crate) fn end(&mut self) {
        if !self.samples.is_empty() {
            let now = time::now();
            self.samples.whole(self.age(now), now);
        }
    }

    /// Hears that the service has failed by itself, which says nothing of how long it takes.
    pub(crate) fn fail(&mut self) {
        self.samples = Samples::default();
    }

    /// Whether something is late that has just come.
    #[inline]
    pub(crate) fn late(&self) -> Option<Limit> {
        let (after, limit) = self.soonest()?;
        (self.age(time::now()) > after.get()).then_some(limit)
    }

    /// The error that ends the request at this limit; `None` if it goes on without it.
    pub(crate) fn reach(&mut self, limit: Limit, tally: &Tally) -> Option<BoxError> {
        if !tally.ends(Why::Elapsed(limit)) {
            self.forgive(limit);
            return None;
        }
        let now = time::now();
        self.samples.cut(limit, self.age(now), now);
        let (after, awaited) = match (limit, self.stage) {
            (Limit::Idle, _) => (self.idle, Awaited::Data),
            (Limit::FirstByte, Stage::Head) => (self.first, Awaited::Head),
            (Limit::FirstByte, _) => (self.first, Awaited::FirstData),
            (_, Stage::Head) => (self.whole, Awaited::Head),
            (_, _) => (self.whole, Awaited::End),
        };
        let elapsed = Elapsed {
            limit,
            after: after.get(),
            awaited,
        };
        Some(Rejected::from(elapsed).into())
    }

    fn forgive(&mut self, limit: Limit) {
        match limit {
            Limit::FirstByte => self.first = After::NEVER,
            // Once for each answer, as it would have ended.
            Limit::Idle => {
                self.idle = After::NEVER;
                self.silent_by = After::NEVER;
            }
            Limit::Connect | Limit::Total | Limit::Deadline => self.whole = After::NEVER,
        }
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}
