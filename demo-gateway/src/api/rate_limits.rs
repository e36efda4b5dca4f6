//! `GET /rate-limits/{identifier}`: how somebody stands. Reading consumes nothing.

use serde_json::{Map, Value};

use crate::{
    app::App,
    body::{self, Answer},
    clock::timestamp,
    errors::ApiError,
    identity::Identifier,
};

pub(super) async fn answer(app: &App, identifier: &str) -> Result<Answer, ApiError> {
    let parsed = Identifier::parse(identifier)?;
    let limits = &app.stack.limits;
    let states = limits.states(&app.identities, &parsed).await;
    let states = states.into_iter().filter_map(|(rule, state)| {
        let state = serde_json::to_value(state).ok()?;
        Some((rule.to_owned(), state))
    });
    let mut all: Map<String, Value> = states.collect();
    // Last, so that no rule takes their place.
    all.insert("identifier".into(), identifier.into());
    all.insert("timestamp".into(), timestamp().into());
    Ok(body::json(&all))
}
