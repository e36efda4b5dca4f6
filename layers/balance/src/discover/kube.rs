//! The EndpointSlices of a Kubernetes service, watched.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use ::kube::{
    Api, Client, ResourceExt,
    runtime::watcher::{self, Event, watcher},
};
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::discovery::v1::{
    Endpoint as Listed, EndpointConditions, EndpointPort, EndpointSlice,
};
use palisade_core::BoxError;

use super::{Empty, Source, Target, TargetState};

/// The label by which the slices of a service are found.
const OF_SERVICE: &str = "kubernetes.io/service-name";
/// What the API server says when the changes since our last state are forgotten: list again, nothing is wrong.
const GONE: u16 = 410;

/// The endpoints of a Kubernetes service, from its EndpointSlices: listed once and then watched.
///
/// A ready endpoint serves. One that terminates drains; but if none is ready, those that terminate and still serve
/// are used, as kube-proxy does. All others are not there. Targets are named by their pod, else by their address, and
/// have its zone and the labels `pod` and `node`. A pod with several addresses counts once, by IPv4 if it can.
///
/// Needs the right to list and watch `endpointslices` in `discovery.k8s.io`. When the connection is lost, the watch
/// goes on where it was, or with a new list; until then the last list stays. The `Client` is that of kube 4.
///
/// ```no_run
/// use palisade_balance::{Endpoint, Endpoints, discover::{Target, kube::EndpointSlices}};
///
/// # async fn start() -> Result<(), kube::Error> {
/// # let endpoints = Endpoints::<String>::default();
/// let client = kube::Client::try_default().await?;
/// let slices = EndpointSlices::new(client, "default", "backend").port("http");
/// tokio::spawn(endpoints.follow(slices, |target: &Target| {
///     Endpoint::new(target.name.clone(), format!("client of {}", target.address))
/// }));
/// # Ok(())
/// # }
/// ```
pub struct EndpointSlices {
    service: Arc<str>,
    port: Port,
    events: Pin<Box<dyn Stream<Item = watcher::Result<Event<EndpointSlice>>> + Send>>,
    slices: BTreeMap<String, EndpointSlice>,
    /// What a list has said so far.
    coming: BTreeMap<String, EndpointSlice>,
    /// Came right behind a list, and is told after it.
    failed: Option<BoxError>,
}

/// Which port of the endpoints is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Port {
    /// The only one.
    #[default]
    Only,
    /// The one of this name.
    Named(Arc<str>),
    /// This one of the pod, whatever the service says.
    Number(u16),
}

impl From<&str> for Port {
    fn from(name: &str) -> Self {
        Self::Named(Arc::from(name))
    }
}

impl From<String> for Port {
    fn from(name: String) -> Self {
        Self::Named(Arc::from(name))
    }
}

impl From<u16> for Port {
    fn from(number: u16) -> Self {
        Self::Number(number)
    }
}

impl EndpointSlices {
    /// Those of a service, in a namespace.
    pub fn new(client: Client, namespace: &str, service: impl Into<Arc<str>>) -> Self {
        let service = service.into();
        let api = Api::<EndpointSlice>::namespaced(client, namespace);
        let config = watcher::Config::default().labels(&format!("{OF_SERVICE}={service}"));
        Self {
            service,
            port: Port::default(),
            events: Box::pin(watcher(api, config)),
            slices: BTreeMap::new(),
            coming: BTreeMap::new(),
            failed: None,
        }
    }

    /// The port to send to, by name or number; the only one unless said otherwise.
    #[must_use]
    pub fn port(mut self, port: impl Into<Port>) -> Self {
        self.port = port.into();
        self
    }

    /// Says whether there may be another list than before.
    fn hear(&mut self, event: watcher::Result<Event<EndpointSlice>>) -> Result<bool, BoxError> {
        match event {
            Ok(Event::Init) => self.coming.clear(),
            Ok(Event::InitApply(slice)) => {
                self.coming.insert(slice.name_any(), slice);
            }
            Ok(Event::InitDone) => {
                self.slices = std::mem::take(&mut self.coming);
                return Ok(true);
            }
            Ok(Event::Apply(slice)) => {
                self.slices.insert(slice.name_any(), slice);
                return Ok(true);
            }
            Ok(Event::Delete(slice)) => {
                self.slices.remove(&slice.name_any());
                return Ok(true);
            }
            Err(watcher::Error::WatchError(status)) if status.code == GONE => {}
            Err(error) => return Err(error.into()),
        }
        Ok(false)
    }
}

