use demo_backend::{Ended, MockBackend, Reply, api::GenerateResponse};
use http::{Method, StatusCode};

use crate::client::{GENERATE, ask, get, http2, post, request, send, whole};

#[tokio::test]
async fn a_prompt_is_answered_in_the_shape_of_the_contract() {
    let backend = MockBackend::builder()
        .id("one")
        .tokens(12)
        .start()
        .await
        .unwrap();
    let answer = post(&backend, "/generate", GENERATE).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["content-type"], "application/json");
    let generated: GenerateResponse = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(generated.backend_id, "one");
    assert_eq!(generated.response.split(' ').count(), 12);
    assert_eq!(generated.tokens_used, 12 + 5);
    assert!(generated.processing_time_ms >= 0.0);
    let id = answer.headers["x-request-id"].to_str().unwrap();
    assert_eq!(generated.request_id, id);
    assert!(id.starts_with("req-"));
}

#[tokio::test]
async fn errors_are_told_as_long_as_they_are_news_and_those_of_callers_are_none() {
    let backend = MockBackend::builder().start().await.unwrap();
    let errors = || backend.load().errors_per_second;
    for status in [200, 404, 429] {
        backend.script([Reply::status(status)]);
        post(&backend, "/generate", GENERATE).await;
    }
    assert_eq!(errors(), 0.0);
    backend.script([Reply::status(502)]);
    post(&backend, "/generate", GENERATE).await;
    assert!(errors() > 0.1, "{}", errors());
    let answer = get(&backend, "/load").await;
    let said = answer.headers["endpoint-load-metrics"].to_str().unwrap();
    assert!(
        said.contains("eps=0.") && !said.contains("eps=0.0"),
        "{said}"
    );
}

#[tokio::test]
async fn every_answer_says_who_gave_it_and_what_the_load_is() {
    let backend = MockBackend::builder()
        .id("one")
        .slots(4)
        .start()
        .await
        .unwrap();
    for path in ["/health", "/nowhere", "/v1/models"] {
        let answer = get(&backend, path).await;
        assert_eq!(answer.headers["x-instance-id"], "one");
        let load = answer.headers["endpoint-load-metrics"].to_str().unwrap();
        let load = load.strip_prefix("TEXT ").unwrap();
        let pairs: Vec<_> = load
            .split(", ")
            .map(|pair| pair.split_once('=').unwrap())
            .collect();
        let names: Vec<_> = pairs.iter().map(|(name, _)| *name).collect();
        let wanted = [
            "cpu_utilization",
            "rps_fractional",
            "eps",
            "application_utilization",
            "named_metrics.queue_depth",
            "named_metrics.in_flight",
        ];
        assert_eq!(names, wanted);
        assert!(
            pairs.iter().all(|(_, value)| value.parse::<f64>().is_ok()),
            "{load}"
        );
    }
}

#[tokio::test]
async fn the_callers_request_id_comes_back_unless_it_cannot_be_written_down() {
    let backend = MockBackend::builder().start().await.unwrap();
    let long = "x".repeat(129);
    for (sent, kept) in [("my-id:7", true), ("with space", false), (&long, false)] {
        let mut request = request(&backend, Method::POST, "/generate", GENERATE);
        let headers = request.headers_mut();
        headers.insert("x-request-id", sent.parse().unwrap());
        let answer = whole(send(&http2(), request).await.unwrap()).await;
        let id = answer.headers["x-request-id"].to_str().unwrap();
        assert_eq!(id == sent, kept, "{id}");
        assert_eq!(answer.json()["request_id"], id);
    }
}

#[tokio::test]
async fn the_record_says_what_came_and_how_it_ended() {
    let backend = MockBackend::builder().tokens(3).start().await.unwrap();
    post(&backend, "/generate?a=b", GENERATE).await;
    get(&backend, "/health").await;
    let seen = backend.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(
        (seen[0].method.as_str(), seen[0].path.as_str()),
        ("POST", "/generate?a=b")
    );
    assert_eq!(seen[0].body, GENERATE);
    assert_eq!(seen[0].headers["content-type"], "application/json");
    let (status, tokens_sent) = (StatusCode::OK, 3);
    assert_eq!(
        seen[0].ended,
        Ended::Completed {
            status,
            tokens_sent
        }
    );
    assert!(seen[0].ended_at.unwrap() >= seen[0].at);
    assert_eq!(seen[1].path, "/health");
    assert_eq!(backend.in_flight(), 0);
}

