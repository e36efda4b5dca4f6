//! A real resolver asks a small server over UDP, so time is real: a TTL is a second at least.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::{
        op::{Message, ResponseCode},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{A, AAAA, CNAME, SRV},
        },
    },
};
use palisade_balance::{
    Endpoints,
    discover::{
        Discovery, Empty, Target,
        dns::{Dns, Family},
    },
};
use palisade_core::time;
use tokio::{net::UdpSocket, sync::watch, task::AbortHandle, time::Instant};

use super::{World, serving, until};
use crate::support::{Fake, MS, balance, load};

#[derive(Clone, Default)]
struct Zone(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    records: HashMap<(String, RecordType), Vec<Record>>,
    /// Instead of any answer.
    says: Option<ResponseCode>,
    silent: bool,
    asked: Vec<(String, RecordType, Instant)>,
}

impl Zone {
    fn set(&self, name: &str, kind: RecordType, ttl: u32, all: impl IntoIterator<Item = RData>) {
        let owner = Name::from_ascii(name).unwrap();
        let records = all
            .into_iter()
            .map(|data| Record::from_rdata(owner.clone(), ttl, data));
        let mut state = self.0.lock().unwrap();
        state
            .records
            .insert((name.to_owned(), kind), records.collect());
    }

    fn v4(&self, name: &str, ttl: u32, last: &[u8]) {
        let all = last
            .iter()
            .map(|&last| RData::A(A(Ipv4Addr::new(10, 0, 0, last))));
        self.set(name, RecordType::A, ttl, all);
    }

    fn says(&self, code: Option<ResponseCode>) {
        self.0.lock().unwrap().says = code;
    }

    fn silent(&self, silent: bool) {
        self.0.lock().unwrap().silent = silent;
    }

    fn asked(&self, kind: RecordType) -> Vec<Instant> {
        let state = self.0.lock().unwrap();
        let asked = state.asked.iter().filter(|(_, asked, _)| *asked == kind);
        asked.map(|(_, _, at)| *at).collect()
    }

    fn answer(&self, question: &[u8]) -> Vec<u8> {
        let question = Message::from_vec(question).unwrap();
        let query = question.queries[0].clone();
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_query(query.clone());
        let (name, kind) = (query.name().to_ascii().to_lowercase(), query.query_type());
        let mut state = self.0.lock().unwrap();
        state.asked.push((name.clone(), kind, time::now()));
        let known = state.records.keys().any(|(known, _)| *known == name);
        match state.says {
            Some(code) => answer.metadata.response_code = code,
            None if !known => answer.metadata.response_code = ResponseCode::NXDomain,
            None => {
                for kind in [RecordType::CNAME, kind] {
                    let found = state.records.get(&(name.clone(), kind));
                    answer.add_answers(found.into_iter().flatten().cloned());
                    // As a server does that knows where the name leads.
                    let target = answer.answers.first().and_then(|first| match &first.data {
                        RData::CNAME(target) => Some(target.to_ascii()),
                        _ => None,
                    });
                    if let Some(target) = target {
                        let found = state.records.get(&(target, query.query_type()));
                        answer.add_answers(found.into_iter().flatten().cloned());
                        break;
                    }
                }
            }
        }
        answer.to_vec().unwrap()
    }
}

struct Server {
    zone: Zone,
    address: SocketAddr,
    running: AbortHandle,
}

impl Server {
    async fn start() -> Self {
        let zone = Zone::default();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let answers = zone.clone();
        let running = tokio::spawn(async move {
            let mut buffer = [0; 1500];
            // A client that has gone is told to the next receive on some systems.
            loop {
                let Ok((size, from)) = socket.recv_from(&mut buffer).await else {
                    continue;
                };
                if !answers.0.lock().unwrap().silent {
                    let _ = socket.send_to(&answers.answer(&buffer[..size]), from).await;
                }
            }
        });
        Self {
            zone,
            address,
            running: running.abort_handle(),
        }
    }

    fn resolver(&self) -> TokioResolver {
        let mut connection = ConnectionConfig::udp();
        connection.port = self.address.port();
        let server = NameServerConfig::new(self.address.ip(), true, vec![connection]);
        let config = ResolverConfig::from_parts(None, vec![], vec![server]);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().cache_size = 0;
        builder.options_mut().timeout = MS * 200;
        builder.build().unwrap()
    }

    fn follow(&self, dns: Dns, endpoints: &Endpoints<Fake>) -> watch::Receiver<Discovery> {
        let follower = endpoints.follow(dns.resolver(self.resolver()), World::default().make());
        let seen = follower.watch();
        tokio::spawn(follower);
        seen
    }

