//! Streams that their deadline cuts, in the words of their readers.

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use palisade_core::{
    BoxError,
    respond::{LayerExt, RespondBody},
};
use palisade_deadline::{AttemptTimeoutLayer, DeadlineLayer, Timeouts};
use tower::{Layer, Service, ServiceExt};

use crate::support::{MILLI, SECOND, Written, written};

/// Writes a piece each 300 ms until nobody reads any more, and gives the answer as its reader gets it.
async fn cut<L, B>(
    layer: impl Fn() -> L,
    path: &str,
    asked: &'static str,
    kind: &'static str,
    piece: &'static str,
) -> http_body_util::Collected<Bytes>
where
    L: Layer<Written, Service: Service<Request<()>, Response = Response<B>, Error = BoxError>>,
    B: Body<Data = Bytes, Error = BoxError>,
{
    let (mut sender, service) = written(kind);
    let service = layer().responding().layer(service);
    let writer = tokio::spawn(async move {
        let mut sent = 0;
        while sender.send_data(piece.into()).await.is_ok() && sent < 100 {
            sent += 1;
            tokio::time::sleep(300 * MILLI).await;
        }
        sent
    });
    let request = Request::post(path).header("content-type", asked);
    let Ok(response) = service.oneshot(request.body(()).unwrap()).await;
    let body: RespondBody<B> = response.into_body();
    let all = body.collect().await.unwrap();
    assert!(writer.await.unwrap() < 10, "the service was let go");
    all
}

#[tokio::test(start_paused = true)]
async fn an_event_stream_that_is_cut_at_its_deadline_ends_with_an_event_that_says_so() {
    let layer = || DeadlineLayer::new(SECOND);
    let (sse, event) = ("text/event-stream", "data: x\n\n");
    let all = cut(
        layer,
        "/v1/chat/completions",
        "application/json",
        sse,
        event,
    )
    .await;
    let text = String::from_utf8(all.to_bytes().into()).unwrap();
    assert_eq!(
        text,
        format!(
            "{}event: error\ndata: {{\"error\":{{\"message\":\"answer not complete after 1s\",\
             \"type\":\"server_error\",\"param\":null,\"code\":\"timed_out\"}}}}\n\n",
            event.repeat(4)
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_grpc_stream_that_is_cut_at_its_deadline_ends_with_status_four() {
    let layer = || DeadlineLayer::new(SECOND);
    let grpc = "application/grpc";
    let all = cut(layer, "/x", grpc, grpc, "\0\0\0\0\x01x").await;
    let trailers = all.trailers().cloned().unwrap();
    assert_eq!(trailers["grpc-status"], "4");
    assert_eq!(trailers["grpc-message"], "answer not complete after 1s");
    assert_eq!(all.to_bytes(), "\0\0\0\0\x01x".repeat(4));
}

#[tokio::test(start_paused = true)]
async fn so_does_one_that_its_timeouts_cut() {
    let layer = || AttemptTimeoutLayer::new(Timeouts::none().idle(200 * MILLI));
    let (sse, event) = ("text/event-stream", "data: x\n");
    let all = cut(layer, "/", "application/json", sse, event).await;
    assert_eq!(
        all.to_bytes(),
        "data: x\n\nevent: error\ndata: {\"error\":{\"message\":\"no more data for 200ms\",\
         \"type\":\"server_error\",\"code\":\"timed_out\"}}\n\n"
    );
}
