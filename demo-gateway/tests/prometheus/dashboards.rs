//! The dashboards, as models that Grafana takes.

use std::{collections::BTreeSet, fs};

use serde::Deserialize;
use serde_json::Value;

use crate::servers::deploy;

/// What is checked of a dashboard; the rest is how it looks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Dashboard {
    pub(crate) uid: String,
    pub(crate) title: String,
    description: String,
    schema_version: u32,
    pub(crate) panels: Vec<Panel>,
    templating: Templating,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Panel {
    id: u32,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) title: String,
    #[serde(default)]
    description: String,
    grid_pos: GridPos,
    datasource: Option<Source>,
    #[serde(default)]
    pub(crate) targets: Vec<Target>,
    field_config: Option<Fields>,
}

#[derive(Debug, Deserialize)]
struct GridPos {
    x: u32,
    y: u32,
    w: u32,
    h: u32,
}

impl GridPos {
    fn overlaps(&self, other: &Self) -> bool {
        let apart = self.x + self.w <= other.x
            || other.x + other.w <= self.x
            || self.y + self.h <= other.y
            || other.y + other.h <= self.y;
        !apart
    }
}

#[derive(Debug, PartialEq, Deserialize)]
struct Source {
    #[serde(rename = "type")]
    kind: String,
    uid: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Target {
    pub(crate) expr: String,
    ref_id: String,
    datasource: Source,
}

#[derive(Debug, Deserialize)]
struct Fields {
    defaults: Defaults,
}

#[derive(Debug, Deserialize)]
struct Defaults {
    unit: String,
    thresholds: Thresholds,
}

#[derive(Debug, Deserialize)]
struct Thresholds {
    mode: String,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    color: String,
    value: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Templating {
    list: Vec<Variable>,
}

#[derive(Debug, Deserialize)]
struct Variable {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    query: Value,
}

pub(crate) fn dashboards() -> Vec<Dashboard> {
    let entries = fs::read_dir(deploy().join("grafana/dashboards")).unwrap();
    let mut found: Vec<Dashboard> = entries
        .map(|entry| {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            serde_json::from_str(&text).unwrap()
        })
        .collect();
    found.sort_by(|one, other| one.uid.cmp(&other.uid));
    found
}

#[test]
fn there_are_four_and_each_is_called_by_its_file() {
    let found = dashboards();
    let uids: Vec<_> = found.iter().map(|it| &*it.uid).collect();
    assert_eq!(
        uids,
        [
            "palisade-backends",
            "palisade-limits",
            "palisade-overview",
            "palisade-slo"
        ]
    );
    for uid in uids {
        let name = uid.strip_prefix("palisade-").unwrap();
        let file = deploy().join(format!("grafana/dashboards/{name}.json"));
        let text = fs::read_to_string(file).unwrap();
        assert!(text.contains(&format!("\"uid\": \"{uid}\"")), "{uid}");
        // Whoever imports it keeps what is there.
        assert!(!text.contains("\n  \"id\":"), "{uid}");
    }
}

#[test]
fn every_panel_has_its_place_says_what_it_shows_and_asks_the_chosen_source() {
    let chosen = Source {
        kind: "prometheus".into(),
        uid: "${DS_PROMETHEUS}".into(),
    };
    for board in dashboards() {
        assert!(board.schema_version >= 39, "{}", board.title);
        assert!(!board.description.is_empty(), "{}", board.title);
        let variables = board.templating.list.iter();
        let variables: Vec<_> = variables.map(|it| (&*it.name, &*it.kind)).collect();
        assert_eq!(
            variables,
            [("DS_PROMETHEUS", "datasource"), ("job", "query")]
        );
        assert_eq!(board.templating.list[0].query, "prometheus");
        let mut ids = BTreeSet::new();
        for (at, panel) in board.panels.iter().enumerate() {
            let name = format!("{}: {}", board.title, panel.title);
            assert!(ids.insert(panel.id), "{name}: another has its id");
            let place = &panel.grid_pos;
            assert!(
                place.w > 0 && place.h > 0 && place.x + place.w <= 24,
                "{name}"
            );
            for other in &board.panels[..at] {
                let other_name = &other.title;
                assert!(
                    !place.overlaps(&other.grid_pos),
                    "{name} lies over {other_name}"
                );
            }
            if panel.kind == "row" {
                continue;
            }
            assert!(!panel.description.is_empty(), "{name}: no description");
            assert_eq!(panel.datasource.as_ref(), Some(&chosen), "{name}");
            let defaults = &panel.field_config.as_ref().expect(&name).defaults;
            assert!(!defaults.unit.is_empty(), "{name}: no unit");
            assert_eq!(defaults.thresholds.mode, "absolute", "{name}");
            let steps = &defaults.thresholds.steps;
            assert_eq!(steps[0].value, None, "{name}");
            assert!(steps.iter().all(|step| !step.color.is_empty()), "{name}");
            let values: Vec<_> = steps.iter().map(|step| step.value).collect();
            assert!(
                values.is_sorted_by(|one, other| one < other),
                "{name}: {values:?}"
            );
            assert!(!panel.targets.is_empty(), "{name}: asks nothing");
            let mut refs = BTreeSet::new();
            for target in &panel.targets {
                assert!(refs.insert(&target.ref_id), "{name}: {}", target.ref_id);
                assert!(!target.expr.is_empty(), "{name}");
                assert_eq!(target.datasource, chosen, "{name}");
            }
        }
    }
}

#[test]
fn provisioning_names_the_source_and_where_the_dashboards_are() {
    let read = |name: &str| {
        let file = deploy().join(format!("grafana/provisioning/{name}/palisade.yml"));
        fs::read_to_string(file).unwrap()
    };
    let sources = read("datasources");
    for line in [
        "type: prometheus",
        "uid: palisade-prometheus",
        "isDefault: true",
    ] {
        assert!(sources.contains(line), "{line}: {sources}");
    }
    let boards = read("dashboards");
    for line in ["type: file", "path: /var/lib/grafana/dashboards/palisade"] {
        assert!(boards.contains(line), "{line}: {boards}");
    }
}
