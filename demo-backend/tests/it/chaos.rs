//! `/chaos`.

use demo_backend::{Fault, MockBackend};
use http::{Method, StatusCode};
use serde_json::json;

use crate::client::{GENERATE, ask, get, post};

#[tokio::test]
async fn faults_are_set_shown_replaced_and_ended_live() {
    let backend = MockBackend::builder().start().await.unwrap();
    assert_eq!(get(&backend, "/chaos").await.json(), json!([]));

    let one = r#"{"fault": "error", "status": 502, "share": 1, "for": "1h"}"#;
    let set = post(&backend, "/chaos", one).await;
    assert_eq!(set.status, StatusCode::OK);
    assert_eq!(set.json()[0]["fault"], "error");
    assert_eq!(
        post(&backend, "/generate", GENERATE).await.status,
        StatusCode::BAD_GATEWAY
    );

    let list = r#"[{"fault": "rate-limit"}, {"fault": "latency", "delay": "1ms"}]"#;
    let set = post(&backend, "/chaos", list).await;
    assert_eq!(set.json().as_array().unwrap().len(), 2);
    assert_eq!(get(&backend, "/chaos").await.json(), set.json());
    assert_eq!(
        post(&backend, "/generate", GENERATE).await.status,
        StatusCode::TOO_MANY_REQUESTS
    );

    assert_eq!(
        ask(&backend, Method::DELETE, "/chaos", "").await.json(),
        json!([])
    );
    assert_eq!(
        post(&backend, "/generate", GENERATE).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn what_is_shown_can_be_set_again() {
    let lines = [
        "hang,share=0.25,on=all",
        "drip,bytes=3",
        "content-length,by=-4,from=2s",
    ];
    let faults: Vec<Fault> = lines.iter().map(|line| line.parse().unwrap()).collect();
    let backend = MockBackend::builder().start().await.unwrap();
    backend.chaos(faults.clone());
    let shown = get(&backend, "/chaos").await;
    backend.chaos([]);
    let set = post(&backend, "/chaos", shown.body).await;
    assert_eq!(
        serde_json::from_slice::<Vec<Fault>>(&set.body).unwrap(),
        faults
    );
}

#[tokio::test]
async fn mistakes_say_what_and_where_and_change_nothing() {
    let backend = MockBackend::builder()
        .fault("latency,delay=1ms".parse().unwrap())
        .start()
        .await
        .unwrap();
    let before = get(&backend, "/chaos").await.json();
    for (body, says) in [
        (
            r#"[{"fault": "hang"}, {"fault": "hang", "share": 2}]"#,
            "[1]: share: 2 is not from 0 to 1",
        ),
        (
            r#"[{"fault": "hang"}, {"fault": "error", "status": "x"}]"#,
            "[1].status: invalid type: string \"x\"",
        ),
        (
            r#"{"fault": "explode"}"#,
            "fault: unknown variant `explode`, expected one of `latency`",
        ),
        (
            r#"{"fault": "hang", "colour": 1}"#,
            "colour: unknown field `colour`",
        ),
        (
            r#"{"fault": "hang", "for": "soon"}"#,
            "for: \"soon\" is no span of time",
        ),
        ("{", "the body is not JSON: EOF"),
    ] {
        let answer = post(&backend, "/chaos", body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with(says), "{body}: {detail}");
    }
    assert_eq!(get(&backend, "/chaos").await.json(), before);
}
