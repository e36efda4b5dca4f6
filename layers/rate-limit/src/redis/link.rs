//! All servers of a store: one, or those of a cluster and which keys each has.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::{StreamExt, stream::FuturesUnordered};
use palisade_core::time::now;
use redis::{Client, Cmd, ConnectionAddr, ConnectionInfo, Value};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, timeout},
};

use super::{
    config::{RedisConfig, RedisConfigError},
    node::{Miss, Node, Timing},
    script::Script,
    slots::{self, SLOTS},
    tally::Tally,
};

/// A step from server to server each, none of which has run anything.
const STEPS: usize = 4;

/// Between two looks at which server has which keys, while nothing says that this has changed.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// While something says so, and at most while nobody knows.
const LOOK_SOON: Duration = Duration::from_millis(100);
const LOOK_LATE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Link {
    map: ArcSwap<Map>,
    /// Where a cluster is found; none for a single server.
    seeds: Vec<ConnectionInfo>,
    /// Of the probes.
    prefix: Arc<str>,
    timing: Timing,
    /// Rung when a server says that another has the keys.
    bell: Notify,
    tally: Arc<Tally>,
}

#[derive(Debug, Default)]
struct Map {
    nodes: Vec<Arc<Node>>,
    /// Which of the nodes has it, by slot; empty for a single server, which has all.
    slots: Vec<u16>,
}

impl Map {
    fn node(&self, slot: u16) -> Option<&Arc<Node>> {
        let at = match self.slots.get(usize::from(slot)) {
            Some(&at) => at.into(),
            None => 0,
        };
        self.nodes.get(at)
    }

    /// Slots that nobody has.
    fn missing(&self) -> usize {
        self.slots.iter().filter(|at| **at == u16::MAX).count()
    }

    fn at(&self, address: &str) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|node| node.address == address)
    }
}

impl Link {
    pub(super) fn new(
        config: RedisConfig,
        timing: Timing,
        tally: Arc<Tally>,
    ) -> Result<Self, RedisConfigError> {
        let mut servers = config.servers()?;
        let mut map = Map::default();
        if !config.is_cluster {
            for info in servers.drain(..) {
                let address = info.addr().to_string();
                let client = Client::open(info).map_err(|_| RedisConfigError::Settings)?;
                let probe = format!("{}:{{probe}}", config.prefix);
                let node = Node::new(address, client, timing, probe, tally.clone());
                map.nodes.push(Arc::new(node));
            }
        }
        Ok(Self {
            map: ArcSwap::from_pointee(map),
            seeds: servers,
            prefix: config.prefix,
            timing,
            bell: Notify::new(),
            tally,
        })
    }

    pub(super) fn is_cluster(&self) -> bool {
        !self.seeds.is_empty()
    }

    /// Runs a script once, where its keys are. Sends it again only when nothing has run.
    pub(super) async fn run(
        &self,
        script: &Script,
        keys: &[Vec<u8>],
        arguments: &[&[u8]],
        until: Instant,
    ) -> Result<Value, Miss> {
        let slot = match keys {
            [first, ..] if self.is_cluster() => slots::of(first),
            _ => 0,
        };
        let mut node = self.map.load().node(slot).ok_or(Miss::Down)?.clone();
        let (mut whole, mut asking) = (false, false);
        let mut miss = Miss::Down;
        for _ in 0..STEPS {
            let command = command(script, whole, keys, arguments);
            let reply = match asking {
                true => node.send_asking(&command, until).await,
                false => node.send(&command, until).await,
            };
            miss = match reply {
                Ok(value) => return Ok(value),
                Err(miss) => miss,
            };
            match &miss {
                Miss::NoScript => whole = true,
                Miss::Moved(to) | Miss::Ask(to) => {
                    asking = matches!(miss, Miss::Ask(_));
                    if !asking {
                        self.bell.notify_one();
                    }
                    whole = false;
                    let Some(next) = self.map.load().at(to).cloned() else {
                        break;
                    };
                    node = next;
                }
                _ => break,
            }
        }
        Err(miss)
    }

    /// Keeps all servers connected, and of a cluster finds out which there are. Never ends.
    pub(super) async fn tend(&self) {
        let (found, mut nodes) = mpsc::unbounded_channel();
        for node in &self.map.load().nodes {
            let _ = found.send(node.clone());
        }
        let tend_nodes = async {
            let mut tended = FuturesUnordered::new();
            loop {
                tokio::select! {
                    Some(()) = tended.next() => {}
                    Some(node) = nodes.recv() => tended.push(Node::tend(node)),
                    else => return,
                }
            }
        };
        tokio::join!(tend_nodes, self.explore(found));
    }

    /// Nobody tends them any more.
    pub(super) fn abandon(&self) {
        for node in &self.map.load().nodes {
            node.retire();
        }
    }

