//! What one endpoint would cost a request, for each strategy. The lowest price is taken.

use crate::{
    coin::mix,
    load::Load,
    strategy::Strategy,
    told::{self, Probed, Usually},
};

/// An endpoint that is [overdue](Load::is_overdue) is as cheap as can be, once its peers have had this many turns since
/// its last: looking again at slow ones stays below a hundredth of the requests however little traffic there is.
const MISSED_TURNS: f64 = 100.0;
/// One that nobody has heard of waits for no more, and not for its time: one of its peers is always a bit faster than
/// usual. Where there are many gateways, fewer have them all look at one that has just come at once.
const UNHEARD_TURNS: f64 = 30.0;
/// And one that says that it fails waits for so many: it would say when that is over, but may not tell the truth, as one
/// that answers all but probes.
const FAILING_TURNS: f64 = 1000.0;
const OVERDUE: f64 = f64::MIN_POSITIVE;

/// As many requests in flight as this speak for a doubtful endpoint.
const DOUBT: f64 = 20.0;

/// An endpoint that is given this much more than its share of what is in flight comes after those that are not.
///
/// By Mirrokni, Thorup and Zadimoghaddam, Consistent Hashing with Bounded Loads, 2018.
const BOUND: f64 = 1.25;

/// A probe is used for so long. By Wydrowski et al., Load is not what you should balance, NSDI 2024.
const PROBE_FRESH: u64 = 1_000_000_000;
/// And for so many requests: with three probes for each, and ten endpoints, there is a new one after three or four.
const PROBE_USES: u32 = 4;

/// What a choice knows of the request and of all endpoints together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) now: u64,
    /// What the request adds to what is in flight.
    pub(crate) size: f64,
    /// The median latency of all, in nanoseconds.
    pub(crate) peers: f64,
    /// What a failure costs.
    pub(crate) penalty: f64,
    /// What the place costs that an answer keeps after it has begun.
    pub(crate) place: f64,
    /// When the turn that was taken last began.
    pub(crate) round: f64,
    /// What is usual among those that report, if any do.
    pub(crate) usually: Option<Usually>,
    /// The request's affinity, or chance.
    pub(crate) draw: u64,
    /// Whether it has an affinity.
    pub(crate) belongs: bool,
    /// Whether it wants all endpoints.
    pub(crate) wants_all: bool,
    /// So many requests in flight are too many for a share of one; without an affinity there is no bound.
    pub(crate) bound: Option<f64>,
    /// With more than this in flight an endpoint is hot; unless too few have been probed.
    pub(crate) hot: Option<u32>,
}

/// What a strategy may look at: one endpoint, now.
pub(crate) struct View<'a> {
    pub(crate) load: &'a Load,
    /// How long its turns are: one over its weight, more in slow start.
    pub(crate) stride: f64,
    /// When its last turn in the round began.
    pub(crate) turn: f64,
    /// Of its name.
    pub(crate) hash: u64,
    /// Its gate or its failures speak against it, but too many are out.
    pub(crate) doubtful: bool,
    pub(crate) field: &'a Field,
}

