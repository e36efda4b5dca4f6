use http::Method;
use palisade_core::{
    deadline::Deadline,
    reject::{Reason, Rejected},
    testing::Step,
    time,
};
use palisade_retry::{HedgeLayer, Repeatable, hedge::Delay};

use crate::hedge_support::{
    MILLI, Server, all, answers, fails, get, hangs, head, hedge, rich, send, streams, text, with,
};

#[tokio::test(start_paused = true)]
async fn a_slow_attempt_is_overtaken_by_a_hedge_that_says_so() {
    let (layer, server) = (hedge(), Server::new([hangs(), answers(10, 200)]));
    let (answer, took) = send(&layer, &server, get()).await;
    assert_eq!((answer.unwrap().status().as_u16(), took), (200, 110));
    assert_eq!(server.times(), [0, 100]);
    let sent = server.sent();
    assert!(sent[0].headers.is_empty());
    assert_eq!(sent[1].headers["x-attempt"], "2");
    let seen = layer.handle().snapshot();
    assert_eq!(
        (seen.requests, seen.sent, seen.won, seen.lost),
        (1, 1, 1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn the_first_attempt_wins_when_it_is_faster_all_the_same() {
    let first = streams(150, 200, &[], || vec![Step::Data("first")]);
    let (layer, server) = (hedge(), Server::new([first, hangs()]));
    let (answer, took) = send(&layer, &server, get()).await;
    assert_eq!((text(answer.unwrap()).await.as_str(), took), ("first", 150));
    let seen = layer.handle().snapshot();
    assert_eq!((seen.sent, seen.won, seen.lost), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_twice_that_is_answered_before_the_delay() {
    let (layer, server) = (hedge(), Server::new([answers(99, 200)]));
    assert_eq!(send(&layer, &server, get()).await.1, 99);
    assert_eq!(server.times(), [0]);
}

#[tokio::test(start_paused = true)]
async fn what_fails_before_the_delay_is_left_to_a_retry() {
    for act in [answers(99, 503), fails(99, "broken")] {
        let (layer, server) = (hedge(), Server::new([act, answers(0, 200)]));
        let (answer, took) = send(&layer, &server, get()).await;
        assert!(answer.map_or(true, |answer| answer.status() == 503));
        assert_eq!((took, server.times().len()), (99, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_put_aside_while_another_attempt_runs() {
    for first in [answers(150, 500), fails(150, "broken")] {
        let server = Server::new([first, answers(100, 200)]);
        let (answer, took) = send(&hedge(), &server, get()).await;
        assert_eq!((answer.unwrap().status().as_u16(), took), (200, 200));
    }
    for second in [answers(10, 503), fails(10, "broken")] {
        let server = Server::new([answers(300, 200), second]);
        let (answer, took) = send(&hedge(), &server, get()).await;
        assert_eq!((answer.unwrap().status().as_u16(), took), (200, 300));
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_the_last_answer_or_error_is_returned_as_it_is() {
    let last = streams(300, 500, &[("x-mine", "1")], || vec![Step::Data("last")]);
    let server = Server::new([last, fails(10, "broken")]);
    let (answer, took) = send(&hedge(), &server, get()).await;
    let answer = answer.unwrap();
    assert_eq!((answer.status().as_u16(), took), (500, 300));
    assert_eq!(answer.headers()["x-mine"], "1");
    assert_eq!(text(answer).await, "last");

    let server = Server::new([answers(150, 500), fails(100, "last")]);
    let (answer, took) = send(&hedge(), &server, get()).await;
    assert_eq!(
        (answer.err().unwrap().to_string().as_str(), took),
        ("last", 200)
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_caller_is_to_blame_for_is_an_answer() {
    let server = Server::new([hangs(), answers(10, 404)]);
    let (answer, took) = send(&hedge(), &server, get()).await;
    assert_eq!((answer.unwrap().status().as_u16(), took), (404, 110));
}

#[tokio::test(start_paused = true)]
async fn only_what_may_be_repeated_is_hedged() {
    let mut keyed = with(Method::POST, "");
    keyed
        .headers_mut()
        .insert("idempotency-key", "1".parse().unwrap());
    let unsent = hedge().repeat(Repeatable::IdempotentOrUnsent);
    let every = hedge().repeat(Repeatable::All);
    for (layer, request, attempts) in [
        (hedge(), with(Method::POST, ""), 1),
        (hedge(), keyed, 2),
        (hedge(), with(Method::DELETE, ""), 2),
        (unsent, with(Method::POST, ""), 1),
        (every, with(Method::POST, ""), 2),
    ] {
        let server = Server::new([answers(200, 200)]);
        send(&layer, &server, request).await.0.unwrap();
        assert_eq!(server.times().len(), attempts);
    }
}

#[tokio::test(start_paused = true)]
async fn a_function_chooses_the_delay_or_none() {
    let layer = HedgeLayer::new(Delay::by(|head| match head.uri.path() {
        "/slow" => Some(70 * MILLI),
        _ => None,
    }))
    .at_most(all());
    for (path, times) in [("/slow", vec![0, 70]), ("/other", vec![0])] {
        let server = Server::new([answers(500, 200)]);
        let mut request = get();
        *request.uri_mut() = path.parse().unwrap();
        send(&layer, &server, request).await.0.unwrap();
        assert_eq!(server.times(), times);
    }
}

#[tokio::test(start_paused = true)]
async fn a_third_attempt_follows_after_another_delay_and_never_a_fourth() {
    let acts = || [hangs(), hangs(), answers(250, 200), answers(0, 200)];
    let (layer, server) = (rich(hedge().attempts(9)).await, Server::new(acts()));
    let (answer, took) = send(&layer, &server, get()).await;
    assert_eq!((answer.unwrap().status().as_u16(), took), (200, 450));
    assert_eq!(server.times(), [0, 100, 200]);
    assert_eq!(server.sent()[2].headers["x-attempt"], "3");
    let seen = layer.handle().snapshot();
    assert_eq!((seen.sent, seen.won, seen.lost), (2, 1, 1));
    assert_eq!(server.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_an_attempt_goes_on_from_that_of_a_retry_further_out() {
    let server = Server::new([hangs(), answers(10, 200)]);
    let mut request = get();
    request.headers_mut().insert("x-attempt", 2.into());
    send(&hedge(), &server, request).await.0.unwrap();
    assert_eq!(server.sent()[1].headers["x-attempt"], "3");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_to_be_left_alone_is_sent_no_more() {
    let busy = [
        (503, [("retry-after", "1")], 2),
        (503, [("grpc-retry-pushback-ms", "10")], 2),
        (500, [("grpc-retry-pushback-ms", "-1")], 2),
        (500, [("x-should-retry", "false")], 2),
        (500, [("x-other", "false")], 3),
    ];
    for (status, headers, attempts) in busy {
        let (layer, server) = (
            rich(hedge().attempts(3)).await,
            Server::new([head(150, status, &headers), answers(400, 200)]),
        );
        let (answer, took) = send(&layer, &server, get()).await;
        assert_eq!((answer.unwrap().status().as_u16(), took), (200, 500));
        assert_eq!(server.times().len(), attempts, "{status} {headers:?}");
        let pushed_back = layer.handle().snapshot().pushed_back;
        assert_eq!(pushed_back, u64::from(attempts == 2));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_hedged_past_the_deadline() {
    for (deadline, attempts) in [(100, 1), (101, 2)] {
        let server = Server::new([answers(200, 200)]);
        let mut request = get();
        let deadline = Deadline(time::now() + deadline * MILLI);
        request.extensions_mut().insert(deadline);
        send(&hedge(), &server, request).await.0.unwrap();
        assert_eq!(server.times().len(), attempts);
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_layer_refuses_does_not_end_the_race() {
    #[derive(Clone)]
    struct Full;
    impl<B: Send + 'static> tower::Service<http::Request<palisade_retry::HedgeBody<B>>> for Full {
        type Response = http::Response<String>;
        type Error = palisade_core::BoxError;
        type Future = crate::hedge_support::Reply<String>;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), Self::Error>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<palisade_retry::HedgeBody<B>>) -> Self::Future {
            let is_hedge = request.headers().contains_key("x-attempt");
            Box::pin(async move {
                if is_hedge {
                    return Err(Rejected::new(Reason::NoEndpoint, "one endpoint").into());
                }
                tokio::time::sleep(150 * MILLI).await;
                Ok(http::Response::new("first".into()))
            })
        }
    }
    let layer = hedge();
    let answer = tower::ServiceExt::oneshot(tower::Layer::layer(&layer, Full), get()).await;
    assert!(answer.is_ok());
    assert_eq!(layer.handle().snapshot().lost, 1);
}
