//! How the next endpoint is chosen. A new strategy is a variant with its doc, its name, and one function from a [`View`]
//! to a price, in [`price`].

use std::{error::Error, fmt, str::FromStr};

pub(crate) mod price;
#[cfg(test)]
mod tests;

use self::price::View;

/// How the next endpoint is chosen.
///
/// All count slow start, ejection and ceilings, and all but [`RoundRobin`](Self::RoundRobin) count weights. What is
/// known of the endpoints is kept up whatever the strategy is, so that it can be
/// [changed](crate::Endpoints::set_strategy) at any time.
///
/// | name | looks at | is for |
/// |---|---|---|
/// | `adaptive` | latency, work in flight, reports | nearly everything |
/// | `round_robin` | whose turn it is | even wear, tests |
/// | `weighted_round_robin` | whose turn it is | shares that are given: canaries |
/// | `least_connections` | requests in flight | endpoints that are alike, connections that last |
/// | `least_response_time` | latency, requests in flight | as `adaptive`, where sizes and reports are not to be trusted |
/// | `random` | nothing | many gateways with little traffic each, a yardstick |
/// | `p2c` | requests in flight at two | very many endpoints that are alike |
/// | `consistent_hash` | the request's affinity, requests in flight | caches and sessions at the endpoints |
/// | `prequal` | what probes have found | many gateways, endpoints that share their machines |
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
    /// The lowest latency x work in flight / weight, where the work is that of the request itself and of all that have
    /// not ended, by their [`Cost`](palisade_core::cost::Cost)s.
    ///
    /// The default. It stays within a tenth of what is possible while endpoints are slow, become slow or fail, see the
    /// figures of the crate. What endpoints [report](crate::LoadReport) refines it.
    ///
    /// In the plain form, a score of latency, load and errors together, a fast failure looks like a fast answer and
    /// attracts all traffic: here it is a latency of twenty usual answers.
    #[default]
    Adaptive,
    /// One after the other, whatever they do and weigh.
    ///
    /// Only for endpoints and requests that are alike: at load 0.9 the queue of a slow endpoint grows without end.
    /// In the plain form, a counter modulo the number of endpoints, an endpoint that comes or goes moves all turns,
    /// and who follows one that is out gets twice its share: here turns are start-time fair queueing's.
    RoundRobin,
    /// One after the other, in proportion to their weights, spread evenly.
    ///
    /// For shares that are given and not found out, as a canary's. In the plain form, a list with each endpoint as often
    /// as it weighs, the heaviest gets all its turns in a row.
    WeightedRoundRobin,
    /// The fewest requests in flight by weight, to the end of their bodies.
    ///
    /// For endpoints that are alike and answers that last. In the plain form, a request ends with the head of its answer
    /// and streams are not seen; and who fails at once has nothing in flight, and attracts all: here it is ejected.
    LeastConnections,
    /// The lowest latency x (1 + requests in flight) / weight, whatever the requests cost and the endpoints report.
    ///
    /// In the plain form, the lowest average latency, all go to the one that was fast last until it is slow, and one that
    /// was slow once is never tried again: here what is in flight counts, and what was priced out is tried again.
    LeastResponseTime,
    /// Any, in proportion to their weights.
    ///
    /// Never herds, and nothing evens out: simulated at load 0.9, p99 is 2.4 times that of the shortest queue with
    /// endpoints that are alike, and grows without end with others.
    Random,
    /// The one with fewer requests in flight by weight, of two that are drawn by weight.
    ///
    /// Looks at two endpoints however many there are. In the plain form both can be the same, or both out: here they are
    /// two, and if neither may be picked all are looked at.
    P2c,
    /// The one that the request's [`Affinity`](crate::Affinity) belongs to, unless it has more than 1.25 times its share
    /// of what is in flight; then the next that has not. Without an affinity as [`Adaptive`](Self::Adaptive).
    ///
    /// For caches and sessions at the endpoints. All gateways find the same endpoint by its name, and when one comes or
    /// goes only the keys that it gets or had move. By weighted rendezvous hashing, with the bound of Mirrokni, Thorup
    /// and Zadimoghaddam. In the plain form, a ring without a bound, one popular key overloads one endpoint, and the
    /// next when that fails.
    ConsistentHash,
    /// The lowest latency of those that do not have much to do, as [reports](crate::Endpoints::report) of less than a second
    /// ago say; if all have, the least of it. With fewer than two such reports as [`Adaptive`](Self::Adaptive).
    ///
    /// For many gateways that each see little of what an endpoint has to do, and endpoints whose speed changes with
    /// their neighbours. It needs probes. By Wydrowski, Kleinberg, Rumble and Archer, NSDI 2024: of all reports, those
    /// with more in flight than 0.84 of them are hot. In the plain form a failing endpoint is idle and fast, and
    /// attracts all: here it is ejected.
    Prequal,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Adaptive,
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::LeastConnections,
        Self::LeastResponseTime,
        Self::Random,
        Self::P2c,
        Self::ConsistentHash,
        Self::Prequal,
    ];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::RoundRobin => "round_robin",
            Self::WeightedRoundRobin => "weighted_round_robin",
            Self::LeastConnections => "least_connections",
            Self::LeastResponseTime => "least_response_time",
            Self::Random => "random",
            Self::P2c => "p2c",
            Self::ConsistentHash => "consistent_hash",
            Self::Prequal => "prequal",
        }
    }

    /// How much of a large set a choice looks at first, for a request that has an affinity or not.
    #[inline]
    pub(crate) fn reach(self, belongs: bool) -> Reach {
        match self {
            Self::RoundRobin | Self::WeightedRoundRobin | Self::Random => Reach::All,
            Self::ConsistentHash if belongs => Reach::All,
            Self::P2c => Reach::Two,
            Self::Adaptive
            | Self::LeastConnections
            | Self::LeastResponseTime
            | Self::ConsistentHash
            | Self::Prequal => Reach::Some,
        }
    }

    /// The endpoint with the lowest is taken. Above zero, which is the price of a probe that is due.
    #[inline]
    pub(crate) fn price(self, view: &View<'_>) -> f64 {
        match self {
            Self::Adaptive => price::adaptive(view),
            Self::RoundRobin | Self::WeightedRoundRobin => price::round_robin(view),
            Self::LeastConnections => price::least_connections(view),
            Self::LeastResponseTime => price::least_response_time(view),
            Self::Random => price::random(view),
            Self::P2c => price::p2c(view),
            Self::ConsistentHash => price::consistent_hash(view),
            Self::Prequal => price::prequal(view),
        }
    }

    /// How long a turn in the round is, of an endpoint of this weight whose share makes it this long.
    #[inline]
    pub(crate) fn turn(self, stride: f64, weight: f64) -> f64 {
        match self {
            Self::RoundRobin => stride * weight,
            _ => stride,
        }
    }
}

/// How much of a large set a choice looks at first. If that finds none, it looks at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Two,
    /// As many as can be looked at soon enough.
    Some,
    All,
}

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
