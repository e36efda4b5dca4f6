//! Every file passes the checks of the program that reads it, and every alert has tests and a section in the manual.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use demo_gateway::{Config, alerts::rules::rules};

use crate::servers::{Folder, Server, deploy, run};

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(deploy().join(folder)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder}");
    files
}

#[test]
fn the_rules_of_the_objective_are_those_that_the_program_prints() {
    let file = deploy().join("prometheus/rules/slo.yml");
    let committed = fs::read_to_string(file).unwrap();
    let hint = "demo-gateway rules > demo-gateway/deploy/prometheus/rules/slo.yml";
    assert_eq!(committed, rules(&Config::default()).unwrap(), "{hint}");
}

#[test]
fn prometheus_and_alertmanager_accept_their_files() {
    let path = |text: &'static str| Path::new(text);
    let config = deploy().join("prometheus/prometheus.yml");
    run("promtool", &[path("check"), path("config"), &config]);
    for file in files("prometheus/rules") {
        let told = run(
            "promtool",
            &[path("check"), path("rules"), path("--lint-fatal"), &file],
        );
        assert!(told.contains("SUCCESS"), "{told}");
    }
    let config = deploy().join("alertmanager/alertmanager.yml");
    run("amtool", &[path("check-config"), &config]);
}

#[test]
fn rules_for_other_objectives_and_periods_are_accepted_too() {
    let folder = Folder::new();
    for (period, latency, success) in [(8640, 700, 0.9), (5_184_000, 3_600_000, 0.9999)] {
        let mut config = Config::default();
        config.objective.period = std::time::Duration::from_secs(period);
        config.objective.latency = std::time::Duration::from_millis(latency);
        config.objective.success = success;
        let file = folder.write("slo.yml", &rules(&config).unwrap());
        let told = run(
            "promtool",
            &[
                Path::new("check"),
                Path::new("rules"),
                Path::new("--lint-fatal"),
                &file,
            ],
        );
        assert!(told.contains("SUCCESS"), "{told}");
    }
}

#[test]
fn alerts_fire_and_clear_as_their_tests_say() {
    for file in files("prometheus/tests") {
        run("promtool", &[Path::new("test"), Path::new("rules"), &file]);
    }
}

/// Whether each look of a test at an alert finds it firing, in their order.
type Looks = BTreeMap<String, Vec<bool>>;

/// By test.
fn looks(text: &str) -> Vec<Looks> {
    let mut tests: Vec<Looks> = Vec::new();
    let mut last: Option<String> = None;
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("- name:") {
            tests.push(Looks::new());
        } else if let Some((_, name)) = line.split_once("alertname: ") {
            let name = name.trim_end_matches('}').to_owned();
            let looks = tests.last_mut().unwrap();
            looks.entry(name.clone()).or_default().push(false);
            last = Some(name);
        } else if line.starts_with("exp_alerts:") {
            let looks = tests.last_mut().unwrap();
            let looks = looks.get_mut(last.as_ref().unwrap()).unwrap();
            *looks.last_mut().unwrap() = true;
        }
    }
    tests
}

#[tokio::test]
async fn every_alert_is_tested_to_fire_to_clear_and_not_to_fire_and_says_what_to_do() {
    let folder = Folder::new();
    let config = deploy().join("prometheus/prometheus.yml");
    let server = Server::prometheus(&config, &folder.0).await;
    let texts = files("prometheus/tests").into_iter();
    let texts: Vec<_> = texts
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let tests: Vec<_> = texts.iter().flat_map(|text| looks(text)).collect();
    let manual = fs::read_to_string(deploy().join("README.md")).unwrap();
    let sections: BTreeSet<_> = manual
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    let rules = server.rules().await;
    let alerts: Vec<_> = rules.iter().filter(|it| it["type"] == "alerting").collect();
    assert!(alerts.len() > 15, "{rules:#?}");
    let mut names = BTreeSet::new();
    for alert in alerts {
        let name = alert["name"].as_str().unwrap();
        names.insert(name);
        let goes = |pair: [bool; 2]| {
            let tests = tests.iter().filter_map(|test| test.get(name));
            let mut tests = tests.map(Vec::as_slice);
            tests.any(|looks| looks.windows(2).any(|looks| looks == pair))
        };
        assert!(
            goes([false, true]),
            "{name}: no test from silence to firing"
        );
        assert!(
            goes([true, false]),
            "{name}: no test from firing to silence"
        );
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(matches!(severity, "page" | "ticket"), "{name}: {severity}");
        let annotation = |name: &str| alert["annotations"][name].as_str().unwrap();
        assert!(!annotation("summary").is_empty() && !annotation("description").is_empty());
        let anchor = format!("deploy/README.md#{}", name.to_lowercase());
        assert_eq!(annotation("runbook"), anchor);
        assert!(
            sections.contains(name),
            "no section `### {name}` in deploy/README.md"
        );
    }
    // The manual is about nothing else.
    assert_eq!(sections, names);
}
