//! `/v1/models`.

use axum::{body::Body, extract::Path};
use http::{Response, StatusCode};

use crate::{
    api::openai::{Model, Models},
    errors::{Failure, json},
};

/// The names that clients ask for without being told; any other is answered as well.
const MODELS: [&str; 4] = [
    "gpt-3.5-turbo",
    "gpt-4o",
    "gpt-4o-mini",
    "text-embedding-3-small",
];

pub(super) async fn list() -> Response<Body> {
    json(&Models {
        object: "list".to_owned(),
        data: MODELS.map(model).into(),
    })
}

pub(super) async fn one(Path(name): Path<String>) -> Response<Body> {
    match MODELS.into_iter().find(|model| *model == name) {
        Some(name) => json(&model(name)),
        None => {
            let detail = format!("there is no model {name:?}");
            Failure::new(StatusCode::NOT_FOUND, "model_not_found", detail).answer("/v1/models")
        }
    }
}

fn model(name: &str) -> Model {
    Model {
        id: name.to_owned(),
        object: "model".to_owned(),
        // A fixed date, so that answers repeat.
        created: 1_677_610_602,
        owned_by: "demo-backend".to_owned(),
    }
}
