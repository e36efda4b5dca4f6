//! What is simulated, and whether it can be.

use std::{error::Error, fmt};

use super::workload::{Fault, Group, Size, Workload};

/// So many requests may a run have; more would only be slow.
const REQUESTS_AT_MOST: usize = 50_000_000;
const ENDPOINTS_AT_MOST: usize = 10_000;
const GATEWAYS_AT_MOST: usize = 10_000;

/// One run: the same scenario gives the same result, to the last bit.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "simulation",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct Scenario {
    /// How many know nothing of each other. Requests come to each of them alike.
    pub gateways: usize,
    /// How much is asked for, relative to what the endpoints can do.
    pub load: f64,
    /// Arrivals, sizes and policies draw from streams of their own that it begins.
    pub seed: u64,
    /// How many come.
    pub requests: usize,
    /// What kind of requests, and the endpoints.
    pub workload: Workload,
}

impl Default for Scenario {
    /// One gateway, load 0.9, twenty thousand requests.
    fn default() -> Self {
        Self {
            gateways: 1,
            load: 0.9,
            seed: 1,
            requests: 20_000,
            workload: Workload::default(),
        }
    }
}

impl Scenario {
    /// Of this workload.
    pub fn of(workload: Workload) -> Self {
        Self {
            workload,
            ..Self::default()
        }
    }

    /// With so many gateways.
    #[must_use]
    pub fn gateways(mut self, gateways: usize) -> Self {
        self.gateways = gateways;
        self
    }

    /// At this load.
    #[must_use]
    pub fn load(mut self, load: f64) -> Self {
        self.load = load;
        self
    }

    /// From this seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// With so many requests.
    #[must_use]
    pub fn requests(mut self, requests: usize) -> Self {
        self.requests = requests;
        self
    }

    /// Whether it can be simulated.
    ///
    /// # Errors
    ///
    /// The first thing that cannot be.
    pub fn check(&self) -> Result<(), InvalidScenario> {
        let workload = &self.workload;
        within("gateways", self.gateways, GATEWAYS_AT_MOST)?;
        within("requests", self.requests, REQUESTS_AT_MOST)?;
        positive("load", self.load)?;
        positive("workload.mean", workload.mean)?;
        workload
            .deadline
            .map_or(Ok(()), |deadline| positive("workload.deadline", deadline))?;
        workload
            .first_data
            .map_or(Ok(()), |part| share("workload.first_data", part))?;
        size(workload.size)?;
        let count = |sum: usize, group: &Group| sum.saturating_add(group.count);
        let endpoints = workload.endpoints.iter().fold(0, count);
        within("workload.endpoints", endpoints, ENDPOINTS_AT_MOST)?;
        for group in &workload.endpoints {
            within("slots", group.slots as usize, 1_000_000)?;
            positive("speed", group.speed)?;
            positive("cold_speed", group.cold_speed)?;
            not_negative("cold", group.cold)?;
            for trouble in &group.troubles {
                span("troubles", (trouble.from, trouble.to))?;
                fault(trouble.fault)?;
                if trouble.fault == Fault::Hangs && workload.deadline.is_none() {
                    return Err(InvalidScenario::of(
                        "workload.deadline",
                        "what hangs is only over for callers that give up",
                    ));
                }
            }
        }
        let (from, to) = workload.counted;
        span("workload.counted", (from, to))?;
        if from >= to {
            return Err(InvalidScenario::of(
                "workload.counted",
                "nothing is between",
            ));
        }
        let mut before = -1.0;
        for phase in &workload.arrivals {
            share("workload.arrivals.from", phase.from)?;
            positive("workload.arrivals.load", phase.load)?;
            if phase.from <= before {
                return Err(InvalidScenario::of(
                    "workload.arrivals",
                    "phases come in order of `from`",
                ));
            }
            before = phase.from;
        }
        if workload.capacity() <= 0.0 {
            return Err(InvalidScenario::of(
                "workload.endpoints",
                "at some moment none of them can do anything",
            ));
        }
        Ok(())
    }
}

fn size(size: Size) -> Result<(), InvalidScenario> {
    match size {
        Size::Constant | Size::Exponential => Ok(()),
        Size::Bimodal {
            share: part,
            factor,
        } => {
            share("workload.size.bimodal.share", part)?;
            positive("workload.size.bimodal.factor", factor)
        }
        Size::Lognormal { sigma } if sigma.is_finite() && (0.0..=5.0).contains(&sigma) => Ok(()),
        Size::Lognormal { .. } => Err(InvalidScenario::of(
            "workload.size.lognormal.sigma",
            "has to be from 0 to 5",
        )),
    }
}

