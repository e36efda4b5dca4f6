//! Connections that take too long.

use std::{future::pending, io};

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Empty;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use palisade_core::{classify::Verdict, time};
use palisade_deadline::{Awaited, ConnectTimeoutLayer, Elapsed, Limit, Mode};
use tokio::net::TcpStream;
use tokio::time::advance;
use tokio_test::{assert_pending, task};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::support::{MILLI, SECOND};

type Io = TokioIo<TcpStream>;

fn black_hole() -> impl Service<
    Uri,
    Response = Io,
    Error = io::Error,
    Future = impl Future<Output = io::Result<Io>> + Send + Unpin,
> + Clone
+ Send
+ Sync {
    service_fn(|_: Uri| pending::<io::Result<Io>>())
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_comes_is_judged_unsent_through_a_client_of_hyper() {
    let layer = ConnectTimeoutLayer::new(2 * SECOND);
    let client: Client<_, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build(layer.layer(black_hole()));
    let request = Request::get("http://[100::1]/").body(Empty::new()).unwrap();
    let start = time::now();
    let error = client.request(request).await.unwrap_err();
    assert_eq!(start.elapsed(), 2 * SECOND);
    let elapsed = Elapsed::find(&error).unwrap();
    assert_eq!(
        (elapsed.limit, elapsed.awaited, elapsed.after),
        (Limit::Connect, Awaited::Connection, 2 * SECOND)
    );
    assert_eq!(elapsed.to_string(), "no connection after 2s");
    assert_eq!(Verdict::of(&error), Verdict::Unsent);
    assert_eq!(layer.handle().snapshot().ended.connect, 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_at_the_very_instant_is_in_time_and_its_error_is_its_own() {
    for (wait, ok) in [(SECOND, true), (SECOND / 2, false)] {
        let inner = service_fn(move |_: ()| async move {
            tokio::time::sleep(wait).await;
            ok.then_some("connected").ok_or("refused")
        });
        let service = ConnectTimeoutLayer::new(SECOND).layer(inner);
        let mut call = task::spawn(Box::pin(service.oneshot(())));
        assert_pending!(call.poll());
        advance(wait).await;
        assert!(call.is_woken());
        match call.poll() {
            std::task::Poll::Ready(Ok(connected)) => {
                assert_eq!((connected, ok), ("connected", true));
            }
            std::task::Poll::Ready(Err(error)) => {
                assert_eq!((error.to_string(), ok), ("refused".into(), false));
            }
            std::task::Poll::Pending => panic!("not there"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_shadow_lets_a_connection_take_its_time() {
    let layer = ConnectTimeoutLayer::new(SECOND).shadow().named("db");
    let handle = layer.handle();
    let inner = service_fn(async |_: ()| {
        tokio::time::sleep(5 * SECOND).await;
        Ok::<_, io::Error>(())
    });
    assert!(layer.layer(inner).oneshot(()).await.is_ok());
    let seen = handle.snapshot();
    assert_eq!((seen.shadowed.connect, seen.ended.connect), (1, 0));
    assert_eq!((handle.name(), seen.mode), ("db", Mode::Shadow));
}

#[tokio::test(start_paused = true)]
async fn a_change_holds_for_the_next_connection() {
    let layer = ConnectTimeoutLayer::new(SECOND);
    let service = layer.layer(black_hole());
    layer.handle().set(3 * SECOND);
    assert_eq!(layer.handle().get(), 3 * SECOND);
    let start = time::now();
    assert!(service.oneshot(Uri::from_static("/")).await.is_err());
    assert_eq!(start.elapsed(), 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn what_is_late_is_dropped_at_once() {
    let alive = std::sync::Arc::new(());
    let inner = {
        let alive = alive.clone();
        service_fn(move |_: ()| {
            let alive = alive.clone();
            async move {
                let _alive = alive;
                pending::<Result<(), io::Error>>().await
            }
        })
    };
    let mut service = ConnectTimeoutLayer::new(MILLI).layer(inner);
    service.ready().await.unwrap();
    let mut call = task::spawn(service.call(()));
    assert_pending!(call.poll());
    assert_eq!(std::sync::Arc::strong_count(&alive), 3);
    advance(MILLI).await;
    assert!(call.poll().is_ready());
    assert_eq!(
        std::sync::Arc::strong_count(&alive),
        2,
        "while the future is kept"
    );
}
