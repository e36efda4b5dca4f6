//! `demo-gateway simulate`: what balancing makes of endpoints that are slow, fail or hang, in virtual time.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use clap::Args;
use palisade::balance::{
    Strategy,
    simulation::{FIGURE_SEEDS, Policy, Report, Scenario, Workload, run, svg, table},
};
use serde::Serialize;

/// With `--all`, unless it is said.
const GATEWAYS: [usize; 4] = [1, 8, 20, 50];
/// With `--all`, unless it is said.
const LOADS: [f64; 2] = [0.7, 0.9];
/// Beside the oracle, unless it is said.
const POLICIES: [Policy; 8] = [
    Policy::Asks(Strategy::Adaptive),
    Policy::Ours(Strategy::Adaptive),
    Policy::Ours(Strategy::Prequal),
    Policy::Ours(Strategy::LeastConnections),
    Policy::PeakEwma,
    Policy::InFlight,
    Policy::Probing,
    Policy::Ours(Strategy::RoundRobin),
];

/// The options of `simulate`.
#[derive(Clone, Debug, Default, Args)]
#[command(after_long_help = HELP)]
pub struct Simulate {
    /// The name of a workload, or a file that describes a scenario as TOML [default: slow1].
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "all")]
    pub scenario: Option<String>,
    /// Every workload, with 1, 8, 20 and 50 gateways, loads 0.7 and 0.9, and five seeds, as a table in Markdown.
    #[arg(long, conflicts_with = "svg")]
    pub all: bool,
    /// A policy beside the oracle, may be said more than once [default: ours and those of others].
    #[arg(long = "policy", value_name = "NAME")]
    pub policies: Vec<Policy>,
    /// Where chance begins.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How many gateways there are that know nothing of each other [default: 1].
    #[arg(long, value_name = "N")]
    pub gateways: Option<usize>,
    /// How much is asked for, relative to what the endpoints can do [default: 0.9].
    #[arg(long, value_name = "X")]
    pub load: Option<f64>,
    /// How many requests come [default: 20000].
    #[arg(long, value_name = "N")]
    pub requests: Option<usize>,
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Writes a picture, too.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

const HELP: &str = "\
Workloads: exponential, bimodal, lognormal, hetero, hetero16, slow1, slow1-middle, blackhole, blackhole-middle, hang,
hang-middle, half, retry-after, antagonist, llm, llm-uneven, ramp, cold-start, scale-up, rolling-restart, spike.

