//! A gateway that runs.

use std::{error::Error, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use demo_backend::MockBackend;
use palisade::{
    BoxError,
    rate_limit::{RedisStore, Upkeep},
    time,
};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{AbortHandle, JoinHandle},
    time::{interval, sleep, timeout},
};

use crate::{
    access_log::AccessLog,
    alerts::Notifier,
    app::App,
    backends::NotAdded,
    config::{self, Backend, Config, Mistake, Switch, UserHeader, told},
    dashboard::Dashboard,
    discovery::Discovery,
    metrics, server, store,
    telemetry::spans,
    watcher,
    workers::Workers,
};

/// How often metrics of backends that are gone are let go, which otherwise happens at each scrape.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// How long a start waits for the store.
const LONGEST_CONNECT: Duration = Duration::from_millis(500);

/// Between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How long a start waits for backends that have to be found.
const LONGEST_SEARCH: Duration = Duration::from_secs(2);

/// How often a store that goes or comes is noticed.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// How long a shutdown waits for the last lines of the access log.
const LAST_LINES: Duration = Duration::from_secs(2);

/// How long a shutdown waits for what is left to settle.
const LAST_UPKEEP: Duration = Duration::from_secs(3);

/// A gateway that runs, in this process.
///
/// Dropped, it stops at once; [`shutdown`](Self::shutdown) lets requests end.
///
/// ```
/// use demo_gateway::{Config, Gateway};
///
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let config = Config {
///     listen: "127.0.0.1:0".into(),
///     embedded_backends: 1,
///     ..Config::default()
/// };
/// let gateway = Gateway::start(config).await?;
/// assert_ne!(gateway.addr().port(), 0);
/// assert_eq!(gateway.url(), format!("http://{}", gateway.addr()));
/// gateway.shutdown().await;
/// # Ok::<(), demo_gateway::StartError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Gateway {
    addr: SocketAddr,
    /// `None` only while it shuts down.
    app: Option<Arc<App>>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
    chores: Chores,
    /// What keeps the store up.
    upkeep: Option<JoinHandle<()>>,
    /// What keeps the request log going.
    log: Option<store::Running>,
    embedded: Vec<MockBackend>,
    access_log: Option<Arc<AccessLog>>,
}