    async fn explore(&self, found: mpsc::UnboundedSender<Arc<Node>>) {
        if !self.is_cluster() {
            return std::future::pending().await;
        }
        let mut wait = LOOK_SOON;
        loop {
            let mut is_whole = false;
            if let Some(map) = self.look().await {
                is_whole = map.missing() == 0;
                self.follow(map, &found);
            }
            wait = match is_whole {
                true => LOOK_SOON,
                false => (wait * 2).min(LOOK_LATE),
            };
            // Many say it at once, while it goes on.
            sleep(wait).await;
            if is_whole {
                tokio::select! {
                    () = sleep(LOOK_EVERY) => {}
                    () = self.bell.notified() => {}
                    () = self.a_node_is_down() => {}
                }
            }
        }
    }

    async fn a_node_is_down(&self) {
        loop {
            sleep(self.timing.heartbeat).await;
            if self.map.load().nodes.iter().any(|node| !node.is_up()) {
                return;
            }
        }
    }

    /// Asks whoever knows which server has which slots, until one knows of all. One that has left the cluster, or has not
    /// joined it yet, knows of none.
    async fn look(&self) -> Option<Map> {
        let mut most: Option<Map> = None;
        let mut hear = |map: Option<Map>| {
            let Some(map) = map.filter(|map| !map.nodes.is_empty()) else {
                return false;
            };
            let missing = map.missing();
            if most.as_ref().is_none_or(|most| missing < most.missing()) {
                most = Some(map);
            }
            missing == 0
        };
        let mut question = redis::cmd("CLUSTER");
        question.arg("SLOTS");
        for node in &self.map.load_full().nodes {
            let until = now() + self.timing.connect;
            if let Ok(value) = node.send(&question, until).await
                && hear(self.map_of(&value, &node.address))
            {
                return most;
            }
        }
        for seed in &self.seeds {
            let asked = timeout(self.timing.connect, async {
                let client = Client::open(seed.clone())?;
                let mut wire = client.get_multiplexed_async_connection().await?;
                wire.send_packed_command(&question).await?.extract_error()
            });
            match asked.await {
                Ok(Ok(value)) => {
                    if hear(self.map_of(&value, &seed.addr().to_string())) {
                        return most;
                    }
                }
                Ok(Err(error)) => self.tally.failed(&super::node::words(&error)),
                Err(_) => self.tally.failed(&"no answer in time".into()),
            }
        }
        most
    }

    /// The map that a server at `address` draws, with the nodes that are known already.
    fn map_of(&self, value: &Value, address: &str) -> Option<Map> {
        let known = self.map.load();
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let mut map = Map {
            nodes: Vec::new(),
            slots: vec![u16::MAX; usize::from(SLOTS)],
        };
        for range in slots::ranges(value, host)? {
            let at = match map
                .nodes
                .iter()
                .position(|node| node.address == range.address)
            {
                Some(at) => at,
                None => {
                    let node = match known.at(&range.address) {
                        Some(node) => node.clone(),
                        None => Arc::new(self.node(&range)?),
                    };
                    node.probe_with(slots::probe(&self.prefix, range.first, range.last));
                    map.nodes.push(node);
                    map.nodes.len() - 1
                }
            };
            let slots = usize::from(range.first)..=usize::from(range.last);
            map.slots.get_mut(slots)?.fill(u16::try_from(at).ok()?);
        }
        Some(map)
    }

    fn node(&self, range: &slots::Range) -> Option<Node> {
        let seed = self.seeds.first()?;
        let (host, port) = (range.host.clone(), range.port);
        let addr = match seed.addr() {
            ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        let client = Client::open(seed.clone().set_addr(addr)).ok()?;
        let probe = slots::probe(&self.prefix, range.first, range.last);
        let address = range.address.clone();
        Some(Node::new(
            address,
            client,
            self.timing,
            probe,
            self.tally.clone(),
        ))
    }

    /// Asks by another map from now on.
    fn follow(&self, map: Map, found: &mpsc::UnboundedSender<Arc<Node>>) {
        let map = Arc::new(map);
        let before = self.map.swap(map.clone());
        for node in &map.nodes {
            if before.at(&node.address).is_none() {
                let _ = found.send(node.clone());
            }
        }
        for node in &before.nodes {
            if map.at(&node.address).is_none() {
                node.retire();
            }
        }
    }
}

fn command(script: &Script, whole: bool, keys: &[Vec<u8>], arguments: &[&[u8]]) -> Cmd {
    let mut command = match whole {
        true => redis::cmd("EVAL"),
        false => redis::cmd("EVALSHA"),
    };
    command.arg(if whole { &script.code } else { &script.hash });
    command.arg(keys.len());
    for key in keys {
        command.arg(&key[..]);
    }
    for argument in arguments {
        command.arg(*argument);
    }
    command
}
