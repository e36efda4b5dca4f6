use std::{collections::BTreeMap, sync::Arc};

/// What a list says of one endpoint.
///
/// ```
/// use palisade_balance::discover::Target;
///
/// let target = Target::new("http://10.0.0.1:8080")
///     .named("gpu-7")
///     .weight(2.0)
///     .label("model", "large");
/// assert_eq!((&*target.name, &*target.address), ("gpu-7", "http://10.0.0.1:8080"));
/// assert_eq!(target.labels["model"].as_ref(), "large");
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "serde",
    serde(from = "super::serial::Entry", into = "super::serial::Entry")
)]
#[non_exhaustive]
pub struct Target {
    /// Tells it apart from the others of the set; its address unless said otherwise.
    pub name: Arc<str>,
    /// Where it is: `host:port` or a URL, as whoever makes the clients expects.
    pub address: Arc<str>,
    /// Its share relative to the others; `None` leaves it as the endpoint was made.
    pub weight: Option<f64>,
    /// Where it stands; `None` leaves it as the endpoint was made.
    pub zone: Option<Arc<str>>,
    /// Lower ones come first; `None` leaves it as the endpoint was made.
    pub priority: Option<u32>,
    /// Never has more requests in flight; `None` leaves it as the endpoint was made.
    pub max_in_flight: Option<u32>,
    /// Whether it takes new requests.
    pub state: TargetState,
    /// What else is known, for whoever makes the clients.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

/// Whether an endpoint takes new requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum TargetState {
    /// It does.
    #[default]
    Serving,
    /// It only finishes what it has. One that is not in the set does not come into it.
    Draining,
}

impl Target {
    /// At this address, which is its name, too.
    pub fn new(address: impl Into<Arc<str>>) -> Self {
        let address = address.into();
        Self {
            name: address.clone(),
            address,
            weight: None,
            zone: None,
            priority: None,
            max_in_flight: None,
            state: TargetState::default(),
            labels: BTreeMap::new(),
        }
    }

    /// Told apart by this name.
    #[must_use]
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// With this share relative to the others.
    #[must_use]
    pub fn weight(mut self, weight: f64) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Standing there.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Used when those of lower numbers do not suffice.
    #[must_use]
    pub fn priority(mut self, priority: u32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Never with more requests in flight.
    #[must_use]
    pub fn max_in_flight(mut self, most: u32) -> Self {
        self.max_in_flight = Some(most);
        self
    }

    /// Taking new requests or not.
    #[must_use]
    pub fn state(mut self, state: TargetState) -> Self {
        self.state = state;
        self
    }

    /// With something else that is known of it.
    #[must_use]
    pub fn label(mut self, key: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Whether a client of the one is a client of the other.
    pub(super) fn is_reached_like(&self, other: &Self) -> bool {
        self.address == other.address && self.labels == other.labels
    }
}
