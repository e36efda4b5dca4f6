//! What a row tells, and how it is read.

use std::time::Duration;

use demo_backend::{Fault, Reply};
use demo_gateway::{Config, config::Store};
use http::{Method, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Folder, ask_undisturbed, logged, logging, settled, status};
use crate::{
    process::program,
    support::{
        CHAT, CHAT_STREAM, PROMPT, admin, backend, client, config, eventually, get, limited, open,
        post, post_with, posting, request, send, start,
    },
};

#[tokio::test]
async fn a_key_that_is_not_known_leaves_a_row_whatever_is_asked() {
    let backend = backend().await;
    let table = "[[identity.keys]]\nkey = \"known-key-of-somebody\"\n";
    let gateway = start(limited(&[&backend], table)).await;
    let unknown = ("x-api-key", "unknown-key-of-nobody");
    let chat = "/v1/chat/completions";
    let refused = post_with(&gateway, chat, CHAT, &[unknown]).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    let models = request(&gateway, Method::GET, "/v1/models").header(unknown.0, unknown.1);
    let refused = send(models.body(Full::default()).unwrap()).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    settled(&gateway, 2).await;
    let rows = logged(&gateway).await;
    let told: Vec<_> = rows
        .iter()
        .map(|row| (&row["operation"], &row["reason"], &row["client_id"]))
        .collect();
    let (reason, client) = ("invalid_api_key".into(), "ip:127.0.0.1".into());
    assert_eq!(
        told,
        [
            (&"models".into(), &reason, &client),
            (&"chat".into(), &reason, &client)
        ]
    );
}

#[tokio::test]
async fn a_row_tells_what_became_of_its_request() {
    let backend = backend().await;
    let rule = "[[rate_limits]]\nname = \"r\"\nidentifier = \"user\"\nmax_requests = 5\nwindow = \"60s\"\n\
                strategy = \"fixed_window\"\n";
    let gateway = start(limited(&[&backend], rule)).await;
    let headers = |id: &'static str| [("x-request-id", id), ("x-user-id", "alice")];
    backend.script([Reply::tokens(7)]);
    let chat = "/v1/chat/completions";
    post_with(&gateway, chat, CHAT_STREAM, &headers("stream")).await;
    post_with(&gateway, chat, "{\"model\": 7}", &headers("wrong")).await;
    let batch =
        format!("{{\"requests\": [{PROMPT}, {PROMPT}, {PROMPT}, {PROMPT}, {PROMPT}, {PROMPT}]}}");
    post_with(&gateway, "/generate/batch", &batch, &headers("many")).await;
    get(&gateway, "/health").await;
    settled(&gateway, 8).await;
    let mut rows = logged(&gateway).await;
    rows.sort_by_key(|row| row["request_id"].to_string());
    let ids: Vec<_> = rows
        .iter()
        .map(|row| row["request_id"].as_str().unwrap())
        .collect();
    assert_eq!(
        ids,
        [
            "many-0", "many-1", "many-2", "many-3", "many-4", "many-5", "stream", "wrong"
        ]
    );
    for row in &rows {
        assert_eq!(row["client_id"], "user:alice");
    }
    let stream = &rows[6];
    assert_eq!(
        (
            &stream["operation"],
            &stream["model"],
            &stream["stream"],
            &stream["backend_id"]
        ),
        (&"chat".into(), &"m".into(), &true.into(), &"a".into())
    );
    assert_eq!(
        (
            &stream["success"],
            &stream["verdict"],
            &stream["attempts"],
            &stream["output_tokens"]
        ),
        (&true.into(), &"success".into(), &1.into(), &7.into())
    );
    let times = ["first_token_ms", "processing_time_ms"].map(|name| stream[name].as_f64().unwrap());
    assert!(0.0 < times[0] && times[0] <= times[1], "{times:?}");
    let wrong = &rows[7];
    assert_eq!(
        (&wrong["status"], &wrong["verdict"]),
        (&400.into(), &"caller_fault".into())
    );
    assert!(wrong["why"].as_str().unwrap().contains("model"), "{wrong}");
    let refused: Vec<_> = rows[..6]
        .iter()
        .filter(|row| row["success"] == false)
        .collect();
    assert!(!refused.is_empty());
    for row in refused {
        assert_eq!(
            (
                &row["verdict"],
                &row["reason"],
                &row["rule"],
                &row["status"]
            ),
            (
                &"refused".into(),
                &"rate_limited".into(),
                &"r".into(),
                &429.into()
            )
        );
        assert_eq!(
            (&row["backend_id"], &row["input_tokens"]),
            (&Value::Null, &Value::Null)
        );
    }
}

