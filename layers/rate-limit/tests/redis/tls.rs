//! A server behind a certificate of an authority of its own.

use std::{path::Path, process::Command};

use palisade_rate_limit::{
    RedisConfig, RedisConfigError, RedisStore,
    testing::{Ask, Plan},
};

use crate::support::{Server, connected, free_port, refused, until};

/// Makes an authority and a certificate by it, in this folder.
fn certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments.split(' ')).current_dir(folder);
        let output = openssl
            .output()
            .expect("openssl makes certificates: apt-get install openssl");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let names = "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
    std::fs::write(folder.join("names"), names).unwrap();
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!(
        "req -x509 {curve} -keyout ca.key -out ca.pem -days 1 -subj /CN=authority"
    ));
    openssl(&format!(
        "req {curve} -keyout key.pem -out request.pem -subj /CN=redis"
    ));
    openssl(
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile names -out cert.pem",
    );
}

#[tokio::test]
async fn a_server_is_reached_by_tls_and_only_if_its_certificate_is_trusted() {
    let folder = tempdir();
    certificates(&folder);
    let file = |name: &str| folder.join(name).display().to_string();
    let port = free_port().to_string();
    let _server = Server::with(&[
        "--port",
        "0",
        "--tls-port",
        &port,
        "--tls-cert-file",
        &file("cert.pem"),
        "--tls-key-file",
        &file("key.pem"),
        "--tls-ca-cert-file",
        &file("ca.pem"),
        "--tls-auth-clients",
        "no",
    ]);
    let url = format!("rediss://127.0.0.1:{port}");
    let authority = std::fs::read(file("ca.pem")).unwrap();
    let config = RedisConfig::new(&url).unwrap().authority(authority.clone());
    let store = connected(config).await;
    let ask = |store: &RedisStore| [Ask::new(store, "r", None, Plan::in_flight(1))];
    assert!(!refused(&store, &ask(&store)).await);
    assert!(refused(&store, &[ask(&store)[0].clone().ticket(1)]).await);

    let (stranger, upkeep) = RedisStore::open(&url).unwrap();
    tokio::spawn(upkeep);
    until(|| stranger.state().errors > 1).await;
    assert!(!stranger.state().up);
    let what = stranger.state().last_error.unwrap();
    assert!(what.contains("certificate"), "{what}");

    let plain = format!("redis://127.0.0.1:{port}");
    let (plain, upkeep) = RedisStore::open(&plain).unwrap();
    tokio::spawn(upkeep);
    until(|| plain.state().errors > 1).await;
    assert!(!plain.state().up);

    for (url, pem) in [
        (url.as_str(), b"no certificate".to_vec()),
        (url.as_str(), Vec::new()),
        ("redis://127.0.0.1", authority),
    ] {
        let error = RedisConfig::new(url).unwrap().authority(pem).open().err();
        assert_eq!(error, Some(RedisConfigError::Authority));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

fn tempdir() -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("palisade-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