impl Source for EndpointSlices {
    async fn next(&mut self) -> Result<Vec<Target>, BoxError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        loop {
            let Some(event) = self.events.next().await else {
                return Err(WatchEnded.into());
            };
            if !self.hear(event)? {
                continue;
            }
            // What is there already belongs to this list. The next call polls again, with a waker.
            let mut cx = Context::from_waker(Waker::noop());
            while let Poll::Ready(Some(event)) = self.events.as_mut().poll_next(&mut cx) {
                if let Err(error) = self.hear(event) {
                    self.failed = Some(error);
                    break;
                }
            }
            return Ok(targets(&self.service, &self.port, self.slices.values())?);
        }
    }

    fn kind(&self) -> &'static str {
        "kube"
    }

    fn empty(&self) -> Empty {
        Empty::Believed
    }
}

impl fmt::Debug for EndpointSlices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSlices")
            .field("service", &self.service)
            .field("port", &self.port)
            .field("slices", &self.slices.len())
            .finish_non_exhaustive()
    }
}

/// The watch is over, though it should never be.
#[derive(Clone, Copy, Debug)]
struct WatchEnded;

impl fmt::Display for WatchEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the watch of the endpoint slices is over")
    }
}

impl Error for WatchEnded {}

/// The endpoints of a service do not have the port.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoSuchPort {
    /// The service.
    pub service: Arc<str>,
    /// The port that was asked for.
    pub port: Port,
}

impl fmt::Display for NoSuchPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = &self.service;
        match &self.port {
            Port::Only => write!(
                f,
                "the endpoints of {service} have more than one port, or none"
            ),
            Port::Named(name) => write!(f, "the endpoints of {service} have no port {name:?}"),
            Port::Number(port) => write!(f, "the endpoints of {service} have no port {port}"),
        }
    }
}

impl Error for NoSuchPort {}

/// How an endpoint does, by its conditions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Ready,
    /// It terminates and still answers.
    Leaving,
    Away,
}

impl Condition {
    /// What is not said means ready, by the documentation of the API.
    fn of(conditions: Option<&EndpointConditions>) -> Self {
        let (ready, serving, terminating) = conditions.map_or((None, None, None), |it| {
            (it.ready, it.serving, it.terminating)
        });
        let terminating = terminating.unwrap_or(false);
        let ready = ready.unwrap_or(true);
        match (ready && !terminating, serving.unwrap_or(ready)) {
            (true, _) => Self::Ready,
            (false, true) if terminating => Self::Leaving,
            _ => Self::Away,
        }
    }
}

fn targets<'a>(
    service: &Arc<str>,
    port: &Port,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> Result<Vec<Target>, NoSuchPort> {
    let mut slices: Vec<_> = slices.collect();
    // The first of a name counts.
    slices.sort_by_key(|slice| match &*slice.address_type {
        "IPv4" => 0,
        "IPv6" => 1,
        _ => 2,
    });
    let mut found = BTreeMap::new();
    let mut portless = false;
    for slice in slices {
        if slice.endpoints.is_empty() {
            continue;
        }
        let Some(port) = port_of(port, slice.ports.as_deref().unwrap_or_default()) else {
            portless = true;
            continue;
        };
        for listed in &slice.endpoints {
            let condition = Condition::of(listed.conditions.as_ref());
            if condition == Condition::Away {
                continue;
            }
            if let Some(target) = target(listed, port) {
                let (_, before) = found
                    .entry(target.name.clone())
                    .or_insert_with(|| (target, condition));
                // While it moves from slice to slice it may stand in two of them.
                if condition == Condition::Ready {
                    *before = condition;
                }
            }
        }
    }
    if found.is_empty() && portless {
        return Err(NoSuchPort {
            service: Arc::clone(service),
            port: port.clone(),
        });
    }
    let any_ready = found
        .values()
        .any(|(_, condition)| *condition == Condition::Ready);
    let targets = found.into_values().map(|(target, condition)| {
        if condition == Condition::Leaving && any_ready {
            target.state(TargetState::Draining)
        } else {
            target
        }
    });
    Ok(targets.collect())
}

fn port_of(wanted: &Port, ports: &[EndpointPort]) -> Option<u16> {
    let port = match wanted {
        Port::Number(number) => return Some(*number),
        Port::Only => match ports {
            [only] => only.port,
            _ => None,
        },
        Port::Named(name) => ports
            .iter()
            .find(|port| port.name.as_deref() == Some(name))
            .and_then(|port| port.port),
    };
    port.and_then(|port| u16::try_from(port).ok())
}