#[tokio::test]
async fn whoever_leaves_is_logged_as_gone() {
    let backend = backend().await;
    backend.chaos([Fault::hang()]);
    let gateway = logging(&[&backend], Store::default()).await;
    let mut request = posting(&gateway, "/v1/chat/completions", CHAT);
    request
        .headers_mut()
        .insert("x-request-id", "gone".parse().unwrap());
    let asking = tokio::spawn(open(request));
    backend.until(|seen| !seen.is_empty()).await;
    asking.abort();
    settled(&gateway, 1).await;
    let row = &logged(&gateway).await[0];
    assert_eq!(
        (&row["request_id"], &row["verdict"]),
        (&"gone".into(), &"canceled".into())
    );
}

#[tokio::test]
async fn pages_do_not_shift_when_rows_come() {
    let backend = backend().await;
    let gateway = logging(&[&backend], Store::default()).await;
    ask_undisturbed(&gateway, "old", 25).await;
    settled(&gateway, 25).await;
    let (mut before, mut found) = (String::new(), Vec::new());
    for round in 1.. {
        let path = format!("/admin/requests?limit=10&model=gpt-3.5-turbo{before}");
        let page = admin(&gateway, Method::GET, &path, "").await.json();
        found.extend(page["requests"].as_array().unwrap().iter().cloned());
        ask_undisturbed(&gateway, &format!("new-{round}"), 3).await;
        settled(&gateway, 25 + 3 * round).await;
        match page["next"].as_i64() {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    let expected: Vec<_> = (0..25)
        .rev()
        .map(|number| format!("old-{number}"))
        .collect();
    let found: Vec<_> = found
        .iter()
        .map(|row| row["request_id"].as_str().unwrap())
        .collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn looking_into_the_log_needs_the_token_and_filters_that_there_are() {
    let backend = backend().await;
    let gateway = logging(&[&backend], Store::default()).await;
    for path in ["/admin/requests", "/admin/scaling-events"] {
        assert_eq!(get(&gateway, path).await.status, StatusCode::UNAUTHORIZED);
        let wrong = admin(&gateway, Method::GET, &format!("{path}?limit=many"), "").await;
        assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
        assert_eq!(wrong.json()["param"], "limit");
        let empty = admin(&gateway, Method::GET, path, "").await;
        assert_eq!(empty.status, StatusCode::OK, "{}", empty.text());
    }
    let off = logging(&[&backend], Store::at("off")).await;
    assert_eq!(post(&off, "/generate", PROMPT).await.status, StatusCode::OK);
    assert_eq!(status(&off).await, Value::Null);
    let none = admin(&off, Method::GET, "/admin/requests", "").await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn all_times_of_a_row_begin_when_its_request_came() {
    const SLOW: Duration = Duration::from_millis(300);
    let backend = backend().await;
    let gateway = logging(&[&backend], Store::default()).await;
    let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        CHAT_STREAM.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The request is there.
    let mut goes_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut goes_on).await.unwrap();
    assert!(goes_on.starts_with(b"HTTP/1.1 100 "));
    tokio::time::sleep(SLOW).await;
    stream.write_all(CHAT_STREAM.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("[DONE]"), "{answer}");
    settled(&gateway, 1).await;
    let row = logged(&gateway).await.remove(0);
    let [first, all] = ["first_token_ms", "processing_time_ms"].map(|it| row[it].as_f64().unwrap());
    let slow = SLOW.as_secs_f64() * 1e3;
    assert!(slow <= first && first <= all, "{first} {all}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_batch_whose_caller_leaves_has_a_row_for_each_of_its_requests() {
    let backend = backend().await;
    backend.chaos([Fault::hang()]);
    let gateway = logging(&[&backend], Store::default()).await;
    let body = format!("{{\"requests\":[{}]}}", [PROMPT; 40].join(","));
    let waiting = tokio::spawn(client().request(posting(&gateway, "/generate/batch", &body)));
    // As many as are under way at once.
    eventually("the backend has them", async || backend.in_flight() == 32).await;
    waiting.abort();
    settled(&gateway, 40).await;
    let rows = logged(&gateway).await;
    assert!(
        rows.iter().all(|row| row["verdict"] == "canceled"),
        "{rows:?}"
    );
    let begun = rows.iter().filter(|row| row["backend_id"] == "a");
    assert_eq!((rows.len(), begun.count()), (40, 32));
    gateway.shutdown().await;
}

#[tokio::test]
async fn the_log_is_exported_for_machines_and_for_people() {
    let folder = Folder::new();
    let backend = backend().await;
    let gateway = start(Config {
        data_dir: Some(folder.0.join("made")),
        ..config(&[&backend])
    })
    .await;
    let evil = "=1+1,\"x\"";
    for id in [evil, "plain"] {
        post_with(&gateway, "/generate", PROMPT, &[("x-request-id", id)]).await;
    }
    settled(&gateway, 2).await;
    let folder = folder.0.join("made");
    let folder = folder.to_str().unwrap();
    // While the gateway runs.
    let export = async |args: &[&str]| {
        let args = [&["export", "--data-dir", folder], args].concat();
        let output = program(&args).output().await.unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (fine, lines, _) = export(&["--format", "jsonl"]).await;
    let rows: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(fine);
    assert_eq!(rows[0]["request_id"], evil);
    let (fine, csv, _) = export(&["--format", "csv", "--since", "1h"]).await;
    assert!(fine);
    let lines: Vec<_> = csv.split("\r\n").collect();
    assert_eq!(lines.len(), 4, "{csv}");
    assert!(lines[0].starts_with("id,request_id,client_id,backend_id,model,"));
    assert!(
        lines[1].starts_with("1,\"'=1+1,\"\"x\"\"\",ip:127.0.0.1,"),
        "{csv}"
    );
    assert!(lines[2].starts_with("2,plain,ip:127.0.0.1,"), "{csv}");
    let (fine, csv, _) = export(&["--format", "csv", "--until", "1h"]).await;
    assert!(fine && csv.lines().count() == 1, "{csv}");
    let file = format!("{folder}/out.jsonl");
    let (fine, nothing, _) = export(&["--format", "jsonl", "--output", &file]).await;
    assert!(fine && nothing.is_empty());
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 2);
    let (fine, _, told) = export(&["--format", "csv", "--since", "soon"]).await;
    assert!(!fine && told.contains("--since `soon`"), "{told}");
    let url = "postgres://me:hunter2@127.0.0.1:1/llm";
    let (fine, _, told) = export(&["--format", "csv", "--store", url, "--output", &file]).await;
    assert!(
        !fine && told.contains("(hidden)") && !told.contains("hunter2"),
        "{told}"
    );
    // What was exported before is still there, and nothing beside it.
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 2);
    let beside = std::fs::read_dir(folder).unwrap();
    let parts =
        beside.filter(|it| it.as_ref().unwrap().path().extension() == Some("part".as_ref()));
    assert_eq!(parts.count(), 0);
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_export_that_is_interrupted_leaves_the_file_as_it_was() {
    let folder = Folder::new();
    let file = folder.0.join("log.csv");
    std::fs::write(&file, "what there was").unwrap();
    // A database that never answers.
    let database = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://me@{}/llm", database.local_addr().unwrap());
    for signal in ["-INT", "-TERM"] {
        let mut export = program(&["export", "--format", "csv", "--store", &url])
            .args(["--output", file.to_str().unwrap()])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let _asked = database.accept().await.unwrap();
        let names = || std::fs::read_dir(&folder.0).unwrap().count();
        assert_eq!(names(), 2, "half a file");
        crate::process::send_signal(&export, signal);
        assert_eq!(export.wait().await.unwrap().code(), Some(1));
        assert_eq!(names(), 1);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "what there was");
        let mut told = String::new();
        let mut stderr = export.stderr.take().unwrap();
        stderr.read_to_string(&mut told).await.unwrap();
        assert!(told.contains("is as it was"), "{told}");
    }
}

/// A handler would only be looked at between two rows, and somebody who does not read a pipe lets it wait for ever.
#[tokio::test]
async fn an_export_into_what_is_no_file_ends_at_once_by_a_signal() {
    let database = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://me@{}/llm", database.local_addr().unwrap());
    let mut export = program(&["export", "--format", "csv", "--store", &url])
        .args(["--output", "/dev/null"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let _asked = database.accept().await.unwrap();
    crate::process::send_signal(&export, "-TERM");
    let ended = export.wait().await.unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&ended);
    assert_eq!(signal, Some(15), "{ended}");
}
