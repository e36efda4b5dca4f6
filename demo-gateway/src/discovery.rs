//! Backends that nobody has named: found, followed, and told about.

use std::sync::Arc;

use palisade::{
    balance::discover::{self, Target, dns::Dns, file::TargetFile},
    time::{now, wall_clock},
};
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    backends::Backends,
    clock::rfc3339,
    config::{self, Source},
};

/// What has come of a source of backends.
#[derive(Clone, Debug)]
pub(crate) struct Discovery {
    source: String,
    seen: watch::Receiver<discover::Discovery>,
}

/// The same, as `/status` shows it.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    source: String,
    /// Of the last list.
    backends: usize,
    lists: u64,
    last_list: Option<String>,
    errors: u64,
    last_error: Option<String>,
    /// What is wrong now; the backends of the last good list stay.
    error: Option<String>,
    /// Left out, as backends of these names were there already.
    taken: Vec<Arc<str>>,
    /// Left out, as something is wrong with them.
    wrong: Vec<Wrong>,
}

#[derive(Debug, Serialize)]
struct Wrong {
    id: Arc<str>,
    error: String,
}

impl Discovery {
    /// Brings the set to each list of the source, as long as the future is polled.
    pub(crate) fn follow(
        source: Source<'_>,
        backends: &Backends,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let make = backends.maker();
        let make = move |target: &Target| make.endpoint(target);
        let endpoints = &backends.endpoints;
        let follower = match source {
            Source::File(path) => endpoints.follow(TargetFile::new(path), make),
            Source::Dns(host, port) => endpoints.follow(Dns::host(host, port), make),
            Source::Srv(name) => endpoints.follow(Dns::service(name), make),
        };
        let follower = follower.prepare(name);
        let found = Self {
            source: source.to_string(),
            seen: follower.watch(),
        };
        let told = found.clone().tell();
        let both = async move {
            tokio::join!(follower, told);
        };
        (found, both)
    }

    /// Waits for the first list, or for the first failure.
    pub(crate) async fn first(&self) {
        let mut seen = self.seen.clone();
        // Nobody follows any more.
        let _ended = seen.wait_for(|it| it.lists + it.errors > 0).await;
    }

    pub(crate) fn status(&self) -> Status {
        let seen = self.seen.borrow();
        let date = |at: tokio::time::Instant| {
            let age = now().saturating_duration_since(at);
            rfc3339(wall_clock() - age)
        };
        let wrong = seen.changes.failed.iter().map(|(id, error)| Wrong {
            id: id.clone(),
            error: config::told(&**error),
        });
        Status {
            source: self.source.clone(),
            backends: seen.targets,
            lists: seen.lists,
            last_list: seen.listed_at.map(date),
            errors: seen.errors,
            last_error: seen.failed_at.map(date),
            error: seen.error.as_deref().map(|error| config::told(error)),
            taken: seen.changes.taken.clone(),
            wrong: wrong.collect(),
        }
    }

    /// Logs what comes of it.
    async fn tell(mut self) {
        let mut told = discover::Discovery::default();
        while self.seen.changed().await.is_ok() {
            let seen = self.seen.borrow_and_update().clone();
            let source = &self.source;
            if seen.lists > told.lists && !seen.changes.is_empty() {
                let changes = &seen.changes;
                tracing::info!(
                    source,
                    added = ?changes.added,
                    removed = ?changes.removed,
                    changed = ?changes.changed,
                    replaced = ?changes.replaced,
                    "backends were found"
                );
            }
            if let Some(error) = seen.error.as_deref().filter(|_| seen.errors > told.errors) {
                let error = config::told(error);
                tracing::warn!(source, error, "the last good list of backends stays");
            }
            for id in &seen.changes.taken {
                if !told.changes.taken.contains(id) {
                    tracing::warn!(source, %id, "left out: there is a backend of this name");
                }
            }
            told = seen;
        }
    }
}

/// Where only a URL is said, the name is what it is for a backend that was named by hand.
fn name(targets: &mut Vec<Target>) {
    for target in targets {
        if target.name == target.address {
            let name = config::Backend::new(&*target.address).name().to_owned();
            if !name.is_empty() {
                target.name = name.into();
            }
        }
    }
}
