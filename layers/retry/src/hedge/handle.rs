use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use palisade_core::ratio::Ratio;

use super::{
    policy::{Mode, Policy, Why},
    times::Times,
};

/// Looks at a hedge from outside, and steers it while requests come in.
///
/// ```
/// use std::time::Duration;
/// use palisade_retry::{HedgeLayer, hedge::Mode};
///
/// let layer = HedgeLayer::new(Duration::from_millis(50));
/// let handle = layer.handle();
/// handle.set_mode(Mode::Shadow);
/// assert_eq!(layer.handle().snapshot().mode, Mode::Shadow);
/// ```
#[derive(Clone)]
pub struct Handle(pub(crate) Arc<Policy>);

/// What a hedge has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Whether hedges are sent.
    pub mode: Mode,
    /// After how long one is sent now; `None` as long as that is not known, or depends on the request.
    pub delay: Option<Duration>,
    /// Whether too many attempts have failed of late for any hedge.
    pub failing: bool,
    /// Whether a [signal](super::HedgeLayer::paused_by) says that none is sent.
    pub paused: bool,
    /// Requests that have come in.
    pub requests: u64,
    /// Hedges that were sent. Those that are neither won nor lost still run.
    pub sent: u64,
    /// Hedges whose answer became that of the request.
    pub won: u64,
    /// Hedges that another attempt was faster than, that failed, or whose caller left.
    pub lost: u64,
    /// Hedges that were due when share or budget was used up.
    pub no_budget: u64,
    /// Hedges that were due before the service was ready: sent later, or not at all.
    pub not_ready: u64,
    /// Hedges that were due when attempts had begun to fail, or hedging had just been turned off.
    pub held_back: u64,
    /// Hedges that were due while a signal paused them.
    pub while_paused: u64,
    /// Hedges that were due before all of the request's body had come, or when it was too large.
    pub no_body: u64,
    /// Hedges that the server asked not to send.
    pub pushed_back: u64,
    /// Hedges that would have been sent in [`Mode::Shadow`].
    pub shadowed: u64,
    /// How much longer than the delay the first answers of these took: hedges can save no more.
    pub shadowed_for: Duration,
}

impl Handle {
    /// The counts of now. They are read one after the other, while requests go on.
    pub fn snapshot(&self) -> Snapshot {
        let policy = &*self.0;
        let state = policy.state();
        let learnt = state.times.as_ref().and_then(Times::known);
        let failing = !state.trust.is_there();
        drop(state);
        let stats = &*policy.stats;
        let held_back = |why: Why| stats.held_back[why as usize].load(Relaxed);
        Snapshot {
            mode: policy.mode(),
            delay: policy.delay.now(learnt),
            failing,
            paused: policy.is_paused(),
            requests: stats.requests.load(Relaxed),
            sent: stats.sent.load(Relaxed),
            won: stats.won.load(Relaxed),
            lost: stats.lost.load(Relaxed),
            no_budget: held_back(Why::Budget),
            not_ready: held_back(Why::NotReady),
            held_back: held_back(Why::Failing),
            while_paused: held_back(Why::Paused),
            no_body: held_back(Why::Body),
            pushed_back: held_back(Why::Pushback),
            shadowed: held_back(Why::Shadow),
            shadowed_for: Duration::from_micros(stats.shadowed_for.load(Relaxed)),
        }
    }

    /// Turns hedging off or on, or lets it only count. Requests that run are not hedged from then on, unless it is on.
    pub fn set_mode(&self, mode: Mode) {
        self.0.mode.store(mode as u8, Relaxed);
    }

    /// Sends at most this share of requests twice from now on.
    pub fn set_at_most(&self, share: Ratio) {
        self.0.state().share.set_ratio(share.get());
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.snapshot()).finish()
    }
}