#[tokio::test]
async fn no_more_is_kept_than_was_asked_for() {
    let backend = MockBackend::builder().recording(2).start().await.unwrap();
    for path in ["/a", "/b", "/c"] {
        get(&backend, path).await;
    }
    let paths: Vec<_> = backend.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths, ["/b", "/c"]);
    let silent = MockBackend::builder().recording(0).start().await.unwrap();
    get(&silent, "/a").await;
    assert!(silent.seen().is_empty());
}

#[tokio::test]
async fn a_run_can_be_repeated_and_another_seed_is_another_run() {
    async fn run(seed: u64) -> Vec<String> {
        let lengths = demo_backend::Lengths::try_from(5..=40).unwrap();
        let backend = MockBackend::builder()
            .seed(seed)
            .tokens(lengths)
            .start()
            .await
            .unwrap();
        let mut texts = Vec::new();
        for _ in 0..4 {
            let answer = post(&backend, "/generate", GENERATE).await;
            texts.push(answer.json()["response"].as_str().unwrap().to_owned());
        }
        texts
    }
    let first = run(1).await;
    assert_eq!(first, run(1).await);
    assert_ne!(first, run(2).await);
    assert_ne!(first[0], first[1], "each request has its own answer");
}

#[tokio::test]
async fn at_temperature_zero_the_same_prompt_has_the_same_answer() {
    let backend = MockBackend::builder().start().await.unwrap();
    let mut texts = Vec::new();
    for prompt in ["a", "b", "a"] {
        let body = format!(r#"{{"prompt": "{prompt}", "temperature": 0}}"#);
        let answer = post(&backend, "/generate", body).await;
        texts.push(answer.json()["response"].clone());
    }
    assert_eq!(texts[0], texts[2]);
    assert_ne!(texts[0], texts[1]);
}

#[tokio::test]
async fn max_tokens_cuts_an_answer() {
    let backend = MockBackend::builder().tokens(500).start().await.unwrap();
    let words = |answer: crate::client::Whole| {
        answer.json()["response"]
            .as_str()
            .unwrap()
            .split(' ')
            .count()
    };
    let body = r#"{"prompt": "x", "max_tokens": 7}"#;
    assert_eq!(words(post(&backend, "/generate", body).await), 7);
    assert_eq!(
        words(post(&backend, "/generate", GENERATE).await),
        150,
        "the default"
    );
}

#[tokio::test]
async fn metrics_and_load_count_what_happened() {
    let backend = MockBackend::builder()
        .id("one")
        .slots(4)
        .tokens(5)
        .start()
        .await
        .unwrap();
    post(&backend, "/generate", GENERATE).await;
    post(&backend, "/generate", "{}").await;
    get(&backend, "/health").await;
    let metrics = get(&backend, "/metrics").await;
    assert!(
        metrics.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
    for line in [
        "llm_instance_requests_total 2",
        "llm_instance_errors_total 1",
        "llm_instance_tokens_total 5",
        "llm_instance_in_flight 0",
        "llm_instance_queue_depth 0",
        "llm_instance_slots 4",
        "llm_instance_duration_seconds_count 2",
        "# TYPE llm_instance_duration_seconds histogram",
    ] {
        assert!(
            metrics.text().lines().any(|other| other == line),
            "{line}\n{}",
            metrics.text()
        );
    }
    let load = get(&backend, "/load").await.json();
    assert_eq!(
        (&load["instance_id"], &load["slots"]),
        (&"one".into(), &4.into())
    );
    assert!(load["requests_per_second"].as_f64().unwrap() > 0.0);
    let health = get(&backend, "/health").await.json();
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["instance_id"], "one");
    assert!(health["timestamp"].as_f64().unwrap() > 1.7e9);
}

#[tokio::test]
async fn http2_is_spoken_on_the_same_port() {
    let backend = MockBackend::builder().start().await.unwrap();
    let request = request(&backend, Method::POST, "/generate", GENERATE);
    let response = send(&http2(), request).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    assert_eq!(whole(response).await.status, StatusCode::OK);
    assert_eq!(
        ask(&backend, Method::POST, "/generate", GENERATE)
            .await
            .status,
        StatusCode::OK
    );
}
