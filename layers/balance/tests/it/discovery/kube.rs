//! The client of kube against a small API server that lists and watches as the real one does, on a real clock.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use kube::{Client, Config};
use palisade_balance::{
    Endpoints,
    discover::{
        Discovery, Target,
        kube::{EndpointSlices, NoSuchPort},
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use super::{World, serving, until};
use crate::support::{Fake, MS, balance, load};

/// What the API server keeps: the slices, and the changes that it still remembers.
#[derive(Clone)]
struct Cluster(Arc<watch::Sender<State>>);

#[derive(Default)]
struct State {
    version: u64,
    slices: BTreeMap<String, Value>,
    log: Vec<(u64, &'static str, Value)>,
    /// Versions before this one are forgotten.
    oldest: u64,
    /// Ends all watches that were opened before.
    epoch: u64,
    /// Answers with this status instead, or with 0 not at all.
    status: Option<u16>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Cluster {
    fn change(&self, kind: &'static str, name: &str, mut slice: Value) {
        self.0.send_modify(|state| {
            state.version += 1;
            slice["kind"] = json!("EndpointSlice");
            slice["apiVersion"] = json!("discovery.k8s.io/v1");
            slice["metadata"] = json!({
                "name": name,
                "namespace": "default",
                "resourceVersion": state.version.to_string(),
                "labels": {"kubernetes.io/service-name": "backend"},
            });
            if kind == "DELETED" {
                state.slices.remove(name);
            } else {
                state.slices.insert(name.to_owned(), slice.clone());
            }
            state.log.push((state.version, kind, slice));
        });
    }

    /// Only moves the version: something else in the cluster has changed.
    fn bookmark(&self) -> u64 {
        self.0.send_modify(|state| {
            state.version += 1;
            let metadata = json!({"resourceVersion": state.version.to_string()});
            let object = json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata});
            state.log.push((state.version, "BOOKMARK", object));
        });
        self.0.borrow().version
    }

    fn disconnect(&self) {
        self.0.send_modify(|state| state.epoch += 1);
    }

    fn forget(&self) {
        self.0.send_modify(|state| state.oldest = state.version);
    }

    fn status(&self, status: Option<u16>) {
        self.0.send_modify(|state| {
            state.status = status;
            state.epoch += 1;
        });
    }

    fn asked(&self, what: &str) -> usize {
        let state = self.0.borrow();
        let asked = state.asked.lock().unwrap();
        asked.iter().filter(|line| line.contains(what)).count()
    }

    async fn until_asked(&self, what: &str, times: usize) {
        let mut state = self.0.subscribe();
        state.wait_for(|_| self.asked(what) >= times).await.unwrap();
    }

    async fn serve(self, mut stream: TcpStream) -> Result<Infallible, std::io::Error> {
        let mut buffer = Vec::new();
        loop {
            while !buffer.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            let head = String::from_utf8(std::mem::take(&mut buffer)).unwrap();
            let path = head.split(' ').nth(1).unwrap().to_owned();
            self.0
                .send_modify(|state| state.asked.lock().unwrap().push(path.clone()));
            assert!(
                path.starts_with("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?"),
                "{path}"
            );
            assert!(
                path.contains("labelSelector=kubernetes.io%2Fservice-name%3Dbackend"),
                "{path}"
            );
            let status = self.0.borrow().status;
            if status == Some(0) {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            if let Some(status) = status {
                let object = failure(status);
                respond(&mut stream, status, &object).await?;
            } else if path.contains("watch=true") {
                self.watch(&mut stream, &path).await?;
            } else {
                let list = {
                    let state = self.0.borrow();
                    json!({
                        "kind": "EndpointSliceList",
                        "apiVersion": "discovery.k8s.io/v1",
                        "metadata": {"resourceVersion": state.version.to_string()},
                        "items": state.slices.values().collect::<Vec<_>>(),
                    })
                };
                respond(&mut stream, 200, &list).await?;
            }
        }
    }

    /// Lines of events in chunks, until the client is disconnected.
    async fn watch(&self, stream: &mut TcpStream, path: &str) -> std::io::Result<()> {
        let (_, from) = path.split_once("resourceVersion=").unwrap();
        let from = from.split('&').next().unwrap().parse::<u64>().unwrap();
        let mut state = self.0.subscribe();
        let epoch = state.borrow().epoch;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").await?;
        let mut sent = from;
        loop {
            let (lines, over) = {
                let state = state.borrow_and_update();
                let mut lines = String::new();
                let gone = from < state.oldest;
                if gone {
                    writeln!(
                        lines,
                        "{}",
                        json!({"type": "ERROR", "object": failure(410)})
                    )
                    .unwrap();
                }
                for (version, kind, object) in &state.log {
                    if !gone && *version > sent {
                        writeln!(lines, "{}", json!({"type": kind, "object": object})).unwrap();
                        sent = *version;
                    }
                }
                (lines, gone || state.epoch != epoch)
            };
            // In two chunks, which need not end where lines do.
            let (one, two) = lines.split_at(lines.len() / 2);
            for part in [one, two] {
                if !part.is_empty() {
                    let chunk = format!("{:x}\r\n{part}\r\n", part.len());
                    stream.write_all(chunk.as_bytes()).await?;
                }
            }
            if over {
                return stream.write_all(b"0\r\n\r\n").await;
            }
            state.changed().await.unwrap();
        }
    }
}

fn failure(status: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "as told", "reason": "Told", "code": status})
}

async fn respond(stream: &mut TcpStream, status: u16, object: &Value) -> std::io::Result<()> {
    let body = object.to_string();
    let head = format!(
        "HTTP/1.1 {status} Told\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await
}

struct Server {
    cluster: Cluster,
    address: SocketAddr,
    running: AbortHandle,
}

impl Server {
    async fn start() -> Self {
        let cluster = Cluster(Arc::new(watch::channel(State::default()).0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serves = cluster.clone();
        let running = tokio::spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                clients.spawn(serves.clone().serve(stream));
            }
        });
        Self {
            cluster,
            address,
            running: running.abort_handle(),
        }
    }

    fn slices(&self) -> EndpointSlices {
        let config = Config::new(format!("http://{}", self.address).parse().unwrap());
        EndpointSlices::new(Client::try_from(config).unwrap(), "default", "backend")
    }

    fn follow(&self, endpoints: &Endpoints<Fake>) -> watch::Receiver<Discovery> {
        let follower = endpoints.follow(self.slices().port("http"), World::default().make());
        let seen = follower.watch();
        tokio::spawn(follower);
        seen
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn pod(name: &str, ready: bool, serving: bool, terminating: bool) -> Value {
    let last = name.bytes().last().unwrap();
    json!({
        "addresses": [format!("10.0.0.{last}")],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "nodeName": "node-1",
        "zone": "eu-1a",
        "targetRef": {"kind": "Pod", "name": name, "namespace": "default"},
    })
}

fn slice(pods: &[Value]) -> Value {
    json!({"addressType": "IPv4", "endpoints": pods, "ports": [
        {"name": "metrics", "port": 9100, "protocol": "TCP"},
        {"name": "http", "port": 8080, "protocol": "TCP"},
    ]})
}

fn ready(names: &[&str]) -> Value {
    let pods: Vec<_> = names
        .iter()
        .map(|name| pod(name, true, true, false))
        .collect();
    slice(&pods)
}

/// By what they serve: several changes may come as one list.
async fn until_serving(
    endpoints: &Endpoints<Fake>,
    seen: &mut watch::Receiver<Discovery>,
    names: &[&str],
) {
    until(seen, |_| serving(endpoints) == names).await;
}

#[tokio::test]
async fn the_set_follows_the_slices_of_the_service() {
    let (server, endpoints) = (Server::start().await, Endpoints::default());
    let cluster = &server.cluster;
    cluster.change("ADDED", "s1", ready(&["a", "b"]));
    cluster.change("ADDED", "s2", ready(&["c"]));
    let mut seen = server.follow(&endpoints);
    until_serving(&endpoints, &mut seen, &["a", "b", "c"]).await;
    cluster.change("ADDED", "s3", ready(&["d"]));
    until_serving(&endpoints, &mut seen, &["a", "b", "c", "d"]).await;
    let leaving = pod("a", false, true, true);
    cluster.change(
        "MODIFIED",
        "s1",
        slice(&[leaving, pod("b", true, true, false)]),
    );
    until_serving(&endpoints, &mut seen, &["b", "c", "d"]).await;
    assert_eq!(endpoints.len(), 4, "a drains");
    cluster.change("DELETED", "s2", ready(&["c"]));
    cluster.change("MODIFIED", "s1", ready(&["b"]));
    until_serving(&endpoints, &mut seen, &["b", "d"]).await;
    cluster.change("DELETED", "s1", ready(&[]));
    cluster.change("DELETED", "s3", ready(&[]));
    until_serving(&endpoints, &mut seen, &[]).await;
    assert_eq!(
        (seen.borrow().errors, seen.borrow().error.is_none()),
        (0, true)
    );
    assert_eq!(cluster.asked("watch=true"), 1);
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_from_the_last_bookmark() {
    let (server, endpoints) = (Server::start().await, Endpoints::default());
    let cluster = &server.cluster;
    cluster.change("ADDED", "s1", ready(&["a"]));
    let mut seen = server.follow(&endpoints);
    until_serving(&endpoints, &mut seen, &["a"]).await;
    cluster.until_asked("watch=true", 1).await;
    let version = cluster.bookmark();
    // What comes before the bookmark in the log is not sent again.
    cluster.disconnect();
    cluster
        .until_asked(&format!("resourceVersion={version}"), 1)
        .await;
    cluster.change("MODIFIED", "s1", ready(&["a", "b"]));
    until_serving(&endpoints, &mut seen, &["a", "b"]).await;
    let lists = cluster.asked("endpointslices") - cluster.asked("watch=true");
    assert_eq!((lists, seen.borrow().errors), (1, 0));
}

#[tokio::test]
async fn a_version_that_is_gone_is_no_error_and_the_new_list_counts() {
    let (server, endpoints) = (Server::start().await, Endpoints::default());
    let cluster = &server.cluster;
    cluster.change("ADDED", "s1", ready(&["a"]));
    cluster.change("ADDED", "s2", ready(&["b"]));
    let mut seen = server.follow(&endpoints);
    until_serving(&endpoints, &mut seen, &["a", "b"]).await;
    cluster.until_asked("watch=true", 1).await;
    // All in one step, so that the watch that is open does not see it.
    cluster.0.send_modify(|state| {
        state.epoch += 1;
        state.version += 10;
        state.oldest = state.version;
        state.slices.remove("s2");
    });
    until_serving(&endpoints, &mut seen, &["a"]).await;
    let lists = cluster.asked("endpointslices") - cluster.asked("watch=true");
    assert_eq!((lists, seen.borrow().errors), (2, 0));
    cluster.forget();
    cluster.change("MODIFIED", "s1", ready(&["a", "c"]));
    until_serving(&endpoints, &mut seen, &["a", "c"]).await;
}

#[tokio::test]
async fn a_server_that_fails_or_is_gone_keeps_the_last_list_and_no_request_is_lost() {
    let (server, endpoints) = (Server::start().await, Endpoints::default());
    server.cluster.status(Some(403));
    server.cluster.change("ADDED", "s1", ready(&["a", "b"]));
    let mut seen = server.follow(&endpoints);
    let refused = until(&mut seen, |seen| seen.failing >= 1).await;
    assert!(refused.error.unwrap().to_string().contains("as told"));
    server.cluster.status(None);
    until_serving(&endpoints, &mut seen, &["a", "b"]).await;
    let service = balance(&endpoints);
    let requests = tokio::spawn(async move { load(&service, 400, MS * 5).await });
    server.cluster.status(Some(500));
    until(&mut seen, |seen| seen.failing >= 1).await;
    assert_eq!(serving(&endpoints), ["a", "b"]);
    server.cluster.status(Some(0));
    server.cluster.change("MODIFIED", "s1", ready(&["b", "c"]));
    until(&mut seen, |seen| seen.failing >= 2).await;
    server.cluster.status(None);
    until_serving(&endpoints, &mut seen, &["b", "c"]).await;
    for pods in [["c", "d"], ["e", "f"], ["f", "g"]] {
        server.cluster.change("MODIFIED", "s1", ready(&pods));
        until_serving(&endpoints, &mut seen, &pods).await;
    }
    assert_eq!(requests.await.unwrap(), 0);
}

#[tokio::test]
async fn a_port_that_no_endpoint_has_is_told_and_changes_nothing() {
    let (server, endpoints) = (Server::start().await, Endpoints::<Fake>::default());
    server.cluster.change("ADDED", "s1", ready(&["a"]));
    let mut made = World::default().make();
    let addresses = Arc::new(Mutex::new(Vec::new()));
    let seen_addresses = addresses.clone();
    let make = move |target: &Target| {
        seen_addresses.lock().unwrap().push(target.clone());
        made(target)
    };
    let follower = endpoints.follow(server.slices().port("grpc"), make);
    let mut seen = follower.watch();
    tokio::spawn(follower);
    let told = until(&mut seen, |seen| seen.failing >= 1)
        .await
        .error
        .unwrap();
    assert!(told.is::<NoSuchPort>(), "{told}");
    let mut new = ready(&["a"]);
    new["ports"][1]["name"] = json!("grpc");
    server.cluster.change("MODIFIED", "s1", new);
    until_serving(&endpoints, &mut seen, &["a"]).await;
    let target = addresses.lock().unwrap()[0].clone();
    let expected = Target::new("10.0.0.97:8080")
        .named("a")
        .zone("eu-1a")
        .label("pod", "a")
        .label("node", "node-1");
    assert_eq!(target, expected);
}

#[tokio::test]
async fn a_source_that_is_dropped_while_it_waits_has_lost_nothing() {
    let server = Server::start().await;
    server.cluster.change("ADDED", "s1", ready(&["a"]));
    let mut slices = server.slices().port(80);
    let mut polls = 0;
    let targets = loop {
        let mut next =
            tokio_test::task::spawn(palisade_balance::discover::Source::next(&mut slices));
        match next.poll() {
            std::task::Poll::Ready(targets) => break targets.unwrap(),
            std::task::Poll::Pending => polls += 1,
        }
        drop(next);
        tokio::task::yield_now().await;
    };
    assert!(polls > 0);
    assert_eq!(targets.len(), 1);
}