    /// What one look finds.
    async fn look(&self, dns: Dns) -> Vec<Target> {
        palisade_balance::discover::Source::next(&mut dns.resolver(self.resolver()))
            .await
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.abort();
    }
}

const NAME: &str = "backend.test.";

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(
        priority,
        weight,
        port,
        Name::from_ascii(target).unwrap(),
    ))
}

fn short(targets: &[Target]) -> Vec<String> {
    let all = targets.iter();
    all.map(|target| format!("{} {}", target.address, target.labels["host"]))
        .collect()
}

#[tokio::test]
async fn it_asks_again_when_the_records_have_expired_and_not_before() {
    let (server, endpoints) = (Server::start().await, Endpoints::default());
    server.zone.v4(NAME, 2, &[1, 2]);
    let mut seen = server.follow(Dns::host(NAME, 80), &endpoints);
    until(&mut seen, |seen| seen.lists >= 1).await;
    assert_eq!(serving(&endpoints), ["10.0.0.1:80", "10.0.0.2:80"]);
    server.zone.v4(NAME, 0, &[2, 3]);
    until(&mut seen, |seen| seen.lists >= 2).await;
    assert_eq!(serving(&endpoints), ["10.0.0.2:80", "10.0.0.3:80"]);
    until(&mut seen, |seen| seen.lists >= 3).await;
    let asked = server.zone.asked(RecordType::A);
    assert!(asked[1] - asked[0] >= MS * 2000, "a TTL of two seconds");
    assert!(
        asked[2] - asked[1] >= MS * 1000,
        "a TTL of zero is a second"
    );
    assert!(
        server.zone.asked(RecordType::AAAA).is_empty(),
        "there is no need to"
    );
}

#[tokio::test]
async fn a_server_that_is_gone_or_fails_keeps_the_last_list_until_it_is_back() {
    let (server, endpoints) = (Server::start().await, Endpoints::default());
    server.zone.v4(NAME, 1, &[1]);
    let mut seen = server.follow(Dns::host(NAME, 80), &endpoints);
    until(&mut seen, |seen| seen.lists >= 1).await;
    let service = balance(&endpoints);
    let requests = tokio::spawn(async move { load(&service, 400, MS * 5).await });
    server.zone.says(Some(ResponseCode::ServFail));
    until(&mut seen, |seen| seen.failing >= 1).await;
    assert_eq!(serving(&endpoints), ["10.0.0.1:80"]);
    server.zone.silent(true);
    until(&mut seen, |seen| seen.failing >= 2).await;
    assert_eq!(serving(&endpoints), ["10.0.0.1:80"]);
    server.zone.says(None);
    server.zone.v4(NAME, 60, &[2]);
    server.zone.silent(false);
    until(&mut seen, |seen| seen.lists >= 2).await;
    assert_eq!(serving(&endpoints), ["10.0.0.2:80"]);
    assert_eq!(requests.await.unwrap(), 0);
}

#[tokio::test]
async fn a_name_that_is_not_there_any_more_is_doubted_and_believed_on_request() {
    let (server, endpoints) = (Server::start().await, Endpoints::default());
    server.zone.v4(NAME, 1, &[1]);
    server.zone.v4("other.test.", 1, &[2]);
    let mut doubts = server.follow(Dns::host(NAME, 80), &endpoints);
    let follower = endpoints
        .follow(
            Dns::host("other.test.", 80).resolver(server.resolver()),
            World::default().make(),
        )
        .named("other")
        .empty(Empty::Believed);
    let mut believes = follower.watch();
    tokio::spawn(follower);
    until(&mut doubts, |seen| seen.lists >= 1).await;
    until(&mut believes, |seen| seen.lists >= 1).await;
    assert_eq!(endpoints.len(), 2);
    server.zone.says(Some(ResponseCode::NXDomain));
    until(&mut doubts, |seen| seen.failing >= 1).await;
    until(&mut believes, |seen| seen.lists >= 2).await;
    assert_eq!(serving(&endpoints), ["10.0.0.1:80"]);
    assert_eq!(believes.borrow().errors, 0);
    server.zone.says(None);
    until(&mut doubts, |seen| seen.failing == 0).await;
}

