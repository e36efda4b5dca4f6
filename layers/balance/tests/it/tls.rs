//! The client over TLS.

use std::sync::Arc;

use http::{Version, header::HOST};
use palisade_balance::InvalidUrl;
use palisade_core::{classify::Verdict, time::now};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::net::TcpListener;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};

use crate::server::{Acceptor, Server, TestClient, send};

const HOSTNAME: &str = "llm.example.com";

struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn new() -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed([HOSTNAME.to_owned()]).unwrap();
        Self {
            certificate: cert.der().clone(),
            key: PrivateKeyDer::Pkcs8(signing_key.serialize_der().into()),
        }
    }

    fn acceptor(&self, alpn: &[&str]) -> Acceptor {
        let mut config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Acceptor::from(Arc::new(config))
    }

    fn trusted(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

fn client(server: &Server, host: &str) -> TestClient {
    let url = format!("https://{host}:{}", server.address.port());
    TestClient::new(url).unwrap().address(server.address)
}

#[tokio::test]
async fn both_sides_speak_what_both_can() {
    let identity = Identity::new();
    for (alpn, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let server = Server::with_tls(identity.acceptor(alpn)).await;
        let client = client(&server, HOSTNAME).tls(identity.trusted());
        for _ in 0..3 {
            assert_eq!(send(&client).await.unwrap(), "ok");
        }
        let seen = server.last();
        assert_eq!(seen.version, version);
        let port = server.address.port();
        assert_eq!(seen.headers[HOST], format!("{HOSTNAME}:{port}"));
        assert_eq!(server.counts().accepted, 1);
    }
}

#[tokio::test]
async fn one_side_can_insist() {
    let identity = Identity::new();
    let server = Server::with_tls(identity.acceptor(&["h2", "http/1.1"])).await;
    for (client, version) in [
        (client(&server, HOSTNAME).http1(), Version::HTTP_11),
        (client(&server, HOSTNAME).http2(), Version::HTTP_2),
    ] {
        send(&client.tls(identity.trusted())).await.unwrap();
        assert_eq!(server.last().version, version);
    }
}

#[tokio::test]
async fn many_first_requests_at_once_end_up_on_one_connection() {
    let identity = Identity::new();
    let server = Server::with_tls(identity.acceptor(&["h2"])).await;
    server.hold();
    let client = client(&server, HOSTNAME).tls(identity.trusted());
    let mut sent = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let client = client.clone();
        sent.spawn(async move { send(&client).await.unwrap() });
    }
    server.until(|counts| counts.requests == 10).await;
    server.until(|counts| counts.open == 1).await;
    server.release();
    sent.join_all().await;
}

#[tokio::test]
async fn who_cannot_prove_to_be_the_host_gets_no_request() {
    let identity = Identity::new();
    let server = Server::with_tls(identity.acceptor(&[])).await;
    let stranger = Identity::new();
    for client in [
        client(&server, "other.example.com").tls(identity.trusted()),
        client(&server, HOSTNAME).tls(stranger.trusted()),
        client(&server, HOSTNAME),
    ] {
        let error = send(&client).await.unwrap_err();
        assert_eq!(Verdict::of(&*error), Verdict::Unsent, "{error:?}");
        assert_eq!(client.connections().failed, 1);
    }
    assert_eq!(server.counts().requests, 0);
}

#[tokio::test]
async fn a_handshake_that_hangs_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = TestClient::new(format!("https://127.0.0.1:{port}")).unwrap();
    let sent = tokio::spawn(async move { send(&client).await });
    let accepted = listener.accept().await.unwrap();
    tokio::time::pause();
    let start = now();
    let error = sent.await.unwrap().unwrap_err();
    assert_eq!(Verdict::of(&*error), Verdict::Unsent);
    let took = start.elapsed();
    assert!(took.as_millis() <= 2001, "{took:?}");
    drop(accepted);
}

#[test]
fn https_is_a_scheme_with_tls() {
    assert!(TestClient::new("https://a").is_ok());
    let ftp = TestClient::new("ftp://a").unwrap_err();
    assert_eq!(ftp, InvalidUrl::Scheme);
    assert_eq!(
        ftp.to_string(),
        "the scheme of the URL is neither http nor https"
    );
}
