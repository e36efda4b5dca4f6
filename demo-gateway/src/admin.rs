//! `/admin`: for those who hold the token, and nobody else learns what there is.

use http::{Method, header::AUTHORIZATION};
use palisade::key::bearer_token;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    api::{self, Inbound, allow, segment},
    app::App,
    backends::NotAdded,
    body::{self, Answer},
    config::{Backend, Strategy},
    errors::ApiError,
    identity::{Identifier, same_secret},
};

#[derive(Serialize)]
struct Message {
    message: String,
}

fn done(message: String) -> Answer {
    tracing::info!(%message, "admin");
    body::json(&Message { message })
}

pub(crate) async fn answer(inbound: Inbound) -> Result<Answer, ApiError> {
    let app = inbound.app.clone();
    authorize(&app, &inbound)?;
    let (method, uri) = (
        inbound.request.method().clone(),
        inbound.request.uri().clone(),
    );
    let path = uri.path().strip_prefix("/admin").unwrap_or_default();
    let post = || allow(&method, &[Method::POST], "POST");
    match path {
        "/add-backend" => {
            post()?;
            return add(&app, read(&app, inbound).await?);
        }
        "/strategy" => {
            post()?;
            return strategy(&app, read(&app, inbound).await?);
        }
        _ => {}
    }
    if let Some(identifier) = path.strip_prefix("/reset-rate-limit/") {
        post()?;
        return reset(&app, &segment(identifier)?, uri.query().unwrap_or_default());
    }
    if let Some(id) = path.strip_prefix("/remove-backend/") {
        allow(&method, &[Method::DELETE], "DELETE")?;
        return remove(&app, &segment(id)?);
    }
    if let Some(id) = path.strip_prefix("/backends/") {
        post()?;
        let id = segment(id)?;
        return change(&app, &id, read(&app, inbound).await?);
    }
    if let Some(id) = path.strip_prefix("/circuit-breaker/") {
        post()?;
        let id = segment(id)?;
        return circuit(&app, &id, read(&app, inbound).await?);
    }
    Err(ApiError::not_found(format!(
        "there is no `{}` here",
        uri.path()
    )))
}

fn authorize(app: &App, inbound: &Inbound) -> Result<(), ApiError> {
    let shown = inbound.request.headers().get(AUTHORIZATION);
    let shown = shown.and_then(|value| bearer_token(value.as_bytes()));
    match shown {
        Some(token) if same_secret(token, app.admin_token.as_bytes()) => Ok(()),
        Some(_) => Err(ApiError::unauthorized(
            "unauthorized",
            "the admin token is another",
        )),
        None => Err(ApiError::unauthorized(
            "unauthorized",
            "show the admin token, as in `authorization: Bearer TOKEN`",
        )),
    }
}

async fn read<T: DeserializeOwned>(app: &App, inbound: Inbound) -> Result<T, ApiError> {
    let (parts, body) = inbound.request.into_parts();
    let body = api::read(app, &parts.headers, body).await?;
    api::json(&body)
}

fn reset(app: &App, identifier: &str, query: &str) -> Result<Answer, ApiError> {
    let mut rule = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("rule_type", value)) if !value.is_empty() => rule = Some(segment(value)?),
            _ => {
                let detail = format!("`{pair}`: there is only `rule_type=RULE`");
                return Err(ApiError::bad_request(detail).param("rule_type"));
            }
        }
    }
    let parsed = Identifier::parse(identifier)?;
    match app.stack.limits.reset(rule.as_deref(), &parsed) {
        Some(rules) => Ok(done(format!(
            "Rate limit reset for {identifier} ({rules} rules had counted)"
        ))),
        None => {
            let names = app.stack.limits.names().join("`, `");
            let detail = format!("there is no such rule, only `{names}`");
            Err(ApiError::bad_request(detail).param("rule_type"))
        }
    }
}

fn add(app: &App, backend: Backend) -> Result<Answer, ApiError> {
    if let Some(mistake) = backend.check().into_iter().next() {
        return Err(ApiError::bad_request(mistake.to_string()).param(mistake.path));
    }
    let id = backend.name().to_owned();
    match app.backends.add(&backend) {
        Ok(()) => Ok(done(format!("Backend {id} added successfully"))),
        Err(NotAdded::Exists) => {
            let detail = format!("there is a backend `{id}` already: remove it first");
            Err(ApiError::conflict(detail).param("id"))
        }
        Err(NotAdded::Wrong(detail)) => Err(ApiError::bad_request(detail)),
    }
}

fn remove(app: &App, id: &str) -> Result<Answer, ApiError> {
    let in_flight = app.backends.remove(id).ok_or_else(|| unknown(id))?;
    Ok(done(match in_flight {
        0 => format!("Backend {id} removed successfully"),
        many => format!("Backend {id} removed successfully; it finishes {many} requests"),
    }))
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no backend `{id}`"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    weight: Option<f64>,
    drain: Option<bool>,
}

fn change(app: &App, id: &str, change: Change) -> Result<Answer, ApiError> {
    let endpoints = &app.backends.endpoints;
    if let Some(weight) = change.weight
        && !(weight > 0.0 && weight <= 1000.0)
    {
        let detail = format!("`weight`: {weight} is not above 0 and up to 1000");
        return Err(ApiError::bad_request(detail).param("weight"));
    }
    let mut found = app.backends.find(id).is_some();
    let mut told = Vec::new();
    if let Some(weight) = change.weight {
        found &= endpoints.set_weight(id, weight);
        told.push(format!("weight {weight}"));
    }
    match change.drain {
        Some(true) => {
            found &= endpoints.suspend(id);
            told.push("draining".into());
        }
        Some(false) => {
            found &= endpoints.resume(id);
            told.push("serving".into());
        }
        None => {}
    }
    if !found {
        return Err(unknown(id));
    }
    if told.is_empty() {
        return Err(ApiError::bad_request(
            "there is neither `weight` nor `drain`",
        ));
    }
    Ok(done(format!("Backend {id}: {}", told.join(", "))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Circuit {
    state: CircuitState,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CircuitState {
    Open,
    Closed,
    Auto,
}

fn circuit(app: &App, id: &str, circuit: Circuit) -> Result<Answer, ApiError> {
    let steered = app.backends.endpoints.with_gate(id, |breaker| {
        let handle = breaker.handle();
        match circuit.state {
            CircuitState::Open => handle.force_open(),
            CircuitState::Closed => handle.force_closed(),
            CircuitState::Auto => handle.release(),
        }
    });
    steered.ok_or_else(|| unknown(id))?;
    let state = match circuit.state {
        CircuitState::Open => "held open",
        CircuitState::Closed => "held closed",
        CircuitState::Auto => "automatic",
    };
    Ok(done(format!("Circuit of backend {id}: {state}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Chosen {
    strategy: String,
}

fn strategy(app: &App, chosen: Chosen) -> Result<Answer, ApiError> {
    let Some(strategy) = Strategy::find(&chosen.strategy) else {
        let names = Strategy::ALL.map(Strategy::name).join("`, `");
        let detail = format!("`{}` is no strategy: there are `{names}`", chosen.strategy);
        return Err(ApiError::bad_request(detail).param("strategy"));
    };
    app.backends.endpoints.set_strategy(strategy.into());
    Ok(done(format!("Strategy {}", strategy.name())))
}
