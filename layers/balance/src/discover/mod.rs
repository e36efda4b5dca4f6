//! Where endpoints come from: a [`Source`] gives whole lists of [`Target`]s, and the set follows the last one.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//!
//! use palisade_balance::{Endpoint, Endpoints, discover::{Live, Target}};
//! use tokio::sync::watch;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let endpoints = Endpoints::<Arc<str>>::default();
//! let (list, source) = watch::channel(vec![Target::new("10.0.0.1:80"), Target::new("10.0.0.2:80")]);
//! let follower = endpoints.follow(Live::new(source), |target: &Target| {
//!     Endpoint::new(target.name.clone(), target.address.clone()) // ... a client of this address
//! });
//! let mut seen = follower.watch();
//! tokio::spawn(follower);
//! seen.wait_for(|seen| seen.lists == 1).await.unwrap();
//! assert_eq!(endpoints.len(), 2);
//!
//! list.send(vec![Target::new("10.0.0.2:80").weight(2.0)]).unwrap();
//! seen.wait_for(|seen| seen.lists == 2).await.unwrap();
//! assert_eq!(endpoints.snapshot()[0].weight, 2.0);
//! assert_eq!(endpoints.len(), 1);
//! # }
//! ```
//!
//! # Behaviour
//!
//! Endpoints are told apart by their names. One that is new is inserted and gets its share over ten seconds; one that
//! is gone is removed, and finishes what it has; a change of weight, zone, priority or ceiling is made in place, and
//! what the endpoint has learnt stays; another address or other labels of the same name put another endpoint in its
//! place. New ones come before old ones go, so that a list without a common name leaves no gap.
//!
//! A list only touches endpoints that came with the lists before it. A name that is held by an endpoint of somebody
//! else stays theirs ([`Changes::taken`]), so several sources can feed one set. What was changed by hand stays so until
//! the list says something new of it: an endpoint that was suspended by hand is not resumed, one that was removed by
//! hand comes back with the next list.
//!
//! A source that fails changes nothing: the last list stays, and the source is asked again after about 1 s, then 2 s,
//! 30 s at most, with a jitter of a half. An empty list counts as such a failure if the source cannot be
//! [sure](Empty) of it. [`Follower::watch`] and metrics tell what came of it.
//!
//! # Sources
//!
//! | source | feature | asks |
//! |---|---|---|
//! | [`Fixed`] | | never again |
//! | [`Live`] | | whenever a `tokio::sync::watch` changes |
//! | [`Dns`](dns::Dns): A, AAAA and SRV | `dns` | when the records expire |
//! | [`TargetFile`](file::TargetFile): TOML or JSON | `file` | each second |
//! | [`EndpointSlices`](kube::EndpointSlices) of Kubernetes | `kube` | watches |
//! | [`Endpoints::follow_discover`](crate::Endpoints::follow_discover): a `tower::discover::Discover` | `discover` | its stream |
//!
//! # Cancellation
//!
//! A follower may be dropped at any time. The set stays as it is, and the next follower of a source of the same
//! [name](Follower::named) takes its endpoints over, with what they have learnt; until the old one is dropped, it finds
//! their names taken.
//!
//! # Metrics
//!
//! By `layer` (the name of the set) and `source` ([`Follower::named`]): `palisade_balance_discovery_lists_total`,
//! `palisade_balance_discovery_errors_total`, `palisade_balance_discovery_targets`, and
//! `palisade_balance_discovery_listed_timestamp_seconds`, the time of the last list in seconds since 1970.

#![cfg_attr(
    not(all(
        feature = "discover",
        feature = "dns",
        feature = "file",
        feature = "kube"
    )),
    allow(
        rustdoc::broken_intra_doc_links,
        reason = "they lead to what other features have"
    )
)]

mod backoff;
#[cfg(feature = "dns")]
pub mod dns;
#[cfg(feature = "file")]
pub mod file;
mod follow;
#[cfg(feature = "kube")]
pub mod kube;
mod metrics;
mod reconcile;
mod report;
#[cfg(feature = "serde")]
mod serial;
mod source;
mod target;
#[cfg(feature = "discover")]
mod tower;

pub(crate) use self::reconcile::Ledger;
#[cfg(feature = "discover")]
pub use self::tower::DiscoverFollower;
pub use self::{
    follow::Follower,
    reconcile::{Changes, IntoEndpoint, Reconciler},
    report::Discovery,
    source::{Empty, EmptyList, Fixed, Live, Source},
    target::{Target, TargetState},
};
