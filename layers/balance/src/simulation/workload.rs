//! What a workload is: who asks how much, of which endpoints, and what becomes of these meanwhile.

use std::borrow::Cow;

/// Requests of one kind, and the endpoints that they go to.
///
/// Times are seconds, and moments are parts of the run: 0 is its beginning, 1 its end.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "simulation",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct Workload {
    /// What it is called.
    pub name: Cow<'static, str>,
    /// How much the sizes of requests differ.
    pub size: Size,
    /// How long the mean request takes at speed 1.
    pub mean: f64,
    /// The endpoints.
    pub endpoints: Vec<Group>,
    /// How many requests there are at what time, relative to the load of the scenario.
    pub arrivals: Vec<Phase>,
    /// After so long the caller gives up, which is an error. The endpoint works on all the same.
    pub deadline: Option<f64>,
    /// What is measured.
    pub score: Score,
    /// The first data come when this part of a mean request is done; with the end, unless it says so.
    pub first_data: Option<f64>,
    /// Requests that come between these moments are counted.
    pub counted: (f64, f64),
}

impl Default for Workload {
    /// Ten endpoints of four slots, where work takes a second on average, exponentially distributed.
    fn default() -> Self {
        Self {
            name: "unnamed".into(),
            size: Size::Exponential,
            mean: 1.0,
            endpoints: vec![Group::of(10)],
            arrivals: Vec::new(),
            deadline: None,
            score: Score::Answer,
            first_data: None,
            counted: (0.1, 1.0),
        }
    }
}

/// How much the sizes of requests differ.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(
    feature = "simulation",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case", deny_unknown_fields)
)]
#[non_exhaustive]
pub enum Size {
    /// Not at all.
    Constant,
    /// Exponentially distributed.
    Exponential,
    /// This part of the requests is so many times as large as the others.
    Bimodal {
        /// Between 0 and 1.
        share: f64,
        /// How many times.
        factor: f64,
    },
    /// The logarithm is normally distributed.
    Lognormal {
        /// The standard deviation of the logarithm.
        sigma: f64,
    },
}

/// What is measured of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "simulation",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Score {
    /// The time to the end of the answer.
    Answer,
    /// The time to the first data, which is what the length of an answer does not hide.
    FirstData,
}

/// Endpoints that are alike.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "simulation",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct Group {
    /// How many.
    pub count: usize,
    /// Requests that each works on at the same time; the others wait in line.
    pub slots: u32,
    /// How fast each slot is.
    pub speed: f64,
    /// For so many seconds after it came it is as fast as `cold_speed` says.
    pub cold: f64,
    /// Relative to `speed`.
    pub cold_speed: f64,
    /// What befalls them.
    pub troubles: Vec<Trouble>,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            count: 1,
            slots: 4,
            speed: 1.0,
            cold: 0.0,
            cold_speed: 0.5,
            troubles: Vec::new(),
        }
    }
}

impl Group {
    /// So many endpoints of speed 1 and four slots.
    pub fn of(count: usize) -> Self {
        Self {
            count,
            ..Self::default()
        }
    }

    /// Their speed.
    #[must_use]
    pub fn speed(mut self, speed: f64) -> Self {
        self.speed = speed;
        self
    }

    /// How many requests each works on at the same time.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// What befalls them from one moment of the run to another.
    #[must_use]
    pub fn trouble(mut self, fault: Fault, from: f64, to: f64) -> Self {
        self.troubles.push(Trouble { fault, from, to });
        self
    }

    /// How slow each is, relative to its speed, for how many seconds after it came.
    #[must_use]
    pub fn cold(mut self, seconds: f64, speed: f64) -> Self {
        (self.cold, self.cold_speed) = (seconds, speed);
        self
    }
}

/// What befalls endpoints, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(
    feature = "simulation",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct Trouble {
    /// What.
    pub fault: Fault,
    /// Since this moment of the run.
    #[cfg_attr(feature = "simulation", serde(default))]
    pub from: f64,
    /// Until this one.
    #[cfg_attr(feature = "simulation", serde(default = "end"))]
    pub to: f64,
}

#[cfg(feature = "simulation")]
fn end() -> f64 {
    1.0
}

/// What may befall an endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(
    feature = "simulation",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case", deny_unknown_fields)
)]
#[non_exhaustive]
pub enum Fault {
    /// It is so fast, relative to its speed.
    Slow {
        /// Above zero.
        speed: f64,
    },
    /// It goes to and fro between its speed and another, each for an exponentially distributed time.
    Flips {
        /// The other speed, relative to its own.
        speed: f64,
        /// How many seconds it is as fast as it should be, on average.
        fast: f64,
        /// How many seconds it is not.
        slow: f64,
    },
    /// It fails this part of its requests after a millisecond.
    Fails {
        /// Between 0 and 1.
        share: f64,
    },
    /// It takes requests and never answers.
    Hangs,
    /// It answers with 429 after a millisecond.
    Overloaded {
        /// And wants to be left alone for so many seconds.
        retry_after: f64,
    },
    /// It has left the set. What it had is finished.
    Absent,
}

/// From a moment of the run on, until the next phase.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(
    feature = "simulation",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct Phase {
    /// The moment.
    pub from: f64,
    /// The load, relative to that of the scenario.
    pub load: f64,
}

impl Group {
    /// How much each can do at a moment, relative to an endpoint of one slot and speed 1.
    fn capacity(&self, moment: f64) -> f64 {
        let now = |trouble: &&Trouble| trouble.from <= moment && moment < trouble.to;
        let troubles = self.troubles.iter().filter(now);
        let whole = self.speed * f64::from(self.slots);
        troubles.fold(whole, |left, trouble| match trouble.fault {
            Fault::Slow { speed } => left * speed,
            Fault::Flips { speed, fast, slow } => {
                left * (fast + slow * speed) / (fast + slow).max(f64::MIN_POSITIVE)
            }
            Fault::Fails { share } if share <= 0.0 => left,
            Fault::Fails { .. } | Fault::Hangs | Fault::Overloaded { .. } | Fault::Absent => 0.0,
        })
    }
}

impl Workload {
    /// Requests per second at load 1: what all endpoints can do when they can do the least.
    pub(super) fn capacity(&self) -> f64 {
        let troubles = self.endpoints.iter().flat_map(|group| &group.troubles);
        let moments = troubles.flat_map(|trouble| [trouble.from, trouble.to]);
        let all = moments.filter(|&moment| moment < 1.0).chain([0.0]);
        let at = |moment| {
            let groups = self.endpoints.iter();
            groups
                .map(|group| group.count as f64 * group.capacity(moment))
                .sum::<f64>()
        };
        all.map(at).fold(f64::INFINITY, f64::min) / self.mean
    }

    /// Of what all endpoints can do at a moment, the part of each.
    pub(super) fn fair_shares(&self, moment: f64) -> Vec<f64> {
        let groups = self.endpoints.iter();
        let each = groups
            .flat_map(|group| std::iter::repeat_n(group.capacity(moment), group.count))
            .collect::<Vec<_>>();
        let all = each.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        each.into_iter().map(|one| one / all).collect()
    }
}
