//! `/admin`: for those who hold the token, and nobody else learns what there is.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{delete, post},
};
use http::{HeaderMap, StatusCode, header::AUTHORIZATION};
use palisade::key::bearer_token;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    api::{self, Inbound, segment},
    app::App,
    backends::NotAdded,
    body::{self, Answer},
    config::{self, Backend},
    errors::{ApiError, SOON},
    identity::{Identifier, same_secret},
    limits::{DOWN, Reset, Source},
    replicas, store,
};

#[derive(Serialize)]
struct Message {
    message: String,
}

fn done(message: String) -> Answer {
    tracing::info!(%message, "admin");
    body::json(&Message { message })
}

/// All below `/admin`, behind its token.
pub(crate) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    Router::new()
        .route("/admin/add-backend", post(add))
        .route("/admin/strategy", post(strategy))
        .route("/admin/reset-rate-limit/{*identifier}", post(reset))
        .route("/admin/remove-backend/{*id}", delete(remove))
        .route("/admin/backends/{*id}", post(change))
        .route("/admin/circuit-breaker/{*id}", post(circuit))
        .merge(store::routes())
        .merge(replicas::routes())
        // Before the guard, so that it stands before a wrong method too.
        .method_not_allowed_fallback(api::wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), guard))
}

async fn guard(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    authorize(&app, request.headers())?;
    Ok(next.run(request).await)
}

pub(crate) fn authorize(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let shown = headers.get(AUTHORIZATION);
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

async fn read<T: DeserializeOwned>(inbound: Inbound) -> Result<T, ApiError> {
    let app = inbound.app;
    let (parts, body) = inbound.request.into_parts();
    let body = api::read(&app, &parts.headers, body).await?;
    api::json(&body)
}

async fn reset(inbound: Inbound) -> Result<Answer, ApiError> {
    let app = &inbound.app;
    let identifier = inbound.after("/admin/reset-rate-limit/")?;
    let query = inbound.request.uri().query().unwrap_or_default();
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
    let parsed = Identifier::parse(&identifier)?;
    let limits = &app.stack.limits;
    let reset = limits
        .reset(rule.as_deref(), &app.identities, &parsed)
        .await;
    let Some(Reset {
        rules,
        source,
        failed,
    }) = reset
    else {
        let names = limits.names().join("`, `");
        let detail = format!("there is no such rule, only `{names}`");
        return Err(ApiError::bad_request(detail).param("rule_type"));
    };
    let message = format!("Rate limit reset for {identifier} ({rules} rules had counted)");
    let mut done = WasReset {
        message,
        source,
        store: None,
    };
    if !failed {
        tracing::info!(message = %done.message, "admin");
        return Ok(body::json(&done));
    }
    // Whoever asks for all of it has not got it.
    done.message +=
        ", but only in this gateway: the store cannot be asked, and what it has counted stands";
    done.store = Some(DOWN);
    tracing::warn!(message = %done.message, "admin");
    let mut answer = body::json(&done);
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    SOON.insert_into(answer.headers_mut());
    Ok(answer)
}

#[derive(Serialize)]
struct WasReset {
    message: String,
    /// Who has counted.
    source: Source,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<&'static str>,
}

async fn add(inbound: Inbound) -> Result<Answer, ApiError> {
    let app = inbound.app.clone();
    let backend: Backend = read(inbound).await?;
    if let Some(mistake) = backend.check().into_iter().next() {
        return Err(ApiError::bad_request(mistake.to_string()).param(mistake.path));
    }
    if backend.api_key_env.is_some() {
        // Whoever holds the token could have any secret of this process sent anywhere.
        let detail =
            "only the configuration says which variable of the environment a backend is sent";
        return Err(ApiError::bad_request(detail).param("api_key_env"));
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

async fn remove(inbound: Inbound) -> Result<Answer, ApiError> {
    let id = &*inbound.after("/admin/remove-backend/")?;
    let in_flight = inbound.app.backends.remove(id).ok_or_else(|| unknown(id))?;
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
    /// Empty for none.
    zone: Option<String>,
    priority: Option<u32>,
}

impl Change {
    /// What would be wrong with a backend that was configured so.
    fn check(&self) -> Result<(), ApiError> {
        let mut backend = Backend::new("http://unchanged");
        backend.weight = self.weight.unwrap_or(backend.weight);
        backend.zone = self.zone.clone().filter(|zone| !zone.is_empty());
        backend.priority = self.priority.unwrap_or_default();
        match backend.check().into_iter().next() {
            Some(mistake) => Err(ApiError::bad_request(mistake.to_string()).param(mistake.path)),
            None => Ok(()),
        }
    }
}

async fn change(inbound: Inbound) -> Result<Answer, ApiError> {
    let app = inbound.app.clone();
    let id = &*inbound.after("/admin/backends/")?.into_owned();
    let change: Change = read(inbound).await?;
    let endpoints = &app.backends.endpoints;
    change.check()?;
    let mut found = app.backends.find(id).is_some();
    let mut told = Vec::new();
    if let Some(weight) = change.weight {
        found &= endpoints.set_weight(id, weight);
        told.push(format!("weight {weight}"));
    }
    if let Some(zone) = change.zone {
        let zone = Some(&*zone).filter(|zone| !zone.is_empty());
        found &= endpoints.set_zone_of(id, zone);
        told.push(match zone {
            Some(zone) => format!("zone {zone}"),
            None => "no zone".into(),
        });
    }
    if let Some(priority) = change.priority {
        found &= endpoints.set_priority(id, priority);
        told.push(format!("priority {priority}"));
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
            "there is none of `weight`, `drain`, `zone` and `priority`",
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

async fn circuit(inbound: Inbound) -> Result<Answer, ApiError> {
    let app = inbound.app.clone();
    let id = &*inbound.after("/admin/circuit-breaker/")?.into_owned();
    let circuit: Circuit = read(inbound).await?;
    let steered = app.backends.endpoints.with_gate(id, |(breaker, _)| {
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

async fn strategy(inbound: Inbound) -> Result<Answer, ApiError> {
    let app = inbound.app.clone();
    let chosen: Chosen = read(inbound).await?;
    let Ok(strategy) = chosen.strategy.parse() else {
        let names = config::strategies().join("`, `");
        let detail = format!("`{}` is no strategy: there are `{names}`", chosen.strategy);
        return Err(ApiError::bad_request(detail).param("strategy"));
    };
    app.backends.set_strategy(strategy);
    Ok(done(format!("Strategy {strategy}")))
}
