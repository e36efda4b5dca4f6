//! One server: its connection, and whether it is asked.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use palisade_core::time::now;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, RedisError, RedisResult,
    ServerErrorKind, Value, aio::MultiplexedConnection,
};
use tokio::{
    sync::Notify,
    time::{Instant, error::Elapsed, sleep, timeout, timeout_at},
};

use super::{
    breaker::{Breaker, Why},
    script,
    tally::Tally,
};
use crate::error::StoreError;

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Miss {
    /// It is not asked now.
    Down,
    TimedOut,
    /// The connection broke, so that nobody knows what was done.
    Lost(Arc<str>),
    /// An error, and nothing was done.
    Refused(Arc<str>),
    /// Nothing was done, for want of the script.
    NoScript,
    /// Nothing was done: another has the key.
    Moved(String),
    /// Nothing was done: another has the key, which is on its way there.
    Ask(String),
}

impl Miss {
    /// Whether what was asked for may have been done.
    pub(super) fn is_unclear(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Lost(_))
    }
}

impl From<Miss> for StoreError {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::Down => Self::Down,
            Miss::TimedOut => Self::TimedOut,
            Miss::Lost(what) | Miss::Refused(what) => Self::Failed(what),
            Miss::NoScript => Self::Failed("a script is not kept".into()),
            Miss::Moved(to) | Miss::Ask(to) => Self::Failed(format!("the key is at {to}").into()),
        }
    }
}

/// Times that all servers of a store are given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// For a step of connecting.
    pub(super) connect: Duration,
    /// For an answer to the upkeep.
    pub(super) deadline: Duration,
    /// Between two looks at a connection that nobody uses.
    pub(super) heartbeat: Duration,
}

pub(super) struct Node {
    /// As other servers call it: host and port.
    pub(super) address: String,
    client: Client,
    timing: Timing,
    /// There while the server is asked.
    wire: ArcSwapOption<MultiplexedConnection>,
    health: Mutex<Health>,
    /// A key of its own, to find out whether it can be written.
    probe: ArcSwap<String>,
    /// Rung when the wire was taken away.
    bell: Notify,
    retired: AtomicBool,
    tally: Arc<Tally>,
}

struct Health {
    breaker: Breaker,
    why: Why,
}

impl Node {
    pub(super) fn new(
        address: String,
        client: Client,
        timing: Timing,
        probe: String,
        tally: Arc<Tally>,
    ) -> Self {
        Self {
            address,
            client,
            timing,
            wire: ArcSwapOption::empty(),
            health: Mutex::new(Health {
                breaker: Breaker::new(now()),
                why: Why::New,
            }),
            probe: ArcSwap::from_pointee(probe),
            bell: Notify::new(),
            retired: AtomicBool::new(false),
            tally,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.wire.load().is_some()
    }

    /// Sends a command once.
    pub(super) async fn send(&self, command: &Cmd, until: Instant) -> Result<Value, Miss> {
        let wire = self.wire.load_full().ok_or(Miss::Down)?;
        let mut connection = (*wire).clone();
        let reply = timeout_at(until, connection.send_packed_command(command)).await;
        self.judge(
            &wire,
            reply.map(|reply| reply.and_then(Value::extract_error)),
        )
    }

    /// Sends a command once, for a key that is on its way to this server.
    pub(super) async fn send_asking(&self, command: &Cmd, until: Instant) -> Result<Value, Miss> {
        let wire = self.wire.load_full().ok_or(Miss::Down)?;
        let mut connection = (*wire).clone();
        let mut both = Pipeline::with_capacity(2);
        both.cmd("ASKING").add_command(command.clone());
        let replies = timeout_at(until, connection.send_packed_commands(&both, 1, 1)).await;
        let last = |mut replies: Vec<Value>| replies.pop().unwrap_or(Value::Nil).extract_error();
        self.judge(&wire, replies.map(|replies| replies.and_then(last)))
    }

    /// Keeps the server connected and finds out when it works again; ends when it has been retired.
    pub(super) async fn tend(self: Arc<Self>) {
        while !self.retired.load(Relaxed) {
            let wait = {
                let Health { breaker, why } = &mut *self.health();
                breaker.wait(*why, now(), rand::random())
            };
            sleep(wait).await;
            match self.connect().await {
                Ok(wire) => self.rise(wire),
                Err(what) => {
                    self.tally.failed(&what);
                    self.health().why = Why::Unreached;
                    continue;
                }
            }
            while self.is_up() && !self.retired.load(Relaxed) {
                tokio::select! {
                    () = self.bell.notified() => {}
                    () = sleep(self.timing.heartbeat) => {
                        // What comes of it is what every answer is judged by.
                        let _ = self.send(&self.probe(), now() + self.timing.deadline).await;
                    }
                }
            }
        }
        self.fall(None, Why::New);
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Relaxed);
        self.fall(None, Why::New);
    }

    pub(super) fn probe_with(&self, key: String) {
        self.probe.store(Arc::new(key));
    }