/// What a loop over endpoints asks for each of them.
pub(crate) trait Pricing {
    /// The price of one of this weight.
    fn of(&self, view: &View<'_>, weight: f64) -> f64;
}

impl Pricing for Strategy {
    fn of(&self, view: &View<'_>, weight: f64) -> f64 {
        let stride = self.turn(view.stride, weight);
        self.price(&View { stride, ..*view })
    }
}

/// The default, known before the loop begins.
pub(crate) struct Adaptive;

/// The same where no endpoint says anything of its load.
pub(crate) struct Untold;

impl Pricing for Untold {
    // Into the loop, which it decides how long it takes.
    #[inline(always)]
    fn of(&self, view: &View<'_>, _: f64) -> f64 {
        unstrained(view, view.field.peers, 0.0)
    }
}

impl Pricing for Adaptive {
    // Into the loop, which it decides how long it takes.
    #[inline(always)]
    fn of(&self, view: &View<'_>, _: f64) -> f64 {
        adaptive(view)
    }
}

#[inline(always)]
pub(crate) fn adaptive(view: &View<'_>) -> f64 {
    let (Some(usually), Some(told)) = (&view.field.usually, view.load.told()) else {
        return unstrained(view, view.field.peers, 0.0);
    };
    let slowness = told::slowness(told, usually, view.field.now);
    let risk = risk(view);
    let price = unstrained(view, view.field.peers * slowness, risk);
    if price == OVERDUE {
        // What another look would show, it says itself.
        return if risk > view.field.peers && !has_missed(view, FAILING_TURNS) {
            risk * view.stride
        } else {
            price
        };
    }
    let strain = told::strain(told, usually, view.field.now);
    // Who fails has little to do, and that must attract nobody.
    let least = if view.load.has_failed() { 1.0 } else { 0.0 };
    price * strain.max(least)
}

/// What it may cost in failures, by what it says, in nanoseconds of latency.
#[inline]
fn risk(view: &View<'_>) -> f64 {
    let said = view.field.usually.as_ref().zip(view.load.told());
    said.map_or(0.0, |(usually, told)| {
        view.field.penalty * told::risk(told, usually, view.field.now)
    })
}

/// Whatever it says of its load, where its peers take this long, and so much is added for what it may cost besides.
#[inline(always)]
fn unstrained(view: &View<'_>, peers: f64, more: f64) -> f64 {
    let (latency, is_overdue) = view.load.expect(peers, view.field.now);
    if view.load.is_due() || is_overdue && has_missed_turns(view) {
        return OVERDUE;
    }
    let latency = at_least(view, latency) + view.field.place * view.load.pace() + more;
    latency * (view.load.queue() + view.field.size) * view.stride
}

/// As nginx Plus and NetScaler do, with an estimate that is sane.
#[inline]
pub(super) fn least_response_time(view: &View<'_>) -> f64 {
    if is_overdue(view) {
        return OVERDUE;
    }
    latency(view) * queue(view)
}

#[inline]
pub(super) fn least_connections(view: &View<'_>) -> f64 {
    if is_overdue(view) {
        return OVERDUE;
    }
    p2c(view)
}

/// Between the two that were drawn, or all if neither may be picked.
#[inline]
pub(super) fn p2c(view: &View<'_>) -> f64 {
    let doubt = if view.doubtful { DOUBT } else { 1.0 };
    doubt * queue(view)
}

/// A doubtful endpoint has its turn like all others: this strategy knows nothing better.
#[inline]
pub(super) fn round_robin(view: &View<'_>) -> f64 {
    let wait = next_turn(view.turn, view.field.round, view.stride) - view.field.round;
    1.0 + wait
}

/// Who has the shortest of waiting times that are exponential by weight: each is it as often as it weighs.
pub(super) fn random(view: &View<'_>) -> f64 {
    race(view)
}

/// The same race, which the same endpoint wins for the same affinity.
pub(super) fn consistent_hash(view: &View<'_>) -> f64 {
    let Some(bound) = view.field.bound else {
        return adaptive(view);
    };
    let share = bound / view.stride;
    let over = f64::from(view.load.in_flight()) >= share.ceil();
    let tier = 2.0 * f64::from(u8::from(over)) + f64::from(u8::from(view.doubtful));
    within(tier, race(view))
}

pub(super) fn prequal(view: &View<'_>) -> f64 {
    let Some(hot) = view.field.hot else {
        return adaptive(view);
    };
    if is_overdue(view) {
        return OVERDUE;
    }
    let Some(probed) = probed(view.load, view.field.now) else {
        return within(2.0, seconds(adaptive(view)));
    };
    if probed.in_flight > hot {
        return within(1.0, f64::from(probed.in_flight) * view.stride);
    }
    let latency = probed.latency.unwrap_or_else(|| latency(view));
    let doubt = if view.doubtful { DOUBT } else { 1.0 };
    let latency = latency.max(1.0) + risk(view);
    within(0.0, seconds(latency) * doubt * view.stride)
}

/// When its next turn begins. Who was away has no turns to catch up, and how long the last one is counts by the share
/// that it has now: who had a small one when that began does not pay for it.
#[inline]
pub(crate) fn next_turn(turn: f64, round: f64, stride: f64) -> f64 {
    (turn + stride).max(round)
}

/// How long its next answer will take if nothing else is in flight there.
#[inline]
fn latency(view: &View<'_>) -> f64 {
    at_least(view, view.load.latency(view.field.peers, view.field.now))
}

#[inline]
fn at_least(view: &View<'_>, latency: f64) -> f64 {
    // Answers that take no time at all are still told apart by what is in flight.
    let least = if view.doubtful {
        view.field.penalty.max(1.0)
    } else {
        1.0
    };
    // One instruction, where `max` would first ask whether `least` is a number.
    if latency > least { latency } else { least }
}

/// How long the next request would stand in line, in turns.
#[inline]
fn queue(view: &View<'_>) -> f64 {
    f64::from(view.load.in_flight() + 1) * view.stride
}

/// Nobody is priced out for ever: what it would cost may have changed, and nobody would know.
#[inline]
fn is_overdue(view: &View<'_>) -> bool {
    view.load.is_due() || view.load.is_overdue(view.field.now) && has_missed_turns(view)
}

#[inline]
fn has_missed_turns(view: &View<'_>) -> bool {
    let turns = match (view.load.is_unheard(), view.doubtful) {
        (false, _) => MISSED_TURNS,
        (true, false) => UNHEARD_TURNS,
        // It is out, and has probes of its own.
        (true, true) => return false,
    };
    has_missed(view, turns)
}

#[inline]
fn has_missed(view: &View<'_>, turns: f64) -> bool {
    view.field.round - view.turn >= (1.0 + turns) * view.stride
}

fn race(view: &View<'_>) -> f64 {
    let drawn = mix(view.hash ^ view.field.draw) >> 11;
    // Never 0 and never 1.
    let chance = (drawn as f64 + 0.5) / (1u64 << 53) as f64;
    -chance.ln() * view.stride
}

fn seconds(nanos: f64) -> f64 {
    nanos * 1e-9
}

/// All prices of a tier are below all of the next.
fn within(tier: f64, price: f64) -> f64 {
    tier + (price / (1.0 + price)).max(OVERDUE)
}

/// How many requests in flight are too many for one turn of this length, where all have so many and shares so large.
pub(crate) fn bound(in_flight: u64, shares: f64) -> f64 {
    BOUND * (in_flight + 1) as f64 / shares
}

/// So many of those that were probed are not hot.
const COLD: f64 = 0.84;

/// What its last probe has found, if that is worth anything.
pub(crate) fn probed(load: &Load, now: u64) -> Option<Probed> {
    load.told()?.probed(PROBE_USES, PROBE_FRESH, now)
}

/// Above how many in flight an endpoint is hot; `None` if too few were probed. Leaves `probed` in another order.
pub(crate) fn hot(probed: &mut [f64]) -> Option<u32> {
    if probed.len() < 2 {
        return None;
    }
    let at = (COLD * (probed.len() - 1) as f64) as usize;
    let (_, hot, _) = probed.select_nth_unstable_by(at, f64::total_cmp);
    Some(*hot as u32)
}