fn fault(fault: Fault) -> Result<(), InvalidScenario> {
    match fault {
        Fault::Slow { speed } => positive("fault.slow.speed", speed),
        Fault::Flips { speed, fast, slow } => {
            positive("fault.flips.speed", speed)?;
            positive("fault.flips.fast", fast)?;
            positive("fault.flips.slow", slow)
        }
        Fault::Fails { share: part } => share("fault.fails.share", part),
        Fault::Overloaded { retry_after } => {
            not_negative("fault.overloaded.retry_after", retry_after)
        }
        Fault::Hangs | Fault::Absent => Ok(()),
    }
}

fn within(what: &'static str, number: usize, most: usize) -> Result<(), InvalidScenario> {
    if (1..=most).contains(&number) {
        return Ok(());
    }
    Err(InvalidScenario {
        what,
        why: format!("has to be from 1 to {most}").into(),
    })
}

/// Above zero, and of a size that still means something.
fn positive(what: &'static str, number: f64) -> Result<(), InvalidScenario> {
    if (1e-6..=1e6).contains(&number) {
        return Ok(());
    }
    Err(InvalidScenario::of(
        what,
        "has to be from 0.000001 to 1000000",
    ))
}

fn not_negative(what: &'static str, number: f64) -> Result<(), InvalidScenario> {
    if (0.0..=1e6).contains(&number) {
        return Ok(());
    }
    Err(InvalidScenario::of(what, "has to be from 0 to 1000000"))
}

fn share(what: &'static str, number: f64) -> Result<(), InvalidScenario> {
    if (0.0..=1.0).contains(&number) {
        return Ok(());
    }
    Err(InvalidScenario::of(what, "has to be from 0 to 1"))
}

fn span(what: &'static str, (from, to): (f64, f64)) -> Result<(), InvalidScenario> {
    share(what, from)?;
    share(what, to)
}

/// What cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidScenario {
    what: &'static str,
    why: std::borrow::Cow<'static, str>,
}

impl InvalidScenario {
    fn of(what: &'static str, why: &'static str) -> Self {
        Self {
            what,
            why: why.into(),
        }
    }

    /// Which part of the scenario.
    pub fn what(&self) -> &str {
        self.what
    }
}

impl fmt::Display for InvalidScenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl Error for InvalidScenario {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::Phase;

    #[test]
    fn every_named_workload_can_be_simulated() {
        for name in Workload::NAMES {
            let workload = Workload::named(name).unwrap();
            assert_eq!(workload.name, name);
            assert_eq!(Scenario::of(workload).check(), Ok(()), "{name}");
        }
        assert_eq!(Workload::named("no such thing"), None);
    }

    #[test]
    fn what_makes_no_sense_is_an_error_that_says_where() {
        let wrong = |change: fn(&mut Scenario)| {
            let mut scenario = Scenario::default();
            change(&mut scenario);
            scenario.check().expect_err("wrong").what().to_owned()
        };
        assert_eq!(wrong(|it| it.gateways = 0), "gateways");
        assert_eq!(wrong(|it| it.requests = usize::MAX), "requests");
        assert_eq!(wrong(|it| it.load = f64::NAN), "load");
        assert_eq!(wrong(|it| it.load = -1.0), "load");
        assert_eq!(wrong(|it| it.workload.mean = 0.0), "workload.mean");
        assert_eq!(
            wrong(|it| it.workload.deadline = Some(f64::INFINITY)),
            "workload.deadline"
        );
        assert_eq!(
            wrong(|it| it.workload.endpoints.clear()),
            "workload.endpoints"
        );
        assert_eq!(
            wrong(|it| {
                let all = Group::of(10).trouble(Fault::Hangs, 0.2, 0.4);
                it.workload.endpoints = vec![all];
                it.workload.deadline = Some(5.0);
            }),
            "workload.endpoints"
        );
        assert_eq!(
            wrong(|it| {
                let one = Group::of(1).trouble(Fault::Hangs, 0.2, 0.4);
                it.workload.endpoints.push(one);
            }),
            "workload.deadline"
        );
        assert_eq!(wrong(|it| it.workload.endpoints[0].speed = 0.0), "speed");
        assert_eq!(wrong(|it| it.workload.endpoints[0].slots = 0), "slots");
        assert_eq!(
            wrong(|it| it.workload.counted = (0.5, 0.5)),
            "workload.counted"
        );
        assert_eq!(
            wrong(|it| {
                let phase = Phase {
                    from: 0.0,
                    load: 1.0,
                };
                it.workload.arrivals = vec![phase, phase];
            }),
            "workload.arrivals"
        );
    }
}