/// Its first address stands for all: by the documentation they are of one kind, and the others may be ignored.
fn target(listed: &Listed, port: u16) -> Option<Target> {
    let address = listed.addresses.first()?;
    let mut target = Target::new(if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    });
    let object = listed.target_ref.as_ref();
    let pod = object
        .filter(|object| object.kind.as_deref() == Some("Pod"))
        .and_then(|object| object.name.as_deref());
    if let Some(pod) = pod {
        target = target.named(pod).label("pod", pod);
    }
    if let Some(node) = &listed.node_name {
        target = target.label("node", node.as_str());
    }
    if let Some(zone) = &listed.zone {
        target = target.zone(zone.as_str());
    }
    Some(target)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn found(port: impl Into<Port>, slices: &[&Value]) -> Result<Vec<Target>, NoSuchPort> {
        let parsed: Vec<EndpointSlice> = slices
            .iter()
            .map(|slice| serde_json::from_value((*slice).clone()).unwrap())
            .collect();
        targets(&Arc::from("backend"), &port.into(), parsed.iter())
    }

    fn slice(kind: &str, endpoints: Value, ports: Value) -> Value {
        json!({"metadata": {}, "addressType": kind, "endpoints": endpoints, "ports": ports})
    }

    fn states(conditions: &[Value]) -> Vec<TargetState> {
        let endpoints = conditions.iter().enumerate().map(|(at, conditions)| {
            json!({"addresses": [format!("10.0.0.{at}")], "conditions": conditions})
        });
        let endpoints = endpoints.collect();
        let all = found(80, &[&slice("IPv4", endpoints, json!([]))]).unwrap();
        all.iter().map(|target| target.state).collect()
    }

    #[test]
    fn conditions_say_who_serves_who_drains_and_who_is_away() {
        use TargetState::{Draining, Serving};

        let ready = json!({"ready": true, "serving": true, "terminating": false});
        let leaving = json!({"ready": false, "serving": true, "terminating": true});
        let dead = json!({"ready": false, "serving": false, "terminating": true});
        let starting = json!({"ready": false, "serving": false});
        let published = json!({"ready": true, "serving": true, "terminating": true});
        assert_eq!(
            states(&[ready.clone(), json!({}), Value::Null]),
            [Serving; 3]
        );
        assert_eq!(
            states(&[ready.clone(), leaving.clone()]),
            [Serving, Draining]
        );
        assert_eq!(states(&[ready.clone(), published]), [Serving, Draining]);
        assert_eq!(states(&[ready, dead.clone(), starting.clone()]), [Serving]);
        assert_eq!(
            states(&[leaving.clone(), leaving, dead]),
            [Serving; 2],
            "better than nobody"
        );
        assert_eq!(states(&[starting]), []);
    }

    #[test]
    fn the_port_is_found_by_name_by_number_or_as_the_only_one() {
        let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
        let one = slice("IPv4", endpoints.clone(), json!([{"port": 81}]));
        let two = slice(
            "IPv4",
            endpoints.clone(),
            json!([{"name": "a", "port": 82}, {"name": "b", "port": 83}]),
        );
        let odd = slice(
            "IPv4",
            endpoints,
            json!([{"name": "a", "port": 70000}, {"name": "b"}]),
        );
        let address = |found: Result<Vec<Target>, _>| found.map(|all| all[0].address.to_string());
        let only = Port::Only;
        assert_eq!(
            address(found(only.clone(), &[&one])).unwrap(),
            "10.0.0.1:81"
        );
        assert_eq!(address(found("b", &[&two])).unwrap(), "10.0.0.1:83");
        assert_eq!(address(found(84, &[&two])).unwrap(), "10.0.0.1:84");
        for (port, slice) in [
            (only, &two),
            ("b".into(), &one),
            ("a".into(), &odd),
            ("b".into(), &odd),
        ] {
            let error = found(port.clone(), &[slice]).unwrap_err();
            assert_eq!(error.port, port);
        }
        assert_eq!(
            found("b", &[&slice("IPv4", json!([]), json!([]))]).unwrap(),
            []
        );
        assert_eq!(found("b", &[&one, &two]).unwrap().len(), 1, "some have it");
    }

    #[test]
    fn a_pod_with_two_addresses_counts_once_and_by_ipv4() {
        let endpoint = |address: &str, ready: bool| {
            json!([{"addresses": [address], "conditions": {"ready": ready, "serving": true, "terminating": !ready},
                "targetRef": {"kind": "Pod", "name": "web-0"}}])
        };
        let six = slice("IPv6", endpoint("fd00::1", true), json!([]));
        let four = slice("IPv4", endpoint("10.0.0.1", false), json!([]));
        let all = found(80, &[&six, &four]).unwrap();
        assert_eq!(
            (&*all[0].address, &*all[0].name, all[0].state),
            ("10.0.0.1:80", "web-0", TargetState::Serving)
        );
        assert_eq!(all.len(), 1);
        assert_eq!(&*found(80, &[&six]).unwrap()[0].address, "[fd00::1]:80");
        let fixed = json!([{"addresses": ["db.example.com"], "targetRef": {"kind": "Node", "name": "n"}}, {"addresses": []}]);
        let all = found(80, &[&slice("FQDN", fixed, json!([]))]).unwrap();
        assert_eq!((all.len(), &*all[0].name), (1, "db.example.com:80"));
    }
}
