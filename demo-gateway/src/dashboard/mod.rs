//! The page at `/`, and `GET /events`, the feed behind it. `FEED.md` describes the feed.

mod assets;
mod collect;
mod feed;
mod gather;
mod history;
mod second;
mod state;
#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "what a test is helped by may fail as it does"
)]
pub(crate) mod testing;
mod times;
mod viewers;
mod watched;
mod wire;

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CACHE_CONTROL, CONTENT_TYPE, VARY},
};

pub(crate) use self::{feed::Dashboard, gather::newest};
use crate::{api, app::App, errors::ApiError, server::Hangup};

/// Where the feed is.
pub(crate) const EVENTS: &str = "/events";

/// Proxies pass events on one by one.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The page, its files and its feed.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(page))
        .route("/dashboard/{name}", get(file))
        .route(EVENTS, get(events))
}

/// Browsers, and whoever takes anything, get the page; who asks for JSON gets what there is.
async fn page(asked: HeaderMap) -> Response {
    if !assets::prefers_json(&asked) {
        return assets::page(&asked);
    }
    let mut index = api::index().into_response();
    let accept = HeaderValue::from_static("accept");
    index.headers_mut().insert(VARY, accept);
    index
}

async fn file(Path(name): Path<String>, asked: HeaderMap) -> Result<Response, ApiError> {
    assets::file(&name, &asked)
        .ok_or_else(|| ApiError::not_found(format!("there is no `/dashboard/{name}` here")))
}

async fn events(
    State(app): State<Arc<App>>,
    connection: Option<Extension<Hangup>>,
) -> Result<Response, ApiError> {
    let connection = connection.map(|Extension(connection)| connection);
    let viewing = app.dashboard.view(&app, connection)?;
    let mut response = Response::new(axum::body::Body::new(viewing));
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store"),
        (BUFFERING, "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    assets::guard(headers);
    Ok(response)
}