    /// Written, so that a server that only reads or has no memory left is found out; lost soon, and worth nothing.
    fn probe(&self) -> Cmd {
        let mut probe = redis::cmd("SET");
        probe.arg(&**self.probe.load()).arg(1).arg("PX").arg(1000);
        probe
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Arc<str>> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(1024);
        let connecting = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let late = |_: Elapsed| Arc::from("no answer in time");
        let connecting = timeout(self.timing.connect, connecting)
            .await
            .map_err(late)?;
        let mut wire = connecting.map_err(|error| words(&error))?;

        let mut setup = Pipeline::new();
        for script in script::all() {
            setup.cmd("SCRIPT").arg("LOAD").arg(&script.code);
        }
        setup.add_command(self.probe());
        let scripts = script::all().count();
        let ready = wire.send_packed_commands(&setup, scripts, 1);
        let ready = timeout(self.timing.connect, ready).await.map_err(late)?;
        let probed = ready.and_then(|mut replies| {
            // Who may not load a script ahead may still send it whole.
            replies.pop().unwrap_or(Value::Nil).extract_error()
        });
        match probed {
            Err(error) if !is_redirect(&error) => Err(words(&error)),
            _ => Ok(wire),
        }
    }

    fn judge(
        &self,
        wire: &Arc<MultiplexedConnection>,
        reply: Result<RedisResult<Value>, Elapsed>,
    ) -> Result<Value, Miss> {
        match reply {
            Ok(Ok(value)) => {
                self.succeeded(wire);
                Ok(value)
            }
            Ok(Err(error)) => Err(self.missed(wire, &error)),
            Err(_) => {
                self.tally.timed_out();
                self.failed(wire);
                Err(Miss::TimedOut)
            }
        }
    }

    fn missed(&self, wire: &Arc<MultiplexedConnection>, error: &RedisError) -> Miss {
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.succeeded(wire);
                return Miss::NoScript;
            }
            ErrorKind::Server(kind @ (ServerErrorKind::Moved | ServerErrorKind::Ask)) => {
                self.succeeded(wire);
                let to = error.redirect_node().map_or("", |(to, _)| to);
                let to = self.beside(to);
                return match kind {
                    ServerErrorKind::Moved => Miss::Moved(to),
                    _ => Miss::Ask(to),
                };
            }
            _ => {}
        }
        let what = words(error);
        self.tally.failed(&what);
        // A server that has become a replica has a successor, which a new connection may find.
        let reads_only = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
        let is_lost = error.is_io_error() || error.is_unrecoverable_error();
        if is_lost || reads_only {
            self.fall(Some(wire), Why::Lost);
        } else {
            self.failed(wire);
        }
        if is_lost {
            Miss::Lost(what)
        } else {
            Miss::Refused(what)
        }
    }

    /// An address as this server says it, which may leave out a host that is its own.
    fn beside(&self, address: &str) -> String {
        match address.strip_prefix(':') {
            Some(port) => {
                let host = self.address.rsplit_once(':').map_or("", |(host, _)| host);
                format!("{host}:{port}")
            }
            None => address.to_owned(),
        }
    }

    fn succeeded(&self, wire: &Arc<MultiplexedConnection>) {
        let mut health = self.health();
        if self.is_current(wire) {
            health.breaker.succeeded(now());
        }
    }

    fn failed(&self, wire: &Arc<MultiplexedConnection>) {
        let mut health = self.health();
        let trips = self.is_current(wire) && health.breaker.failed(now());
        drop(health);
        if trips {
            self.fall(Some(wire), Why::Tripped);
        }
    }

    fn rise(&self, wire: MultiplexedConnection) {
        let mut health = self.health();
        health.breaker.close(now());
        self.wire.store(Some(Arc::new(wire)));
        self.tally.rose();
    }

    /// Takes the wire away, and with it all who would ask; those who have asked wait for their deadlines.
    fn fall(&self, wire: Option<&Arc<MultiplexedConnection>>, why: Why) {
        let mut health = self.health();
        if wire.is_some_and(|wire| !self.is_current(wire)) || !self.is_up() {
            return;
        }
        health.why = why;
        self.wire.store(None);
        self.tally.fell();
        drop(health);
        if why == Why::Tripped {
            self.tally.tripped();
        }
        self.bell.notify_one();
    }

    fn is_current(&self, wire: &Arc<MultiplexedConnection>) -> bool {
        let current = self.wire.load();
        current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, wire))
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("address", &self.address)
            .field("is_up", &self.is_up())
            .finish_non_exhaustive()
    }
}

fn is_redirect(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask)
    )
}

/// What the server or the connection said, without what it was sent: of a command that it does not know a server
/// repeats the arguments, and a password may be one.
pub(super) fn words(error: &RedisError) -> Arc<str> {
    let said = error.to_string();
    match said.split_once(", with args") {
        Some((said, _)) => said.into(),
        None => said.into(),
    }
}
