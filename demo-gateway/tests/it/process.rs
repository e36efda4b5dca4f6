//! The program itself.

use std::{process::Stdio, time::Duration};

use demo_backend::{MockBackend, Reply};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use crate::support::{CHAT_STREAM, eventually};

pub(crate) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo-gateway"));
    command.args(args).kill_on_drop(true);
    for (name, _) in std::env::vars() {
        if name.starts_with("PALISADE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Starts it, and reads what it says until the first empty line after the address.
pub(crate) async fn serve(args: &[&str]) -> (Child, String, String) {
    let mut child = program(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next_line().await.unwrap().unwrap();
    let address = first
        .strip_prefix("listening on http://")
        .unwrap()
        .to_owned();
    let mut rest = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        rest += &line;
        rest.push('\n');
        if line.contains("curl") {
            break;
        }
    }
    (child, address, rest)
}

async fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

pub(crate) fn terminate(child: &Child) {
    send_signal(child, "-TERM");
}

pub(crate) fn send_signal(child: &Child, signal: &str) {
    let id = child.id().unwrap().to_string();
    let sent = std::process::Command::new("kill")
        .args([signal, &id])
        .status();
    assert!(sent.unwrap().success());
}

#[tokio::test]
async fn it_says_where_it_listens_and_what_it_told_works() {
    let (mut child, address, rest) =
        serve(&["--listen", "127.0.0.1:0", "--embedded-backends", "1"]).await;
    // The line to paste, as a shell would split it.
    let line = rest
        .lines()
        .find(|line| line.contains("curl"))
        .unwrap()
        .trim()
        .to_owned();
    let output = Command::new("sh")
        .args(["-c", &format!("{line} -sS --fail")])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["backend_id"], "embedded-1");
    // The token that it made up.
    let token = rest
        .split("Bearer ")
        .nth(1)
        .unwrap()
        .split('`')
        .next()
        .unwrap();
    let answer = ask(
        &address,
        &format!(
            "GET /admin HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    terminate(&child);
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn on_sigterm_a_stream_in_flight_ends_well_and_then_the_program_does() {
    let backend = MockBackend::builder()
        .first_token(Duration::ZERO)
        .tokens_per_second(8.0)
        .start()
        .await
        .unwrap();
    backend.script([Reply::tokens(30)]);
    let url = backend.url();
    let (mut child, address, _) = serve(&[
        "--listen",
        "127.0.0.1:0",
        "--backend",
        &url,
        "--drain-delay",
        "1s",
    ])
    .await;
    let mut idle = TcpStream::connect(&address).await.unwrap();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let length = CHAT_STREAM.len();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{CHAT_STREAM}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut begun = [0; 16];
    stream.read_exact(&mut begun).await.unwrap();

    terminate(&child);
    let ready = "GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    eventually("it is not ready any more", async || {
        ask(&address, ready).await.starts_with("HTTP/1.1 503")
    })
    .await;
    eventually("it accepts nothing any more", async || {
        TcpStream::connect(&address).await.is_err()
    })
    .await;
    assert_eq!(backend.in_flight(), 1, "the stream goes on");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    let mut nothing = Vec::new();
    idle.read_to_end(&mut nothing).await.unwrap();
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn check_prints_every_mistake_with_its_place() {
    let file = std::env::temp_dir().join(format!("palisade-check-{}.toml", std::process::id()));
    std::fs::write(&file, "lisen = \"x\"\n[server]\nbody_limit = \"big\"\n").unwrap();
    let path = file.to_str().unwrap();
    let output = program(&["check", "--config", path])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains(&format!("{path}:1:1: ")), "{told}");
    assert!(told.contains("did you mean `listen`?"), "{told}");
    assert!(
        told.contains(&format!("{path}:3:14: server.body_limit")),
        "{told}"
    );
    // Serving with it fails the same way.
    let output = program(&["--config", path]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains(":1:1: "));

    // What is printed is a file that has no mistakes, and comes from all three places.
    std::fs::write(
        &file,
        "strategy = \"round_robin\"\nlisten = \"127.0.0.1:1\"\n",
    )
    .unwrap();
    let output = program(&["--config", path, "--print-config", "--rate-limit", "off"])
        .env("PALISADE_LISTEN", "127.0.0.1:2")
        .output()
        .await
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    for line in [
        "strategy = \"round_robin\"",
        "listen = \"127.0.0.1:2\"",
        "rate_limit = \"off\"",
    ] {
        assert!(printed.contains(line), "{printed}");
    }
    std::fs::write(&file, &printed).unwrap();
    let output = program(&["check", "--config", path])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn the_example_of_a_configuration_has_no_mistakes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gateway.toml");
    let output = program(&["check", "--config", path]).output().await;
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    // What is only shown works as well, and what it says of itself is true.
    let text = std::fs::read_to_string(path).unwrap();
    let shown = text.replace("# [discovery]", "[discovery]");
    let shown = shown.replace("# file = ", "file = ");
    let config = demo_gateway::config::parse(&shown).unwrap();
    assert!(config.discovery.unwrap().file.is_some());
    for strategy in demo_gateway::config::Strategy::ALL {
        assert!(text.contains(strategy.name()), "{strategy}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_told() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = program(&["--listen", &address]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains(&format!("cannot listen on {address}")),
        "{told}"
    );
}
