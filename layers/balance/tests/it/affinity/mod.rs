//! Layers that say to which others a request belongs.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{Empty, Full};
use palisade_balance::{Affinity, PromptAffinity, PromptAffinityLayer, PromptBody, PromptFuture};
use palisade_core::testing::{Step, Steps};
use tokio_test::{assert_ready, task};
use tower::{Layer, Service};

mod bodies;
mod keys;
mod reading;

const CHAT: &str = r#"{"messages":[{"role":"user","content":"Hi"}],"stream":true}"#;

/// Keeps the requests that it gets, and says whether the instance that was ready was the one that was called.
#[derive(Debug)]
struct Keeper<B> {
    kept: Arc<Mutex<Vec<Request<B>>>>,
    ready: bool,
}

impl<B> Keeper<B> {
    fn new() -> Self {
        Self {
            kept: Arc::default(),
            ready: false,
        }
    }

    fn remote(&self) -> Remote<B> {
        Remote(self.kept.clone())
    }
}

impl<B> Clone for Keeper<B> {
    fn clone(&self) -> Self {
        Self {
            kept: self.kept.clone(),
            ready: false,
        }
    }
}

impl<B> Service<Request<B>> for Keeper<B> {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called without being ready"
        );
        self.kept.lock().unwrap().push(request);
        std::future::ready(Ok(Response::new(Empty::new())))
    }
}

struct Remote<B>(Arc<Mutex<Vec<Request<B>>>>);

impl<B> Remote<B> {
    fn calls(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn take(&self) -> Request<B> {
        self.0.lock().unwrap().pop().expect("it was called")
    }

    fn affinity(&self) -> Option<Affinity> {
        self.take().extensions().get().copied()
    }
}

type Reader<B> = PromptAffinity<Keeper<PromptBody<B>>>;

fn reader<B: Body>() -> (Reader<B>, Remote<PromptBody<B>>) {
    reader_by(PromptAffinityLayer::new())
}

fn reader_by<B: Body>(layer: PromptAffinityLayer) -> (Reader<B>, Remote<PromptBody<B>>) {
    let keeper = Keeper::new();
    let remote = keeper.remote();
    (layer.layer(keeper), remote)
}

/// The call of a request with this body, not polled.
fn call<B>(service: &mut Reader<B>, body: B) -> task::Spawn<PromptFuture<Keeper<PromptBody<B>>, B>>
where
    B: Body<Data = Bytes> + Unpin,
{
    call_with(service, Request::new(body))
}

fn call_with<B>(
    service: &mut Reader<B>,
    request: Request<B>,
) -> task::Spawn<PromptFuture<Keeper<PromptBody<B>>, B>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    task::spawn(service.call(request))
}

fn steps(pieces: &[&'static str]) -> Steps {
    Steps::new(pieces.iter().map(|piece| Step::Data(piece)))
}

fn by_prompt(body: &'static str) -> Option<Affinity> {
    let (mut service, remote) = reader();
    assert_ready!(call(&mut service, Full::from(body)).poll()).unwrap();
    remote.affinity()
}
