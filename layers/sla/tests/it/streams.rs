//! Answers that take their time.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use http_body_util::{BodyExt, channel::Channel};
use palisade_core::{BoxError, classify::Sse, time};
use palisade_sla::{Objective, SlaLayer};
use tokio::time::{advance, sleep};
use tower::{Layer, Service, service_fn};

use crate::{close, layer, objective};

const MINUTE: Duration = Duration::from_secs(60);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A stream that sends each text so long after the one before.
async fn stream(texts: Vec<(u64, &'static str)>) -> Result<Response<Channel<Bytes>>, Infallible> {
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        for (after, text) in texts {
            sleep(secs(after)).await;
            let _ = sender.send_data(Bytes::from_static(text.as_bytes())).await;
        }
    });
    let response = Response::builder().header(CONTENT_TYPE, "text/event-stream");
    Ok(response.body(body).unwrap())
}

async fn read(body: impl Body<Data = Bytes, Error = BoxError>) {
    body.collect().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_lasts_until_its_body_has_ended() {
    let layer = layer();
    let handle = layer.handle();
    let texts = vec![(2, "one"), (3, "two"), (4, "three")];
    let mut service = layer.layer(service_fn(move |_: Request<()>| stream(texts.clone())));
    let mut body = service.call(Request::new(())).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    // The first data are known while the rest is on its way.
    let summary = handle.summary(MINUTE);
    assert_eq!((summary.total_requests, summary.in_flight), (0, 1));
    assert_eq!(summary.first_data_metrics.max_seconds, 2.0);
    assert_eq!(summary.latency_metrics.max_seconds, 0.0);

    read(body).await;
    let summary = handle.summary(MINUTE);
    assert_eq!((summary.total_requests, summary.in_flight), (1, 0));
    assert_eq!(summary.latency_metrics.avg_seconds, 9.0);
    assert_eq!(summary.latency_metrics.max_seconds, 9.0);
    assert!(close(summary.latency_metrics.p50_seconds, 9.0));
    assert!(close(summary.first_data_metrics.p99_seconds, 2.0));
}

#[tokio::test(start_paused = true)]
async fn tokens_are_read_from_the_usage_of_a_stream() {
    let layer = layer().classify(Sse);
    let texts = vec![
        (1, ": still thinking\n\n"),
        (
            1,
            "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n",
        ),
        (
            3,
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":30}}\n\n",
        ),
    ];
    let mut service = layer.layer(service_fn(move |_: Request<()>| stream(texts.clone())));
    read(service.call(Request::new(())).await.unwrap().into_body()).await;
    let summary = layer.handle().summary(MINUTE);
    assert_eq!(
        summary.first_data_metrics.max_seconds, 2.0,
        "a comment is no data"
    );
    let tokens = summary.token_metrics;
    assert_eq!((tokens.input_tokens, tokens.output_tokens), (20, 30));
    assert_eq!(tokens.avg_tokens_per_second, 10.0);
    assert_eq!(tokens.max_tokens_per_second, 10.0);
}

#[tokio::test(start_paused = true)]
async fn the_time_between_tokens_is_the_mean_of_each_answer_and_the_longest_gap_of_all() {
    const PIECE: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n";
    const USAGE: &str =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":5}}\n\n";
    let layer = layer().classify(Sse);
    let ask = async |texts: Vec<(u64, &'static str)>| {
        let mut service = layer.layer(service_fn(move |_: Request<()>| stream(texts.clone())));
        read(service.call(Request::new(())).await.unwrap().into_body()).await;
        layer.handle().summary(MINUTE).between_tokens_metrics
    };
    // One piece has no time between, and neither has what is no stream of tokens.
    let gaps = ask(vec![(3, PIECE)]).await;
    assert_eq!((gaps.avg_seconds, gaps.longest_gap_seconds), (0.0, 0.0));
    let gaps = ask(vec![(3, ": comment\n\n"), (9, ": comment\n\n")]).await;
    assert_eq!((gaps.avg_seconds, gaps.longest_gap_seconds), (0.0, 0.0));
    // Three pieces, 5 s and 1 s apart: (5 + 1) / (3 - 1).
    let gaps = ask(vec![(2, PIECE), (5, PIECE), (1, PIECE)]).await;
    assert_eq!((gaps.avg_seconds, gaps.longest_gap_seconds), (3.0, 5.0));
    assert!(close(gaps.p50_seconds, 3.0), "{gaps:?}");
    // Its usage tells of five tokens in 4 s: 4 / (5 - 1).
    let gaps = ask(vec![(2, PIECE), (2, PIECE), (2, PIECE), (0, USAGE)]).await;
    assert_eq!((gaps.avg_seconds, gaps.max_seconds), (2.0, 3.0));
    assert!(close(gaps.p99_seconds, 3.0), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_can_be_promised_to_begin_in_time() {
    let success = Objective::success(0.999).unwrap();
    let begins = SlaLayer::new(success.first_data_within(secs(3), 0.9).unwrap());
    let ends = SlaLayer::new(success.within(secs(3), 0.9).unwrap());
    for layer in [&begins, &ends] {
        let texts = vec![(2, "one"), (8, "two")];
        let mut service = layer.layer(service_fn(move |_: Request<()>| stream(texts.clone())));
        read(service.call(Request::new(())).await.unwrap().into_body()).await;
    }
    let slow = |layer: &SlaLayer| {
        let latency = layer.handle().burn(time::now()).latency.unwrap();
        (latency.bad_events, latency.events)
    };
    assert_eq!((slow(&begins), slow(&ends)), ((0, 1), (1, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_request_counts_in_the_bucket_that_it_ended_in() {
    let layer = SlaLayer::new(objective()).longest_window(secs(300));
    let handle = layer.handle();
    let mut service = layer.layer(service_fn(|_: Request<()>| stream(vec![(400, "late")])));
    read(service.call(Request::new(())).await.unwrap().into_body()).await;
    assert_eq!(handle.summary(secs(10)).total_requests, 1);
    advance(secs(299)).await;
    assert_eq!(handle.summary(secs(300)).total_requests, 1);
    assert_eq!(handle.summary(secs(200)).total_requests, 0);
    advance(secs(12)).await;
    assert_eq!(handle.summary(secs(300)).total_requests, 0);
    assert_eq!(handle.snapshot().verdicts.success, 1);
}
