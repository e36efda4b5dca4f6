//! Asking a backend for its health, as it is configured.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{Empty, Full};
use palisade::{
    BoxError,
    balance::{Checkup, GrpcCheck, HttpCheck, TcpCheck},
};

use crate::{
    backends::Backend,
    config::{CheckKind, HealthCheck},
    proxy::{Asking, Connections},
};

/// Asks one backend.
pub(crate) type Ask = Box<dyn FnMut(Arc<Backend>) -> Checkup + Send>;

/// How to ask. Expects a configuration without mistakes.
pub(crate) fn of(settings: &HealthCheck) -> Result<Ask, BoxError> {
    Ok(match settings.kind {
        CheckKind::Http => {
            let connections = Connections::new();
            let check = HttpCheck::new(&settings.path)?.statuses(settings.statuses.0.clone());
            let mut check = check.through_endpoint::<Asking<Empty<Bytes>>, _, _>();
            Box::new(move |it| check(it.id.clone(), connections.to(it)))
        }
        CheckKind::Grpc => {
            let connections = Connections::http2();
            let check = GrpcCheck::new(&*settings.service);
            let mut check = check.through_endpoint::<Asking<Full<Bytes>>, _, _>(Full::new);
            Box::new(move |it| check(it.id.clone(), connections.to(it)))
        }
        CheckKind::Tcp => Box::new(|it| {
            let address = it.address.host_and_port();
            let mut check = TcpCheck::at(move |_| address.clone());
            check(it.id.clone(), ())
        }),
    })
}
