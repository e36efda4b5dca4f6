//! Redis servers of the tests' own.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use palisade_core::time::wall_clock;
use palisade_rate_limit::{RedisConfig, RedisStore, testing};
use redis::aio::MultiplexedConnection;
use tokio::time::{sleep, timeout};

/// A server on a free port of this machine, gone with its guard.
pub(crate) struct Server {
    guard: Child,
    pid: u32,
    pub(crate) port: u16,
    folder: PathBuf,
    arguments: Vec<String>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(arguments: &[&str]) -> Self {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.into()).collect();
        let folder = folder();
        // Another process may take the port before the server does.
        for _ in 0..5 {
            let port = free_port();
            if let Some((guard, pid)) = spawn(port, &folder, &arguments) {
                return Self {
                    guard,
                    pid,
                    port,
                    folder,
                    arguments,
                };
            }
        }
        panic!("redis-server does not start with {arguments:?}");
    }

    /// On this port, which is free.
    pub(crate) fn on(port: u16) -> Self {
        let folder = folder();
        let (guard, pid) = spawn(port, &folder, &[]).expect("the port is free");
        Self {
            guard,
            pid,
            port,
            folder,
            arguments: Vec::new(),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Stops answering, with all connections open.
    pub(crate) fn hang(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn go_on(&self) {
        self.signal("-CONT");
    }

    pub(crate) fn kill(&mut self) {
        drop(self.guard.stdin.take());
        self.guard.wait().unwrap();
    }

    /// On the same port, and empty.
    pub(crate) fn restart(&mut self) {
        let again = || spawn(self.port, &self.folder, &self.arguments);
        (self.guard, self.pid) = again().expect("the port is still free");
    }

    /// What `redis-cli` prints.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        cli(self.port, arguments)
    }

    fn signal(&self, signal: &str) {
        let pid = self.pid.to_string();
        let status = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn cli(port: u16, arguments: &[&str]) -> String {
    let mut cli = Command::new("redis-cli");
    cli.args(["-p", &port.to_string()]).args(arguments);
    let output = cli.output().expect(INSTALL);
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim_end().to_owned()
}

const INSTALL: &str = "the tests need a redis server: apt-get install redis-server";

/// Runs the server for as long as this process has the other end of its standard input, however it ends.
const GUARD: &str = r#"
exec 3<&0
redis-server "$@" 3<&- &
server=$!
echo $server
(cat <&3; kill -9 $server) >/dev/null 2>&1 &
wait $server
"#;

fn spawn(port: u16, folder: &Path, arguments: &[String]) -> Option<(Child, u32)> {
    let mut guard = Command::new("sh");
    guard.args(["-c", GUARD, "sh", "--bind", "127.0.0.1"]);
    guard.args([
        "--save",
        "",
        "--appendonly",
        "no",
        "--port",
        &port.to_string(),
        "--dir",
    ]);
    guard.arg(folder).args(arguments);
    guard
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = guard.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let pid = lines.next().unwrap().unwrap().parse().unwrap();
    let is_ready = lines.any(|line| line.is_ok_and(|line| line.contains("Ready to accept")));
    // It goes on writing, and must not find the pipe closed.
    std::thread::spawn(move || lines.for_each(drop));
    if !is_ready {
        let status = child.wait().unwrap();
        assert_ne!(status.code(), Some(127), "{INSTALL}");
        return None;
    }
    Some((child, pid))
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn folder() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!(
        "palisade-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Relaxed)
    );
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A store of this server, connected, and patient: a busy machine makes no decision late.
pub(crate) async fn store(server: &Server) -> RedisStore {
    patient(&server.url()).await
}

pub(crate) async fn patient(url: &str) -> RedisStore {
    let config = RedisConfig::new(url).unwrap();
    connected(config.deadline(Duration::from_secs(10))).await
}

pub(crate) async fn connected(config: RedisConfig) -> RedisStore {
    let (store, upkeep) = config.open().unwrap();
    tokio::spawn(upkeep);
    until(|| store.state().up).await;
    store
}

/// Waits until it is so.
pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    let is_so = async {
        while !is_so() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(30), is_so)
        .await
        .expect("it became so in half a minute");
}

/// For commands beside the store's.
pub(crate) async fn connection(server: &Server) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// All keys, with what they hold and when they expire; but for those of the store's own.
pub(crate) async fn dump(connection: &mut MultiplexedConnection) -> Vec<(String, Vec<u8>, i64)> {
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(connection)
        .await
        .unwrap();
    let mut dump = Vec::new();
    for key in keys {
        if key.contains("{probe}") || key.contains("{replicas}") {
            continue;
        }
        // One that expires meanwhile is gone.
        let bytes: Option<Vec<u8>> = redis::cmd("DUMP")
            .arg(&key)
            .query_async(connection)
            .await
            .unwrap();
        let ends = redis::cmd("PEXPIRETIME")
            .arg(&key)
            .query_async(connection)
            .await
            .unwrap();
        if let (Some(bytes), -1 | 1..) = (bytes, ends) {
            dump.push((key, bytes, ends));
        }
    }
    dump.sort();
    dump
}

pub(crate) async fn refused(store: &RedisStore, asks: &[testing::Ask]) -> bool {
    let answers = testing::take(store, asks).await.unwrap();
    answers.iter().any(|answer| answer.full.is_some())
}

/// About an hour, and not over within the next two minutes.
pub(crate) fn window() -> u64 {
    const MINUTE: u64 = 60_000_000_000;
    let since = wall_clock().duration_since(std::time::UNIX_EPOCH).unwrap();
    let left = |window: u64| window - since.as_nanos() as u64 % window;
    let mut windows = [60 * MINUTE, 61 * MINUTE, 67 * MINUTE].into_iter();
    windows.find(|&window| left(window) > 2 * MINUTE).unwrap()
}
