//! Targets as they are written down.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::{Target, TargetState};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    #[serde(deserialize_with = "said")]
    address: Arc<str>,
    #[serde(
        default,
        deserialize_with = "maybe_said",
        skip_serializing_if = "Option::is_none"
    )]
    name: Option<Arc<str>>,
    #[serde(
        default,
        deserialize_with = "positive",
        skip_serializing_if = "Option::is_none"
    )]
    weight: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_in_flight: Option<NonZeroU32>,
    #[serde(default)]
    state: TargetState,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<Arc<str>, Arc<str>>,
}

impl From<Entry> for Target {
    fn from(entry: Entry) -> Self {
        Self {
            name: entry.name.unwrap_or_else(|| entry.address.clone()),
            address: entry.address,
            weight: entry.weight,
            zone: entry.zone,
            priority: entry.priority,
            max_in_flight: entry.max_in_flight.map(NonZeroU32::get),
            state: entry.state,
            labels: entry.labels,
        }
    }
}

impl From<Target> for Entry {
    fn from(target: Target) -> Self {
        Self {
            name: (target.name != target.address).then_some(target.name),
            address: target.address,
            weight: target.weight,
            zone: target.zone,
            priority: target.priority,
            max_in_flight: target.max_in_flight.and_then(NonZeroU32::new),
            state: target.state,
            labels: target.labels,
        }
    }
}

fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    let text = Arc::<str>::deserialize(deserializer)?;
    if text.trim().is_empty() {
        return Err(Error::custom("it is empty"));
    }
    Ok(text)
}

fn maybe_said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<str>>, D::Error> {
    said(deserializer).map(Some)
}

fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let number = f64::deserialize(deserializer)?;
    if number.is_finite() && number > 0.0 {
        Ok(Some(number))
    } else {
        Err(Error::custom("it is not a positive number"))
    }
}

/// A list as a file holds it. `T` says where in the file a target stands, if anything does.
#[cfg(feature = "file")]
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List<T> {
    pub(super) targets: T,
}

/// Targets of which each has its own name, else the error stands where the second one does.
#[cfg(feature = "file")]
pub(super) struct Distinct(pub(super) Vec<Target>);

#[cfg(feature = "file")]
impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Targets;

        impl<'de> serde::de::Visitor<'de> for Targets {
            type Value = Distinct;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of targets")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut all: A,
            ) -> Result<Distinct, A::Error> {
                let mut names = Names::default();
                let mut targets = Vec::new();
                while let Some(target) = all.next_element::<Target>()? {
                    names.add(&target).map_err(Error::custom)?;
                    targets.push(target);
                }
                Ok(Distinct(targets))
            }
        }

        deserializer.deserialize_seq(Targets)
    }
}

/// The names of a list so far.
#[cfg(feature = "file")]
#[derive(Default)]
pub(super) struct Names(std::collections::HashSet<Arc<str>>);

#[cfg(feature = "file")]
impl Names {
    pub(super) fn add(&mut self, target: &Target) -> Result<(), String> {
        if self.0.insert(Arc::clone(&target.name)) {
            return Ok(());
        }
        Err(format!("the name {:?} stands twice", target.name))
    }
}
