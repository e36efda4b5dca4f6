//! What all requests share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use palisade::{BoxError, deadline::TimeoutHeader, rate_limit::RedisStore};

use crate::{
    account::Account,
    backends::Backends,
    changes::Changes,
    config::Config,
    dashboard::Dashboard,
    discovery::Discovery,
    identity::Identities,
    limits::Limits,
    metrics::Meters,
    record::Observers,
    stack::{self, Stack},
    store::Store,
    verdict::Judge,
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
    /// What has changed lately.
    pub(crate) changes: Changes,
    /// The request log, unless it is off.
    pub(crate) store: Option<Store>,
    /// Who hears of each request that has ended.
    pub(crate) observers: Observers,
    /// What the page at `/` shows.
    pub(crate) dashboard: Arc<Dashboard>,
    /// Whether all is well.
    pub(crate) verdict: Judge,
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
        let meters = Arc::new(Meters::new(&config));
        let sla = stack::sla(&config, meters.clone())?;
        let backends = Backends::new(&config, sla.clone());
        let account = Account::new(meters.clone());
        let dashboard = Arc::new(Dashboard::new(limits.count() > 0));
        let mut observers = Observers::default();
        observers.add(dashboard.clone());
        Ok(Self {
            workers: backends.workers(),
            stack: Stack::new(&config, &backends, (account, sla), limits)?,
            told: config.timeouts.told(),
            identities,
            draining: AtomicBool::new(false),
            admin_token,
            backends,
            discovery: None,
            meters,
            changes: Changes::default(),
            store: None,
            observers,
            dashboard,
            verdict: Judge::default(),
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
