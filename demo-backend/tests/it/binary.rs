//! The program.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::client::{GENERATE, PATIENCE};

struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    addr: String,
}

async fn start(args: &[&str]) -> Program {
    let mut child = Command::new(env!("CARGO_BIN_EXE_demo-backend"))
        .args(["--listen", "127.0.0.1:0"])
        .args(args)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = timeout(PATIENCE, lines.next_line())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let addr = first
        .strip_prefix("listening on http://")
        .expect(&first)
        .to_owned();
    Program { child, lines, addr }
}

impl Program {
    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        let status = std::process::Command::new("kill")
            .args([name, &id])
            .status();
        assert!(status.unwrap().success());
    }

    async fn code(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait())
            .await
            .unwrap()
            .unwrap()
            .code()
    }
}

fn generate(more: &str) -> String {
    let length = GENERATE.len();
    format!(
        "POST /generate HTTP/1.1\r\nhost: x\r\n{more}content-length: {length}\r\n\r\n{GENERATE}"
    )
}

#[tokio::test]
async fn it_says_where_it_listens_answers_and_ends_in_peace() {
    for signal in ["-TERM", "-INT"] {
        let mut program = start(&[
            "--id",
            "one",
            "--first-token",
            "0s",
            "--tokens-per-second",
            "0",
        ])
        .await;
        let mut stream = program.send(&generate("connection: close\r\n")).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains(r#""backend_id":"one""#));
        program.signal(signal);
        assert_eq!(program.code().await, Some(0));
        assert_eq!(
            program.lines.next_line().await.unwrap(),
            None,
            "one line is all it says"
        );
    }
}

#[tokio::test]
async fn a_stream_in_flight_ends_before_the_program_does() {
    let mut program = start(&["--tokens", "30", "--tokens-per-second", "100"]).await;
    let body = r#"{"model": "m", "prompt": "x", "stream": true, "max_tokens": 30}"#;
    let length = body.len();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let mut stream = program.send(&request).await;
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    program.signal("-TERM");
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("data: [DONE]\n\n"), "{answer}");
    assert_eq!(program.code().await, Some(0));
}

#[tokio::test]
async fn a_crash_ends_it_as_a_kill_does() {
    let mut program = start(&["--fault", "crash,share=0.999999"]).await;
    let mut stream = program.send(&generate("")).await;
    let mut answer = Vec::new();
    // An end or a reset: the kernel decides.
    let _end = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    assert_eq!(program.code().await, Some(137));
}

#[tokio::test]
async fn mistakes_end_it_at_once_with_a_reason() {
    let run = async |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_demo-backend"))
            .args(args)
            .output();
        let output = timeout(PATIENCE, output).await.unwrap().unwrap();
        assert!(output.stdout.is_empty());
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, said) = run(&["--fault", "error,status=abc"]).await;
    assert_eq!(code, Some(2));
    assert!(
        said.contains(r#"column 7: status: "abc" is no number"#),
        "{said}"
    );
    let (code, said) = run(&["--listen", "192.0.2.1:1"]).await;
    assert_eq!(code, Some(1));
    assert!(
        said.starts_with("demo-backend: --listen 192.0.2.1:1: "),
        "{said}"
    );
    let (code, said) = run(&["--openai-key-env", "NO_SUCH_VARIABLE_HERE"]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("NO_SUCH_VARIABLE_HERE"), "{said}");
}
