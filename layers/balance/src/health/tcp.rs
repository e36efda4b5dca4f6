//! Checks that only connect.

use std::{io, sync::Arc};

use tokio::net::{TcpStream, ToSocketAddrs};

use super::{Checkup, Finding};

/// Connects, and hangs up: for servers that speak neither HTTP nor gRPC.
///
/// A process that hangs is connected to by its kernel all the same, so this finds less than other checks do.
///
/// ```
/// use palisade_balance::{Endpoint, Endpoints, HealthChecks, TcpCheck};
///
/// let endpoints = Endpoints::default();
/// endpoints.insert(Endpoint::new("10.0.0.1:6379", "client"));
/// let check = TcpCheck::at(|name| name.to_owned());
/// let checker = endpoints.health_checks(HealthChecks::default(), check);
/// # drop(checker);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TcpCheck(());

impl TcpCheck {
    /// Connects to where `address_of` says that an endpoint of this name is: one address that connects is enough.
    pub fn at<S, A>(mut address_of: impl FnMut(&str) -> A) -> impl FnMut(Arc<str>, S) -> Checkup
    where
        A: ToSocketAddrs + Send + 'static,
    {
        move |name, _| {
            let address = address_of(&name);
            Box::pin(async move {
                let connected: io::Result<TcpStream> = TcpStream::connect(address).await;
                Finding::from(connected.map(drop))
            })
        }
    }
}