#[tokio::test]
async fn each_family_finds_its_addresses_through_aliases_too() {
    let server = Server::start().await;
    server.zone.v4("both.test.", 60, &[2, 1, 1]);
    let v6 = RData::AAAA(AAAA(Ipv6Addr::LOCALHOST));
    for name in ["both.test.", "six.test."] {
        server.zone.set(name, RecordType::AAAA, 60, [v6.clone()]);
    }
    let alias = RData::CNAME(CNAME(Name::from_ascii("both.test.").unwrap()));
    server
        .zone
        .set("alias.test.", RecordType::CNAME, 60, [alias]);
    let (v4, v6) = (["10.0.0.1:80", "10.0.0.2:80"], "[::1]:80");
    for (name, family, expected) in [
        ("both.test.", Family::V4ThenV6, vec![v4[0], v4[1]]),
        ("six.test.", Family::V4ThenV6, vec![v6]),
        ("both.test.", Family::V4, vec![v4[0], v4[1]]),
        ("six.test.", Family::V4, vec![]),
        ("both.test.", Family::V6, vec![v6]),
        ("both.test.", Family::Both, vec![v4[0], v4[1], v6]),
        ("alias.test.", Family::V4ThenV6, vec![v4[0], v4[1]]),
        ("10.9.8.7", Family::V6, vec!["10.9.8.7:80"]),
    ] {
        let found = server.look(Dns::host(name, 80).family(family)).await;
        let host = name.trim_end_matches('.');
        let expected: Vec<_> = expected
            .iter()
            .map(|address| format!("{address} {host}"))
            .collect();
        assert_eq!(short(&found), expected, "{name} {family:?}");
    }
    server.zone.says(Some(ResponseCode::ServFail));
    let mut dns = Dns::host("both.test.", 80).resolver(server.resolver());
    palisade_balance::discover::Source::next(&mut dns)
        .await
        .unwrap_err();
}

#[tokio::test]
async fn services_have_ports_priorities_and_weights_that_their_addresses_share() {
    let server = Server::start().await;
    server.zone.v4("one.test.", 60, &[1, 2]);
    server.zone.v4("two.test.", 60, &[3]);
    let of = |name: &str, all: Vec<RData>| server.zone.set(name, RecordType::SRV, 60, all);
    of(
        "_a._tcp.test.",
        vec![
            srv(10, 6, 8080, "one.test."),
            srv(20, 0, 9090, "two.test."),
            srv(0, 1, 1, "gone.test."),
        ],
    );
    of("_zero._tcp.test.", vec![srv(0, 0, 80, "one.test.")]);
    of("_away._tcp.test.", vec![srv(0, 0, 0, ".")]);

    let found = server.look(Dns::service("_a._tcp.test.")).await;
    assert_eq!(
        short(&found),
        [
            "10.0.0.1:8080 one.test",
            "10.0.0.2:8080 one.test",
            "10.0.0.3:9090 two.test"
        ]
    );
    let levels: Vec<_> = found
        .iter()
        .map(|target| (target.priority, target.weight))
        .collect();
    assert_eq!(
        levels,
        [
            (Some(10), Some(3.0)),
            (Some(10), Some(3.0)),
            (Some(20), Some(0.0))
        ]
    );
    let found = server.look(Dns::service("_zero._tcp.test.")).await;
    assert!(found.iter().all(|target| target.weight == Some(1.0)) && found.len() == 2);
    assert_eq!(server.look(Dns::service("_away._tcp.test.")).await, []);
    assert_eq!(server.look(Dns::service("_none._tcp.test.")).await, []);
}

#[tokio::test]
async fn a_look_up_that_is_dropped_is_made_again_and_a_list_is_not_lost() {
    let (server, mut source) = (Server::start().await, Dns::host(NAME, 80));
    server.zone.v4(NAME, 60, &[1]);
    source = source.resolver(server.resolver());
    for _ in 0..2 {
        // Polled once, the question is on its way.
        let mut look =
            tokio_test::task::spawn(palisade_balance::discover::Source::next(&mut source));
        assert!(look.poll().is_pending());
        drop(look);
    }
    let found = palisade_balance::discover::Source::next(&mut source)
        .await
        .unwrap();
    assert_eq!(short(&found), ["10.0.0.1:80 backend.test"]);
    let mut rests = tokio_test::task::spawn(palisade_balance::discover::Source::next(&mut source));
    assert!(rests.poll().is_pending());
    drop(rests);
    let asked = server.zone.asked(RecordType::A).len();
    let again = tokio::time::timeout(
        Duration::from_millis(50),
        palisade_balance::discover::Source::next(&mut source),
    );
    again.await.unwrap_err();
    assert_eq!(
        server.zone.asked(RecordType::A).len(),
        asked,
        "the records hold for a minute"
    );
}
