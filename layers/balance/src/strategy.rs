//! How the next endpoint is chosen. A new strategy is a variant, its name, and one function from a [`View`] to a price.

use std::{error::Error, fmt, str::FromStr};

use crate::load::Load;

/// How the next endpoint is chosen. All count weights, slow start, ejection and ceilings.
///
/// ```
/// use palisade_balance::Strategy;
///
/// let strategy: Strategy = "least_connections".parse()?;
/// assert_eq!(strategy, Strategy::LeastConnections);
/// # Ok::<(), palisade_balance::UnknownStrategy>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// The lowest latency x (1 + in-flight), which moves with how the endpoints do.
    #[default]
    Adaptive,
    /// One after the other, whatever they do.
    RoundRobin,
    /// The fewest requests in flight.
    LeastConnections,
}

/// What a strategy may look at: one endpoint, now.
pub(crate) struct View<'a> {
    pub(crate) load: &'a Load,
    /// How long its turns are: one over its weight, more in slow start.
    pub(crate) stride: f64,
    /// When its next turn in the round begins.
    pub(crate) turn: f64,
    /// When the turn that was taken last began.
    pub(crate) round: f64,
    /// Its gate or its failures speak against it, but too many are out.
    pub(crate) doubtful: bool,
    /// What a failure costs.
    pub(crate) penalty: f64,
    /// The median latency of all.
    pub(crate) peers: f64,
    pub(crate) now: u64,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Adaptive, Self::RoundRobin, Self::LeastConnections];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::RoundRobin => "round_robin",
            Self::LeastConnections => "least_connections",
        }
    }

    /// The endpoint with the lowest is taken. Above zero, which is the price of a probe that is due.
    #[inline]
    pub(crate) fn price(self, view: &View<'_>) -> f64 {
        match self {
            Self::Adaptive => adaptive(view),
            Self::RoundRobin => round_robin(view),
            Self::LeastConnections => least_connections(view),
        }
    }
}

#[inline]
fn adaptive(view: &View<'_>) -> f64 {
    let mut latency = view.load.latency(view.peers, view.now);
    if view.doubtful {
        latency = latency.max(view.penalty);
    }
    // Answers that take no time at all are still told apart by what is in flight.
    latency.max(1.0) * queue(view)
}

#[inline]
fn least_connections(view: &View<'_>) -> f64 {
    let doubt = if view.doubtful { DOUBT } else { 1.0 };
    doubt * queue(view)
}

/// A doubtful endpoint has its turn like all others: this strategy knows nothing better.
#[inline]
fn round_robin(view: &View<'_>) -> f64 {
    1.0 + next_turn(view.turn, view.round, view.stride)
}

/// Who was away has no turns to catch up, and who had a small share when its last turn began does not pay for it now.
#[inline]
pub(crate) fn next_turn(turn: f64, round: f64, stride: f64) -> f64 {
    turn.min(round + stride).max(round)
}

/// How long the next request would stand in line, in turns.
#[inline]
fn queue(view: &View<'_>) -> f64 {
    f64::from(view.load.in_flight() + 1) * view.stride
}

/// As many requests in flight as this speak for a doubtful endpoint.
const DOUBT: f64 = 20.0;

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Self, UnknownStrategy> {
        let mut all = Self::ALL.into_iter();
        all.find(|strategy| strategy.name() == name)
            .ok_or(UnknownStrategy)
    }
}

/// There is no strategy of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownStrategy;

impl fmt::Display for UnknownStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Strategy::ALL.map(Strategy::name).join(", ");
        write!(f, "unknown strategy, expected one of {names}")
    }
}

impl Error for UnknownStrategy {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_strategies() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.name().parse(), Ok(strategy));
        }
        assert_eq!("fastest".parse::<Strategy>(), Err(UnknownStrategy));
    }

    #[test]
    fn every_price_is_finite_and_dearer_than_a_probe() {
        let mut load = Load::new(0);
        load.sample(0.0, 0);
        for strategy in Strategy::ALL {
            for doubtful in [false, true] {
                for stride in [1e-4, 1.0, 1e4] {
                    let price = strategy.price(&View {
                        load: &load,
                        stride,
                        turn: 0.0,
                        round: 0.0,
                        doubtful,
                        penalty: 5e9,
                        peers: 1e9,
                        now: u64::MAX,
                    });
                    assert!(price.is_finite() && price > 0.0, "{strategy} {price}");
                }
            }
        }
    }
}
