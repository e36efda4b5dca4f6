//! `/health`, `/load`, `/metrics` and `/chaos`.

use std::sync::Arc;

use axum::{Extension, body::Body, extract::State};
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use palisade_core::time;

use super::{ThisCall, answer};
use crate::{
    api::Health,
    errors::{Failure, json, read},
    fault::Fault,
    instance::{Instance, Phase},
    ticket::Call,
};

pub(super) async fn health(State(instance): State<Arc<Instance>>) -> Response<Body> {
    let running = *instance.phase.borrow() == Phase::Running;
    let date = time::wall_clock().duration_since(std::time::UNIX_EPOCH);
    let mut response = json(&Health {
        status: if running { "healthy" } else { "draining" }.to_owned(),
        instance_id: instance.id.clone(),
        timestamp: date.map_or(0.0, |date| date.as_secs_f64()),
    });
    if !running {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

pub(super) async fn load(State(instance): State<Arc<Instance>>) -> Response<Body> {
    json(&instance.load())
}

pub(super) async fn metrics(State(instance): State<Arc<Instance>>) -> Response<Body> {
    let text = instance.meters.render(&instance.gauges());
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

pub(super) async fn chaos(State(instance): State<Arc<Instance>>) -> Response<Body> {
    json(&instance.chaos().faults())
}

pub(super) async fn set_chaos(
    State(instance): State<Arc<Instance>>,
    Extension(call): ThisCall,
) -> Response<Body> {
    answer(set_faults(&instance, &call), "/chaos")
}

pub(super) async fn clear_chaos(State(instance): State<Arc<Instance>>) -> Response<Body> {
    instance.set_chaos(Vec::new());
    json(&instance.chaos().faults())
}

/// One fault or a list of them takes the place of all that were set before. Any content type will do: people type this.
fn set_faults(instance: &Instance, call: &Call) -> Result<Response<Body>, Failure> {
    let is_list = call.body.trim_ascii_start().starts_with(b"[");
    let faults = if is_list {
        read(&call.body)?
    } else {
        vec![read::<Fault>(&call.body)?]
    };
    instance.set_chaos(faults);
    Ok(json(&instance.chaos().faults()))
}
