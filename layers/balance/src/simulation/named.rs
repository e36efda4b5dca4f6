//! The workloads that have a name.

use super::workload::{Fault, Group, Phase, Score, Size, Workload};

/// One tenth of the requests is eleven times as large as the others: a few pages among many clicks.
const BIMODAL: Size = Size::Bimodal {
    share: 0.1,
    factor: 11.0,
};
/// Lengths of answers of language models spread about as much.
const LENGTHS: Size = Size::Lognormal { sigma: 1.2 };
const MIDDLE: (f64, f64) = (1.0 / 3.0, 2.0 / 3.0);
const DEADLINE: f64 = 5.0;

impl Workload {
    /// The names of all that [`Workload::named`] knows.
    pub const NAMES: [&'static str; 21] = [
        "exponential",
        "bimodal",
        "lognormal",
        "hetero",
        "hetero16",
        "slow1",
        "slow1-middle",
        "blackhole",
        "blackhole-middle",
        "hang",
        "hang-middle",
        "half",
        "retry-after",
        "antagonist",
        "llm",
        "llm-uneven",
        "ramp",
        "cold-start",
        "scale-up",
        "rolling-restart",
        "spike",
    ];

    /// Each with its name.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::NAMES.into_iter().filter_map(Self::named)
    }

    /// The one of this name.
    ///
    /// Ten endpoints of four slots, where requests take a second on average at full speed, unless it says otherwise.
    ///
    /// | name | what is special |
    /// |---|---|
    /// | `exponential` | nothing |
    /// | `bimodal` | a tenth of the requests is eleven times as large |
    /// | `lognormal` | sizes spread with sigma 1 |
    /// | `hetero` | two endpoints at 0.4 of the speed |
    /// | `hetero16` | four of sixteen at a quarter of the speed |
    /// | `slow1` | one at a tenth of the speed |
    /// | `slow1-middle` | the same, in the middle third of the run |
    /// | `blackhole` | one fails after a millisecond |
    /// | `blackhole-middle` | the same, in the middle third |
    /// | `hang` | one never answers; callers give up after five seconds |
    /// | `hang-middle` | the same, in the middle third |
    /// | `half` | one fails half of its requests after a millisecond |
    /// | `retry-after` | one answers 429 with a Retry-After of thirty seconds |
    /// | `antagonist` | each goes down to 0.3 of its speed for ten seconds, every forty |
    /// | `llm` | eight slots, answers of ten seconds that spread with sigma 1.2; measured to the first data |
    /// | `llm-uneven` | the same, with speeds 1, 0.6 and 0.3 |
    /// | `ramp` | load from 0.75 to 1.74 of what half of the endpoints can do; the others can do 2.6 times as much |
    /// | `cold-start` | two at 0.4 of the speed, and only the first tenth of the run is counted |
    /// | `scale-up` | a third of the way, four endpoints join eight, at half of their speed for twenty seconds |
    /// | `rolling-restart` | each in turn leaves the set and comes back, at half of its speed for ten seconds |
    /// | `spike` | two and a half times what fits, shortly; only what comes long after is counted |
    pub fn named(name: &str) -> Option<Self> {
        let name = Self::NAMES.into_iter().find(|known| *known == name)?;
        let workload = match name {
            "bimodal" => sized(BIMODAL),
            "lognormal" => sized(Size::Lognormal { sigma: 1.0 }),
            "hetero" => on([Group::of(2).speed(0.4), Group::of(8)]),
            "hetero16" => on([Group::of(4).speed(0.25), Group::of(12)]),
            "slow1" => odd(Fault::Slow { speed: 0.1 }, (0.0, 1.0)),
            "slow1-middle" => odd(Fault::Slow { speed: 0.1 }, MIDDLE),
            "blackhole" => odd(Fault::Fails { share: 1.0 }, (0.0, 1.0)),
            "blackhole-middle" => odd(Fault::Fails { share: 1.0 }, MIDDLE),
            "hang" => impatient(odd(Fault::Hangs, (0.0, 1.0))),
            "hang-middle" => impatient(odd(Fault::Hangs, MIDDLE)),
            "half" => odd(Fault::Fails { share: 0.5 }, (0.0, 1.0)),
            "retry-after" => odd(Fault::Overloaded { retry_after: 30.0 }, (0.0, 1.0)),
            "antagonist" => on([Group::of(10).trouble(
                Fault::Flips {
                    speed: 0.3,
                    fast: 30.0,
                    slow: 10.0,
                },
                0.0,
                1.0,
            )]),
            "llm" => llm([Group::of(10).slots(8)]),
            "llm-uneven" => llm([
                Group::of(2).slots(8).speed(0.3),
                Group::of(3).slots(8).speed(0.6),
                Group::of(5).slots(8),
            ]),
            "ramp" => ramp(),
            "cold-start" => Workload {
                counted: (0.0, 0.1),
                ..on([Group::of(2).speed(0.4), Group::of(8)])
            },
            "scale-up" => on([
                Group::of(4)
                    .cold(20.0, 0.5)
                    .trouble(Fault::Absent, 0.0, MIDDLE.0),
                Group::of(8),
            ]),
            "rolling-restart" => on((0..10).map(|at| {
                let from = 0.15 + 0.08 * f64::from(at);
                let away = Group::of(1).trouble(Fault::Absent, from, from + 0.04);
                away.cold(10.0, 0.5)
            })),
            "spike" => spike(),
            _ => Workload::default(),
        };
        Some(Workload {
            name: name.into(),
            ..workload
        })
    }
}

fn sized(size: Size) -> Workload {
    Workload {
        size,
        ..Workload::default()
    }
}

fn on(groups: impl IntoIterator<Item = Group>) -> Workload {
    Workload {
        endpoints: groups.into_iter().collect(),
        ..Workload::default()
    }
}

/// One endpoint of ten is the odd one.
fn odd(fault: Fault, (from, to): (f64, f64)) -> Workload {
    on([Group::of(1).trouble(fault, from, to), Group::of(9)])
}

fn impatient(workload: Workload) -> Workload {
    Workload {
        deadline: Some(DEADLINE),
        ..workload
    }
}

fn llm(groups: impl IntoIterator<Item = Group>) -> Workload {
    Workload {
        size: LENGTHS,
        mean: 10.0,
        score: Score::FirstData,
        // A prompt is read some fifty times as fast as its answer is written.
        first_data: Some(0.02),
        ..on(groups)
    }
}

/// As in the paper on Prequal: neighbours leave half of the endpoints no more than was promised, 1, and load climbs
/// from 0.75 to 1.74 of the promise in steps of a ninth. With the load 0.9; all other loads scale it.
fn ramp() -> Workload {
    let groups = [Group::of(5), Group::of(5).speed(2.6)];
    let steps = 9;
    let arrivals = (0..steps).map(|step| Phase {
        from: f64::from(step) / f64::from(steps),
        // Ten were promised, eighteen can be done.
        load: 0.75 * (10.0 / 9.0f64).powi(step) * 10.0 / 18.0 / 0.9,
    });
    impatient(Workload {
        arrivals: arrivals.collect(),
        ..on(groups)
    })
}

/// At the load 0.9: 0.7 of what can be done, then 2.5 times what can be done, then 0.7 again.
fn spike() -> Workload {
    let phase = |from, load| Phase {
        from,
        load: load / 0.9,
    };
    impatient(Workload {
        arrivals: vec![phase(0.0, 0.7), phase(0.3, 2.5), phase(0.33, 0.7)],
        counted: (0.6, 1.0),
        ..Workload::default()
    })
}
