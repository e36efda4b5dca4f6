//! What a layer has ended, and whether it may.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use palisade_core::reject::Reason;

use crate::{error::Limit, metrics::Metrics};

/// What becomes of requests whose time is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// They end.
    #[default]
    Enforce,
    /// They go on and are counted, in [`Snapshot::shadowed`](crate::Snapshot::shadowed) and in metrics, and nobody is
    /// told of a deadline: to try a limit on live traffic.
    Shadow,
}

/// How many requests a layer has ended, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Before the service was called: their deadline had passed.
    pub passed: u64,
    /// Before the service was called: less was left than the [median](crate::DeadlineLayer::refuse_below_median).
    pub hopeless: u64,
    /// By [`Limit::Connect`].
    pub connect: u64,
    /// By [`Limit::FirstByte`].
    pub first_byte: u64,
    /// By [`Limit::Idle`].
    pub idle: u64,
    /// By [`Limit::Total`].
    pub total: u64,
    /// By [`Limit::Deadline`], once the service was called.
    pub deadline: u64,
}

/// Why a request ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Why {
    Passed,
    Hopeless,
    Elapsed(Limit),
}

pub(crate) const WHYS: usize = 7;

impl Why {
    /// Each at its [`index`](Self::index).
    #[cfg(feature = "metrics")]
    pub(crate) const ALL: [Self; WHYS] = [
        Self::Passed,
        Self::Hopeless,
        Self::Elapsed(Limit::Connect),
        Self::Elapsed(Limit::FirstByte),
        Self::Elapsed(Limit::Idle),
        Self::Elapsed(Limit::Total),
        Self::Elapsed(Limit::Deadline),
    ];

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Passed => 0,
            Self::Hopeless => 1,
            Self::Elapsed(Limit::Connect) => 2,
            Self::Elapsed(Limit::FirstByte) => 3,
            Self::Elapsed(Limit::Idle) => 4,
            Self::Elapsed(Limit::Total) => 5,
            Self::Elapsed(Limit::Deadline) => 6,
        }
    }

    #[cfg_attr(not(feature = "metrics"), allow(dead_code))]
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Passed | Self::Hopeless => Reason::DeadlineExceeded,
            Self::Elapsed(_) => Reason::TimedOut,
        }
    }

    #[cfg_attr(not(feature = "metrics"), allow(dead_code))]
    pub(crate) fn limit(self) -> &'static str {
        match self {
            Self::Passed => Limit::Deadline.name(),
            Self::Hopeless => "median",
            Self::Elapsed(limit) => limit.name(),
        }
    }
}

pub(crate) struct Tally {
    pub(crate) name: Cow<'static, str>,
    shadow: AtomicBool,
    ended: Counters,
    shadowed: Counters,
    metrics: Metrics,
}

#[derive(Default)]
struct Counters([AtomicU64; WHYS]);

impl Tally {
    pub(crate) fn new(name: Cow<'static, str>, mode: Mode) -> Self {
        Self {
            metrics: Metrics::new(name.clone()),
            name,
            shadow: AtomicBool::new(mode == Mode::Shadow),
            ended: Counters::default(),
            shadowed: Counters::default(),
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.shadow.load(Relaxed) {
            true => Mode::Shadow,
            false => Mode::Enforce,
        }
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.shadow.store(mode == Mode::Shadow, Relaxed);
    }

    /// A request has come.
    #[inline]
    pub(crate) fn arrive(&self) {
        self.metrics.register();
    }

    /// Counts the end of a request, and whether it really ends.
    pub(crate) fn ends(&self, why: Why) -> bool {
        let mode = self.mode();
        let counters = match mode {
            Mode::Enforce => &self.ended,
            Mode::Shadow => &self.shadowed,
        };
        counters.0[why.index()].fetch_add(1, Relaxed);
        self.metrics.ended(why, mode);
        mode == Mode::Enforce
    }

    pub(crate) fn timeout(&self, limit: Limit, timeout: Duration) {
        self.metrics.timeout(limit, timeout);
    }

    pub(crate) fn median(&self, median: Duration) {
        self.metrics.median(median);
    }

    pub(crate) fn ended(&self) -> Counts {
        self.ended.get()
    }

    pub(crate) fn shadowed(&self) -> Counts {
        self.shadowed.get()
    }
}

impl Counters {
    fn get(&self) -> Counts {
        let count = |why: Why| self.0[why.index()].load(Relaxed);
        let elapsed = |limit| count(Why::Elapsed(limit));
        Counts {
            passed: count(Why::Passed),
            hopeless: count(Why::Hopeless),
            connect: elapsed(Limit::Connect),
            first_byte: elapsed(Limit::FirstByte),
            idle: elapsed(Limit::Idle),
            total: elapsed(Limit::Total),
            deadline: elapsed(Limit::Deadline),
        }
    }
}