A file says what differs from ten endpoints of four slots where requests take a second on average. Times are seconds,
moments are parts of the run:

  gateways = 8
  [workload]
  size = { bimodal = { share = 0.1, factor = 11 } }
  deadline = 5
  [[workload.endpoints]]
  count = 9
  [[workload.endpoints]]
  speed = 0.5
  troubles = [{ fault = { fails = { share = 0.5 } }, from = 0.3, to = 0.6 }, { fault = \"hangs\", from = 0.8 }]";

/// Simulates, and says what is to be printed.
///
/// # Errors
///
/// In words: a scenario that does not exist, cannot be read or makes no sense, a picture that cannot be written.
pub fn simulate(options: &Simulate) -> Result<String, String> {
    if options.all {
        let rows = rows(options)?;
        return Ok(if options.json {
            json(&rows)? + "\n"
        } else {
            markdown(&rows)
        });
    }
    let scenario = scenario(options)?;
    let policies = with_oracle(&options.policies);
    let runs = policies.iter().map(|&policy| (scenario.clone(), policy));
    let reports = run_all(runs.collect())?;
    if let Some(path) = &options.svg {
        let told = |error| format!("{}: {error}", path.display());
        fs::write(path, svg(&reports)).map_err(told)?;
    }
    if options.json {
        return Ok(json(&reports)? + "\n");
    }
    Ok(table(&reports))
}

fn json(what: &impl Serialize) -> Result<String, String> {
    serde_json::to_string_pretty(what).map_err(|error| error.to_string())
}

fn with_oracle(policies: &[Policy]) -> Vec<Policy> {
    let chosen = if policies.is_empty() {
        &POLICIES[..]
    } else {
        policies
    };
    let others = chosen.iter().filter(|&&policy| policy != Policy::Queues);
    [Policy::Queues].iter().chain(others).copied().collect()
}

fn scenario(options: &Simulate) -> Result<Scenario, String> {
    let name = options.scenario.as_deref().unwrap_or("slow1");
    let mut scenario = match Workload::named(name) {
        Some(workload) => Scenario::of(workload),
        None => read(Path::new(name))?,
    };
    set(&mut scenario.gateways, options.gateways);
    set(&mut scenario.load, options.load);
    set(&mut scenario.seed, options.seed);
    set(&mut scenario.requests, options.requests);
    Ok(scenario)
}

fn set<T>(value: &mut T, said: Option<T>) {
    if let Some(said) = said {
        *value = said;
    }
}

fn read(path: &Path) -> Result<Scenario, String> {
    let text = fs::read_to_string(path).map_err(|error| {
        let names = Workload::NAMES.join(", ");
        format!("{}: {error}; workloads are {names}", path.display())
    })?;
    let parsed: Result<Scenario, _> = toml::from_str(&text);
    let mut scenario = parsed.map_err(|error| format!("{}: {error}", path.display()))?;
    if scenario.workload.name == Workload::default().name
        && let Some(stem) = path.file_stem()
    {
        scenario.workload.name = stem.to_string_lossy().into_owned().into();
    }
    Ok(scenario)
}

/// In the order in which they were asked for, on all cores.
fn run_all(runs: Vec<(Scenario, Policy)>) -> Result<Vec<Report>, String> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((scenario, policy)) = runs.get(number) else {
                return;
            };
            let report = run(scenario, *policy).map_err(|error| error.to_string());
            let mut done = done.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            done.insert(number, report);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    let done = done.into_inner();
    let done = done.unwrap_or_else(|poisoned| poisoned.into_inner());
    done.into_values().collect()
}

/// One workload at one load with so many gateways: medians over seeds. Times are seconds.
#[derive(Debug, Serialize)]
struct Row {
    workload: String,
    gateways: usize,
    load: f64,
    /// Of the oracle.
    p99: f64,
    policies: Vec<Cell>,
}

#[derive(Debug, Serialize)]
struct Cell {
    policy: Policy,
    /// Relative to the oracle.
    p99: f64,
    p999: f64,
    /// Where an error counts as five seconds.
    p99_with_errors: f64,
    errors: f64,
    detected: Option<f64>,
    recovered: Option<f64>,
    probes: f64,
}

fn rows(options: &Simulate) -> Result<Vec<Row>, String> {
    let seeds = match options.seed {
        Some(seed) => (seed..seed.saturating_add(5)).collect(),
        None => FIGURE_SEEDS.to_vec(),
    };
    let policies = with_oracle(&options.policies);
    let all_gateways = options.gateways.map_or(GATEWAYS.to_vec(), |one| vec![one]);
    let loads = options.load.map_or(LOADS.to_vec(), |one| vec![one]);
    let mut rows = Vec::new();
    for workload in Workload::all() {
        eprintln!("{}", workload.name);
        for &load in &loads {
            for &gateways in &all_gateways {
                let mut scenario = Scenario::of(workload.clone()).load(load).gateways(gateways);
                set(&mut scenario.requests, options.requests);
                let runs = policies.iter().flat_map(|&policy| {
                    let seeds = seeds.iter();
                    seeds.map(move |&seed| (seed, policy))
                });
                let runs = runs.map(|(seed, policy)| (scenario.clone().seed(seed), policy));
                let reports = run_all(runs.collect())?;
                rows.extend(row(&scenario, &reports, seeds.len()));
            }
        }
    }
    Ok(rows)
}

/// Of reports by policy, the oracle first, and by seed.
fn row(scenario: &Scenario, reports: &[Report], seeds: usize) -> Option<Row> {
    let mut by_policy = reports.chunks(seeds);
    let oracle = by_policy.next()?;
    let cell = |reports: &[Report]| {
        let of = |one: fn(&Report) -> f64| median(reports.iter().map(one));
        let ratio = |one: fn(&Report) -> f64| {
            let both = reports.iter().zip(oracle);
            median(both.map(|(report, oracle)| one(report) / one(oracle).max(1e-9)))
        };
        let after = |one: fn(&Report) -> Option<f64>| {
            let known: Vec<_> = reports.iter().filter_map(one).collect();
            (known.len() * 2 > reports.len()).then(|| median(known.into_iter()))
        };
        Some(Cell {
            policy: reports.first()?.policy,
            p99: ratio(|report| report.latency.p99),
            p999: ratio(|report| report.latency.p999),
            p99_with_errors: ratio(|report| report.with_errors.p99),
            errors: of(Report::errors),
            detected: after(|report| report.detected),
            recovered: after(|report| report.recovered),
            probes: of(|report| report.probes),
        })
    };
    Some(Row {
        workload: scenario.workload.name.to_string(),
        gateways: scenario.gateways,
        load: scenario.load,
        p99: median(oracle.iter().map(|report| report.latency.p99)),
        policies: by_policy.filter_map(cell).collect(),
    })
}

fn median(all: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<_> = all.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn markdown(rows: &[Row]) -> String {
    let mut text = String::new();
    let Some(first) = rows.first() else {
        return text;
    };
    let names = first.policies.iter().map(|cell| cell.policy.to_string());
    let names: Vec<_> = names.collect();
    // A `String` takes everything.
    let _ = writeln!(
        text,
        "| workload | load | gateways | oracle, s | {} |\n|---|---|---|---|{}",
        names.join(" | "),
        "---|".repeat(names.len())
    );
    for row in rows {
        let cells: Vec<_> = row.policies.iter().map(Cell::text).collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.2} | {} |",
            row.workload,
            row.load,
            row.gateways,
            row.p99,
            cells.join(" | ")
        );
    }
    text
}

