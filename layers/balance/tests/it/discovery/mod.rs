//! Where endpoints come from.

#[cfg(feature = "dns")]
mod dns;
#[cfg(feature = "file")]
mod file;
mod follow;
#[cfg(feature = "kube")]
mod kube;
#[cfg(feature = "metrics")]
mod metrics;
mod reconcile;
#[cfg(feature = "discover")]
mod tower;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use palisade_balance::{
    Endpoint, EndpointState, Endpoints,
    discover::{Discovery, Target},
};
use tokio::sync::watch;

use crate::support::Fake;

/// One fake for each address, whenever it is made.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<HashMap<String, Fake>>>);

impl World {
    pub(crate) fn at(&self, address: &str) -> Fake {
        let mut all = self.0.lock().unwrap();
        let fake = all.entry(address.to_owned());
        fake.or_insert_with(|| Fake::new(10)).clone()
    }

    pub(crate) fn make(&self) -> impl FnMut(&Target) -> Endpoint<Fake> + Send + 'static {
        let world = self.clone();
        move |target| Endpoint::new(target.name.clone(), world.at(&target.address))
    }
}

/// The names of those that take requests, in order.
pub(crate) fn serving(endpoints: &Endpoints<Fake>) -> Vec<String> {
    let all = endpoints.snapshot().into_iter();
    let mut names: Vec<_> = all
        .filter(|endpoint| endpoint.state != EndpointState::Draining)
        .map(|endpoint| endpoint.name.to_string())
        .collect();
    names.sort();
    names
}

pub(crate) async fn until(
    seen: &mut watch::Receiver<Discovery>,
    what: impl FnMut(&Discovery) -> bool,
) -> Discovery {
    seen.wait_for(what).await.unwrap().clone()
}
