//! What a collector asks for besides spans: headers, and TLS.

use tokio::{io::AsyncReadExt, net::TcpListener};

use super::{Program, collector::Collector, traced};
use crate::{
    process::program,
    support::{PROMPT, backend, eventually},
};

#[tokio::test]
async fn a_collector_gets_the_headers_that_it_wants_to_see() {
    const SECRET: &str = "Bearer hunter2";
    let backend = backend().await;
    let of_environment = [(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "authorization=Bearer%20hunter2,x-team=theirs,x-both=environment",
    )];
    for (collector, protocol) in [
        (Collector::http().await, "http"),
        (Collector::grpc().await, "grpc"),
    ] {
        let more = format!(
            "protocol = \"{protocol}\"\nheaders = {{ x-scope = \"llm\", x-both = \"file\" }}\n"
        );
        let toml = traced(&collector, &more);
        let gateway = Program::start_with(&toml, &[&backend], &of_environment).await;
        gateway.ask("/generate", PROMPT, &[]).await;
        eventually("the spans are there", async || collector.seen().len() == 2).await;
        let headers = &collector.seen()[0].headers;
        assert_eq!(headers["authorization"], SECRET, "{protocol}");
        assert_eq!(
            (&headers["x-team"], &headers["x-scope"]),
            (&"theirs".parse().unwrap(), &"llm".parse().unwrap())
        );
        // Once, and as the file has it.
        let both: Vec<_> = headers.get_all("x-both").iter().collect();
        assert_eq!(both, ["file"], "{protocol}");
        // What it is written in is not theirs to say.
        assert!(!headers["content-type"].is_empty());
    }
}

#[tokio::test]
async fn headers_that_are_none_and_grpc_over_tls_are_mistakes_and_no_secret_is_told() {
    for (endpoint, header, told) in [
        ("http://127.0.0.1:1", "hunter2", "trace.headers"),
        ("https://127.0.0.1:1", "a=hunter2", "gRPC over TLS"),
    ] {
        let output = program(&[])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
            .env("OTEL_EXPORTER_OTLP_HEADERS", header)
            .output()
            .await
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(told) && !said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn a_collector_behind_tls_is_spoken_to_in_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let toml = format!("rate_limit = \"off\"\n[trace]\notlp = \"{url}\"\n");
    let backend = backend().await;
    let gateway = Program::start(&toml, &[&backend]).await;
    gateway.ask("/generate", PROMPT, &[]).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    // A handshake, and in it whom it wants to speak with.
    let mut hello = vec![0; 1024];
    let many = stream.read(&mut hello).await.unwrap();
    assert_eq!(hello[0], 0x16);
    let name = b"localhost";
    assert!(hello[..many].windows(name.len()).any(|part| part == name));
    drop(stream);
    let lost = "palisade_gateway_spans_dropped_total{reason=\"export_failed\"} ";
    eventually("they are counted", async || {
        gateway.metric(lost).await == 2.0
    })
    .await;
}