impl Gateway {
    /// Starts one. Requests are answered when this returns.
    ///
    /// # Errors
    ///
    /// If the configuration has mistakes, or the address cannot be listened on.
    ///
    /// # Cancellation
    ///
    /// Dropped before it is done, it leaves nothing that runs.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let mistakes = config.check();
        if !mistakes.is_empty() {
            return Err(StartError::Config(mistakes));
        }
        // Before anything registers a metric.
        let recorder = metrics::recorder();
        let listener = TcpListener::bind(&config.listen).await;
        let listener =
            listener.map_err(|error| StartError::Listen(config.listen.clone(), error))?;
        let addr = listener
            .local_addr()
            .map_err(|error| StartError::Listen(config.listen.clone(), error))?;
        let token = config.admin_token.as_ref();
        let token = token.map_or_else(made_up_token, |token| token.reveal().into());
        if config.identity.user_header == UserHeader::Believe {
            tracing::warn!(
                "`X-User-ID` is believed from anybody: identity.user_header = \"believe\""
            );
        }
        let mut configured = config.backends.clone();
        let mut embedded = Vec::new();
        if configured.is_empty() && config.discovery.is_none() {
            for number in 1..=config.embedded_backends {
                let backend = embed(number).await.map_err(StartError::Embedded)?;
                configured.push(Backend {
                    id: Some(format!("embedded-{number}")),
                    ..Backend::new(backend.url())
                });
                embedded.push(backend);
            }
        }
        let (store, upkeep) = open_store(&config).map_err(StartError::Stack)?.unzip();
        let upkeep = upkeep.map(tokio::spawn);
        let mut app = App::new(config.clone(), token, store.clone()).map_err(StartError::Stack)?;
        let follow = match config
            .discovery
            .as_ref()
            .and_then(config::Discovery::source)
        {
            Some(source) => {
                let (found, follow) = Discovery::follow(source, &app.backends);
                app.discovery = Some(found);
                Some(follow)
            }
            None => None,
        };
        // Before lines are written, so that they say in which trace they are.
        if spans::are_kept() {
            app.observers.add(Arc::new(spans::Telling));
        }
        let access_log = AccessLog::open(&config.access_log)
            .map_err(|error| StartError::AccessLog(config.access_log.target.clone(), error))?;
        let access_log = access_log.map(Arc::new);
        if let Some(access_log) = &access_log {
            app.observers.add(access_log.clone());
        }
        let log = store::open(&config).await.map_err(StartError::Store)?;
        let log = log.map(|(store, observer, running)| {
            app.observers.add(observer);
            app.store = Some(store);
            running
        });
        let app = Arc::new(app);
        for backend in &configured {
            let added = app.backends.add(backend);
            added.map_err(|error| StartError::Stack(format!("{}: {error}", backend.url).into()))?;
        }
        let backends = &app.backends;
        let checks = backends.health_checks(&app.config);
        let mut chores = Chores::default();
        chores.spawn(checks.map_err(StartError::Stack)?);
        chores.spawn(backends.probes());
        chores.spawn(app.stack.sla.monitor());
        chores.spawn(Dashboard::watch(Arc::downgrade(&app)));
        if let (Some(follow), Some(found)) = (follow, &app.discovery) {
            chores.spawn(follow);
            // The first requests should find them.
            let _late = timeout(LONGEST_SEARCH, found.first()).await;
        }
        if let Some(recorder) = recorder {
            let app = app.clone();
            chores.spawn(async move {
                let mut ticks = interval(UPKEEP_EVERY);
                loop {
                    ticks.tick().await;
                    app.backends.publish();
                    recorder.sweep(time::now());
                }
            });
        }
        if let Some(store) = store {
            await_store(&store).await;
            chores.spawn(watch(store));
        }
        let notifier = match &app.config.notify {
            Some(notify) => {
                let url = format!("http://{addr}");
                let (notifier, sender) = Notifier::new(notify, url).map_err(StartError::Stack)?;
                chores.spawn(sender.run());
                Some(notifier)
            }
            None => None,
        };
        chores.spawn(watcher::watch(Arc::downgrade(&app), notifier));
        let workers = Workers::start(app.workers).map_err(StartError::Workers)?;
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(server::serve(listener, app.clone(), workers, stopped));
        Ok(Self {
            addr,
            app: Some(app),
            stop: Some(stop),
            server,
            chores,
            upkeep,
            log,
            embedded,
            access_log,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it listens, as a URL without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What `/admin` asks for.
    pub fn admin_token(&self) -> &str {
        &self.app().admin_token
    }

    /// The public id of an API key, as `/rate-limits/api_key:ID` takes it.
    pub fn public_id(&self, key: &str) -> String {
        self.app().identities.public_id(key)
    }

    /// The simulated backends that run inside.
    pub fn embedded_backends(&self) -> &[MockBackend] {
        &self.embedded
    }

    /// Where requests are logged, without a password; `None` when they are not.
    pub fn request_log(&self) -> Option<&str> {
        self.app().store.as_ref().map(|store| &*store.shown)
    }

    /// Requests between their admission and the end of their answer.
    pub fn in_flight(&self) -> u64 {
        self.app().stack.sla.in_flight()
    }

    /// Opens the file of the access log anew, which somebody may have moved away. No line is lost.
    pub fn reopen_logs(&self) {
        if let Some(access_log) = &self.access_log {
            access_log.reopen();
        }
    }

    fn app(&self) -> &App {
        self.app
            .as_ref()
            .expect("only taken by `shutdown`, which has `self`")
    }

    /// Says 503 at `/readyz` for `drain_delay`, then accepts no more, and waits for what is in flight as long as
    /// `server.shutdown_timeout`.
    pub async fn shutdown(mut self) {
        self.app().drain();
        sleep(self.app().config.drain_delay).await;
        // Whoever only watches is not waited for.
        self.app().dashboard.close();
        if let Some(stop) = self.stop.take() {
            // It only fails when the server has ended already.
            let _ended = stop.send(());
        }
        if let Err(error) = (&mut self.server).await {
            tracing::error!(%error, "the server failed");
        }
        if let Some(access_log) = &self.access_log {
            access_log.flush(LAST_LINES).await;
        }
        if let Some(log) = self.log.take() {
            log.close().await;
        }
        self.close_store().await;
        for backend in self.embedded.drain(..) {
            backend.stop().await;
        }
    }
}

impl Gateway {
    /// Settles what is left to settle, and leaves those that share the store.
    async fn close_store(&mut self) {
        self.chores = Chores::default();
        // The upkeep ends when nobody holds the store any more.
        self.app = None;
        if let Some(upkeep) = &mut self.upkeep
            && timeout(LAST_UPKEEP, upkeep).await.is_err()
        {
            tracing::warn!("gave up on the store, which took too long");
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.server.abort();
        if let Some(upkeep) = &self.upkeep {
            upkeep.abort();
        }
    }
}

/// What runs beside the requests. It ends when this is dropped, also by a start that fails or is given up.
#[derive(Default)]
struct Chores(Vec<AbortHandle>);

impl Chores {
    fn spawn<T: Send + 'static>(&mut self, chore: impl Future<Output = T> + Send + 'static) {
        self.0.push(tokio::spawn(chore).abort_handle());
    }
}

impl Drop for Chores {
    fn drop(&mut self) {
        for chore in &self.0 {
            chore.abort();
        }
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// A simulated backend. The third is slower, so that a balancer has something to find out.
async fn embed(number: usize) -> io::Result<MockBackend> {
    let slower = number == 3;
    MockBackend::builder()
        .id(format!("embedded-{number}"))
        .seed(number as u64)
        .first_token(Duration::from_millis(if slower { 150 } else { 30 }))
        .tokens_per_second(if slower { 200.0 } else { 2000.0 })
        // It would grow with every request.
        .recording(0)
        .start()
        .await
}

/// The store of the configuration, and what keeps it up.
fn open_store(config: &Config) -> Result<Option<(RedisStore, Upkeep)>, BoxError> {
    let is_limited = config.rate_limit != Switch::Off;
    let Some(redis) = config.redis.as_ref().filter(|_| is_limited) else {
        return Ok(None);
    };
    let store = redis.to_store(config.identity.secret.as_ref())?;
    Ok(Some(store.open()?))
}

/// Waits for a store that is there, so that the first requests are counted in it.
async fn await_store(store: &RedisStore) {
    let until = time::now() + LONGEST_CONNECT;
    while !store.state().up && time::now() < until {
        sleep(LOOK_AGAIN).await;
    }
}

/// Logs when the store goes and comes.
async fn watch(store: RedisStore) {
    let mut was_up = None;
    let mut ticks = interval(WATCH_EVERY);
    loop {
        ticks.tick().await;
        let state = store.state();
        if was_up.replace(state.up) == Some(state.up) {
            continue;
        }
        if state.up {
            tracing::info!("redis answers: limits are shared");
        } else {
            let last = state.last_error.as_deref().unwrap_or("it has not answered");
            tracing::warn!(last_error = %last, "redis does not answer: limits go on by `on_store_error`");
        }
    }
}

fn made_up_token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Why a gateway did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration has mistakes.
    Config(Vec<Mistake>),
    /// The address cannot be listened on.
    Listen(String, io::Error),
    /// A simulated backend did not start.
    Embedded(io::Error),
    /// The threads that serve connections did not start.
    Workers(io::Error),
    /// The access log cannot be written to.
    AccessLog(String, io::Error),
    /// The request log cannot be used as it is.
    Store(String),
    /// The layers could not be built.
    Stack(BoxError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(mistakes) => {
                f.write_str("the configuration has mistakes")?;
                for mistake in mistakes {
                    write!(f, "\n  {mistake}")?;
                }
                Ok(())
            }
            Self::Listen(address, _) => write!(f, "cannot listen on {address}"),
            Self::Embedded(_) => f.write_str("a simulated backend did not start"),
            Self::Workers(_) => f.write_str("a thread did not start"),
            Self::AccessLog(target, _) => write!(f, "cannot write the access log to {target}"),
            Self::Store(error) => write!(f, "the request log cannot be used: {error}"),
            Self::Stack(error) => write!(f, "the layers could not be built: {}", told(&**error)),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Listen(_, error)
            | Self::Embedded(error)
            | Self::Workers(error)
            | Self::AccessLog(_, error) => Some(error),
            Self::Config(_) | Self::Store(_) | Self::Stack(_) => None,
        }
    }
}

impl fmt::Display for NotAdded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists => f.write_str("there is a backend of that id already"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}