impl Cell {
    fn text(&self) -> String {
        let ratio = match self.p99 {
            ratio if ratio >= 9.95 => format!("{ratio:.0}"),
            ratio => format!("{ratio:.2}"),
        };
        if self.errors < 0.000_05 {
            return ratio;
        }
        format!("{ratio}, {:.2} %", self.errors * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scenario in the help.
    fn described() -> &'static str {
        let from = HELP.find("  gateways").unwrap();
        &HELP[from..]
    }

    fn file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("{name}-{}.toml", std::process::id()));
        fs::write(&path, text).unwrap();
        path
    }

    fn small(scenario: &str) -> Simulate {
        Simulate {
            scenario: Some(scenario.into()),
            policies: vec![Policy::Ours(Strategy::Adaptive)],
            requests: Some(1_000),
            ..Simulate::default()
        }
    }

    #[test]
    fn the_help_names_every_workload() {
        for name in Workload::NAMES {
            assert!(HELP.contains(name), "{name}");
        }
    }

    #[test]
    fn a_scenario_may_come_from_a_file_and_the_command_line_counts_more() {
        let path = file("mine", described());
        let name = path.to_str().unwrap();
        let read = scenario(&Simulate {
            seed: Some(7),
            ..small(name)
        });
        fs::remove_file(&path).unwrap();
        let read = read.unwrap();
        assert_eq!((read.gateways, read.seed, read.requests), (8, 7, 1_000));
        assert_eq!(read.load, Scenario::default().load);
        assert_eq!(read.workload.endpoints.len(), 2);
        assert_eq!(read.workload.endpoints[1].troubles.len(), 2);
        assert!(read.workload.name.starts_with("mine-"));
        assert_eq!(read.check(), Ok(()));
    }

    #[test]
    fn what_cannot_be_read_or_makes_no_sense_is_told() {
        let told = simulate(&small("no-such-thing")).unwrap_err();
        assert!(told.contains("workloads are exponential,"), "{told}");
        let path = file("wrong", "[workload]\nsizes = 1\n");
        let told = simulate(&small(path.to_str().unwrap())).unwrap_err();
        fs::remove_file(&path).unwrap();
        assert!(told.contains("line 2") && told.contains("sizes"), "{told}");
        let options = Simulate {
            load: Some(-1.0),
            ..small("hetero")
        };
        let told = simulate(&options).unwrap_err();
        assert!(told.starts_with("load: "), "{told}");
    }

    #[test]
    fn a_table_shows_the_oracle_and_what_was_asked_for() {
        let path = std::env::temp_dir().join(format!("picture-{}.svg", std::process::id()));
        let options = Simulate {
            svg: Some(path.clone()),
            ..small("blackhole-middle")
        };
        let text = simulate(&options).unwrap();
        let picture = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(
            text.contains("\noracle ") && text.contains("\nadaptive "),
            "{text}"
        );
        assert!(!text.contains("probing"), "{text}");
        assert!(picture.contains("blackhole-middle"), "{picture}");
    }

    #[test]
    fn reports_are_told_as_json_and_the_same_twice() {
        let options = Simulate {
            json: true,
            ..small("hang")
        };
        let text = simulate(&options).unwrap();
        assert_eq!(text, simulate(&options).unwrap());
        let reports: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(reports[0]["policy"], "oracle");
        assert_eq!(reports[1]["policy"], "adaptive");
        let report = &reports[1];
        let count = |fate: &str| report[fate].as_u64().unwrap();
        let fates = ["answered", "failed", "given_up", "unplaced"];
        assert_eq!(fates.map(count).iter().sum::<u64>(), count("requests"));
        assert!(report["latency"]["p99"].as_f64().unwrap() > 0.0);
    }

    #[test]
    fn all_of_them_become_one_table_with_medians() {
        let options = Simulate {
            all: true,
            policies: vec![Policy::Ours(Strategy::Adaptive), Policy::InFlight],
            gateways: Some(2),
            load: Some(0.9),
            requests: Some(500),
            ..Simulate::default()
        };
        let text = simulate(&options).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].ends_with("| adaptive | p2c_in_flight |"), "{text}");
        assert_eq!(lines.len(), 2 + Workload::NAMES.len());
        let columns = lines[2].matches('|').count();
        assert!(
            lines
                .iter()
                .all(|line| line.matches('|').count() == columns)
        );
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
    }
}
