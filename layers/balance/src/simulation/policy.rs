//! Who decides where a request goes, by name.

use std::{error::Error, fmt, str::FromStr};

use palisade_core::classify::Verdict;

use super::{jobs::Job, server::Server};
use crate::{LoadReport, Strategy};

/// Who decides where a request goes.
///
/// ```
/// use palisade_balance::{Strategy, simulation::Policy};
///
/// let policy: Policy = "adaptive+costs".parse()?;
/// assert_eq!(policy, Policy::Costs(Strategy::Adaptive));
/// assert_eq!("oracle".parse(), Ok(Policy::Queues));
/// # Ok::<(), palisade_balance::simulation::UnknownPolicy>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "simulation",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
#[non_exhaustive]
pub enum Policy {
    /// The mechanism of this crate. Its name is that of the strategy.
    Ours(Strategy),
    /// The same, and requests say how much work they are: `...+costs`.
    Costs(Strategy),
    /// The same, and answers say how busy the endpoint is: `...+reports`.
    Reports(Strategy),
    /// The same, and each gateway asks each endpoint every second how busy it is: `...+probes`.
    Probes(Strategy),
    /// The same, and each gateway checks the health of each endpoint every thirty seconds: `...+checks`.
    Checks(Strategy),
    /// The same, with those probes and those checks, as `demo-gateway` has it: `...+probes+checks`.
    Asks(Strategy),
    /// Tower's `Balance` with its `PeakEwma` that forgets within ten seconds: two are drawn, and the one with the lower
    /// product of peak latency and pending requests is taken. `p2c_peak_ewma`.
    PeakEwma,
    /// Two are drawn, and the one with fewer requests in flight is taken: `p2c_in_flight`.
    InFlight,
    /// Prequal as it was published: three probes for each request, and of those that are not busy the fastest.
    /// `probing`.
    Probing,
    /// Knows every queue and every speed, and joins where a mean request would be over first: `oracle`.
    Queues,
    /// Knows every size, too, and joins where the request is over first: `oracle_sizes`.
    Sizes,
}

const COSTS: &str = "+costs";
const REPORTS: &str = "+reports";
const PROBES: &str = "+probes";
const CHECKS: &str = "+checks";
const BOTH: &str = "+probes+checks";

impl Policy {
    /// Ours and those of others, without costs and reports.
    pub fn all() -> impl Iterator<Item = Self> {
        let oracles = [Self::Queues, Self::Sizes];
        let ours = Strategy::ALL.into_iter().map(Self::Ours);
        let others = [Self::PeakEwma, Self::InFlight, Self::Probing];
        oracles.into_iter().chain(ours).chain(others)
    }

    /// Whether it knows what nobody can know.
    pub fn is_oracle(self) -> bool {
        matches!(self, Self::Queues | Self::Sizes)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Ours(strategy) => strategy.name(),
            Self::Costs(strategy) => return write!(f, "{strategy}{COSTS}"),
            Self::Reports(strategy) => return write!(f, "{strategy}{REPORTS}"),
            Self::Probes(strategy) => return write!(f, "{strategy}{PROBES}"),
            Self::Checks(strategy) => return write!(f, "{strategy}{CHECKS}"),
            Self::Asks(strategy) => return write!(f, "{strategy}{BOTH}"),
            Self::PeakEwma => "p2c_peak_ewma",
            Self::InFlight => "p2c_in_flight",
            Self::Probing => "probing",
            Self::Queues => "oracle",
            Self::Sizes => "oracle_sizes",
        };
        f.write_str(name)
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        let strategy = |name: &str| name.parse().map_err(|_| UnknownPolicy);
        match name {
            "p2c_peak_ewma" => Ok(Self::PeakEwma),
            "p2c_in_flight" => Ok(Self::InFlight),
            "probing" => Ok(Self::Probing),
            "oracle" => Ok(Self::Queues),
            "oracle_sizes" => Ok(Self::Sizes),
            name => match name.find('+').map(|at| name.split_at(at)) {
                Some((name, COSTS)) => strategy(name).map(Self::Costs),
                Some((name, REPORTS)) => strategy(name).map(Self::Reports),
                Some((name, PROBES)) => strategy(name).map(Self::Probes),
                Some((name, CHECKS)) => strategy(name).map(Self::Checks),
                Some((name, BOTH)) => strategy(name).map(Self::Asks),
                _ => strategy(name).map(Self::Ours),
            },
        }
    }
}

impl TryFrom<String> for Policy {
    type Error = UnknownPolicy;

    fn try_from(name: String) -> Result<Self, UnknownPolicy> {
        name.parse()
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        policy.to_string()
    }
}

/// There is no policy of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownPolicy;

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Policy::all().map(|policy| policy.to_string()).collect();
        let names = names.join(", ");
        write!(
            f,
            "unknown policy, expected one of {names}, or a strategy with {COSTS}, {REPORTS}, {PROBES}, {CHECKS} or {BOTH}"
        )
    }
}

impl Error for UnknownPolicy {}

/// What the simulation asks of a policy. Times are nanoseconds since the beginning.
pub(super) trait Balancer {
    type Ticket;

    /// The endpoint for a request, or when to ask again.
    fn choose(
        &mut self,
        job: &Job,
        servers: &[Server],
        now: u64,
    ) -> Result<(usize, Self::Ticket), Option<u64>>;

    fn first_data(&mut self, gateway: usize, ticket: &mut Self::Ticket, now: u64);

    /// The request is over, and left the endpoint with this load.
    fn over(&mut self, gateway: usize, ticket: Self::Ticket, over: &Over<'_>);

    /// Which endpoints to ask how they do, because of a request.
    fn probes(&mut self, _gateway: usize, _servers: &[Server], _asked: &mut Vec<usize>) {}

    /// So many gateways ask endpoints in a rhythm.
    fn gateways(&self) -> usize {
        0
    }

    /// How long one of these waits after it has asked one.
    fn pause(&mut self) -> u64 {
        u64::MAX
    }

    /// Which endpoint to ask then.
    fn probes_next(&mut self, _gateway: usize, _servers: &[Server], _asked: &mut Vec<usize>) {}

    /// What one of them says.
    fn probed(&mut self, _gateway: usize, _endpoint: usize, _report: LoadReport, _now: u64) {}

    fn join(&mut self, endpoint: usize, now: u64);

    fn leave(&mut self, endpoint: usize, now: u64);

    /// Requests that nobody has told the end of.
    fn in_flight(&self) -> u64;
}

/// How a request was over.
pub(super) struct Over<'a> {
    pub(super) server: &'a Server,
    pub(super) verdict: Verdict,
    pub(super) age: u64,
    pub(super) now: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_policies() {
        let more = Strategy::ALL.into_iter().flat_map(|strategy| {
            let told = [
                Policy::Costs,
                Policy::Reports,
                Policy::Probes,
                Policy::Checks,
                Policy::Asks,
            ];
            told.map(|told| told(strategy))
        });
        for policy in Policy::all().chain(more) {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        for name in [
            "",
            "+costs",
            "adaptive+",
            "adaptive+costs+costs",
            "adaptive+checks+probes",
            "Oracle",
        ] {
            assert_eq!(name.parse::<Policy>(), Err(UnknownPolicy), "{name}");
        }
    }
}
