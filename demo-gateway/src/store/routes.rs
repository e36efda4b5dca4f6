//! `GET /admin/requests` and `GET /admin/scaling-events`.

use std::sync::Arc;

use axum::{Router, routing::get};
use http::StatusCode;
use palisade::time::wall_clock;
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{ColumnIndex, Decode, FromRow, Row, Type};

use super::{
    Store,
    database::Dialect,
    filter::{Filter, Table},
    reader::Readable,
    row::{self, Logged},
};
use crate::{
    api::Inbound,
    app::App,
    body::{self, Answer},
    errors::{ApiError, SOON},
};

/// To be put behind the guard of `/admin`.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/admin/requests", get(requests))
        .route("/admin/scaling-events", get(scaling_events))
}

#[derive(Serialize)]
struct Requests {
    requests: Vec<Logged>,
    /// What `before` is to be for the next page.
    next: Option<i64>,
}

async fn requests(inbound: Inbound) -> Result<Answer, ApiError> {
    let query = inbound.request.uri().query().unwrap_or_default();
    let filter = Filter::of_query(query, Table::Requests, wall_clock())?;
    let (requests, next) = page(&inbound.app, &filter, row::select, |row: &Logged| row.id).await?;
    Ok(body::json(&Requests { requests, next }))
}

#[derive(Serialize)]
struct ScalingEvents {
    scaling_events: Vec<ScalingEvent>,
    next: Option<i64>,
}

async fn scaling_events(inbound: Inbound) -> Result<Answer, ApiError> {
    let query = inbound.request.uri().query().unwrap_or_default();
    let filter = Filter::of_query(query, Table::ScalingEvents, wall_clock())?;
    let id = |row: &ScalingEvent| row.id;
    let (scaling_events, next) = page(&inbound.app, &filter, ScalingEvent::select, id).await?;
    Ok(body::json(&ScalingEvents {
        scaling_events,
        next,
    }))
}

/// One page, and where the next one begins.
async fn page<T: Readable>(
    app: &App,
    filter: &Filter,
    select: fn(&Dialect) -> String,
    id: fn(&T) -> i64,
) -> Result<(Vec<T>, Option<i64>), ApiError> {
    let Some(Store { readers, .. }) = &app.store else {
        let detail = "there is no request log: `store.url` is `off`";
        return Err(ApiError::not_found(detail));
    };
    let dialect = readers.database().dialect();
    let (sql, args) = filter.newest_first(&select(dialect), dialect);
    let mut rows = readers.read(&sql, &args).await.map_err(|_| {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let detail = "the database of the request log does not answer";
        ApiError::new(status, "store_unavailable", detail).retry_after(SOON)
    })?;
    let limit = filter.limit as usize;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(id);
    Ok((rows, next))
}

/// A change of how many instances there are.
#[derive(Debug, Serialize)]
struct ScalingEvent {
    id: i64,
    /// `scale_up` or `scale_down`.
    event_type: String,
    old_instances: i32,
    new_instances: i32,
    /// What led to it, as it was written.
    trigger_metrics: Option<Box<RawValue>>,
    timestamp: String,
}

impl ScalingEvent {
    fn select(dialect: &Dialect) -> String {
        format!(
            "SELECT id, event_type, old_instances, new_instances, CAST(trigger_metrics AS TEXT) AS metrics, \
             {} AS shown FROM scaling_events",
            dialect.shown_time
        )
    }
}

impl<'r, R: Row> FromRow<'r, R> for ScalingEvent
where
    &'static str: ColumnIndex<R>,
    i32: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        let metrics: Option<String> = row.try_get("metrics")?;
        Ok(Self {
            id: row.try_get("id")?,
            event_type: row.try_get("event_type")?,
            old_instances: row.try_get("old_instances")?,
            new_instances: row.try_get("new_instances")?,
            // A text that is no document was not written by a gateway.
            trigger_metrics: metrics.and_then(|text| RawValue::from_string(text).ok()),
            timestamp: row.try_get("shown")?,
        })
    }
}
