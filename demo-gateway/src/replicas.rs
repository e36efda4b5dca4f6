//! What several gateways have counted, added up: percentiles of all requests, and not of percentiles.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{Router, routing::get};
use clap::Args;
use palisade::sla::{Export, Replicas, Targets};

use crate::{
    api::{Inbound, segment},
    app::App,
    body::{self, Answer},
    config::parse_duration,
    errors::ApiError,
};

/// The longest that is kept, and what is told where nothing else is asked for.
const WINDOW: Duration = Duration::from_secs(300);

/// More than anybody exports, in bytes.
const LONGEST: u64 = 64 * 1024 * 1024;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/admin/sla", get(export))
}

async fn export(inbound: Inbound) -> Result<Answer, ApiError> {
    let query = inbound.request.uri().query().unwrap_or_default();
    let mut window = WINDOW;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let wrong = |detail: String| ApiError::bad_request(detail).param("window");
        let Some(("window", text)) = pair.split_once('=') else {
            return Err(wrong(format!("`{pair}`: there is only `window=DURATION`")));
        };
        let parsed = parse_duration(&segment(text)?);
        window = parsed.map_err(|error| wrong(format!("`window`: {error}")))?;
    }
    Ok(body::json(&inbound.app.stack.sla.export(window)))
}

/// The options of `sla`.
#[derive(Clone, Debug, Args)]
pub struct Sla {
    /// What gateways answered to `GET /admin/sla`, one or several after each other in a file [default: the standard input].
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// How it goes with all of them, as `performance_summary` of `/status` says it of one.
///
/// # Errors
///
/// In a sentence, if something is no export, or they are not of one window.
pub fn summary(options: &Sla) -> Result<String, String> {
    let mut replicas = Replicas::new();
    let mut add = |name: &Path, read: &mut dyn Read| {
        let shown = |error: &dyn std::fmt::Display| format!("{}: {error}", name.display());
        let read = BufReader::new(read.take(LONGEST));
        for export in serde_json::Deserializer::from_reader(read).into_iter::<Export>() {
            let export = export.map_err(|error| shown(&error))?;
            replicas.add(&export).map_err(|error| shown(&error))?;
        }
        Ok::<_, String>(())
    };
    if options.files.is_empty() {
        add(Path::new("standard input"), &mut io::stdin().lock())?;
    }
    for path in &options.files {
        let file = File::open(path);
        let mut file = file.map_err(|error| format!("{}: {error}", path.display()))?;
        add(path, &mut file)?;
    }
    let summary = replicas.summary(&Targets::default());
    let summary = summary.ok_or("nothing was read: it takes what `GET /admin/sla` answers")?;
    serde_json::to_string_pretty(&summary).map_err(|error| error.to_string())
}
