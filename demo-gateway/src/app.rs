//! What all requests share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use palisade::{BoxError, deadline::TimeoutHeader, rate_limit::RedisStore};

use crate::{
    backends::Backends,
    config::Config,
    discovery::Discovery,
    identity::Identities,
    limits::Limits,
    metrics::{Account, Meters},
    stack::Stack,
};

/// What all requests share.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) admin_token: String,
    pub(crate) identities: Identities,
    pub(crate) backends: Backends,
    /// Where more backends come from.
    pub(crate) discovery: Option<Discovery>,
    pub(crate) stack: Stack,
    /// In which callers say how long they wait.
    pub(crate) told: TimeoutHeader,
    /// How many threads serve connections.
    pub(crate) workers: usize,
    pub(crate) meters: Arc<Meters>,
    draining: AtomicBool,
}

impl App {
    /// Expects a configuration without mistakes.
    pub(crate) fn new(
        config: Config,
        admin_token: String,
        store: Option<RedisStore>,
    ) -> Result<Self, BoxError> {
        let identities = Identities::new(&config);
        let limits = Limits::new(&config, &identities, store)?;
        let meters = Arc::new(Meters::new());
        let backends = Backends::new(&config);
        let account = Account::new(meters.clone());
        Ok(Self {
            workers: backends.workers(),
            stack: Stack::new(&config, &backends, account, limits)?,
            told: config.timeouts.told(),
            identities,
            draining: AtomicBool::new(false),
            admin_token,
            backends,
            discovery: None,
            meters,
            config,
        })
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
}
