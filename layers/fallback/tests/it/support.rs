use std::{
    collections::VecDeque,
    future::pending,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, request};
use http_body_util::{BodyExt, Full};
use palisade_core::{
    BoxError,
    classify::Classify,
    reject::{Reason, Rejected},
    testing::{Step, Steps},
};
use palisade_fallback::{FallbackBody, FallbackLayer, ReplayBody, ServedBy};
use tower::{Layer, Service, ServiceExt};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) type Sent = Full<Bytes>;
pub(crate) type Answer = Result<Response<Steps>, BoxError>;
pub(crate) type Reply = Pin<Box<dyn Future<Output = Answer> + Send>>;
pub(crate) type Line<B = Sent> = Arc<dyn Fn(Request<ReplayBody<B>>) -> Reply + Send + Sync>;

/// A service that answers from a script, the last line again and again.
pub(crate) struct Backend<B = Sent>(Arc<Inner<B>>);

struct Inner<B> {
    script: Mutex<VecDeque<Line<B>>>,
    seen: Mutex<Vec<request::Parts>>,
}

impl<B> Backend<B> {
    pub(crate) fn new(script: impl IntoIterator<Item = Line<B>>) -> Self {
        Self(Arc::new(Inner {
            script: Mutex::new(script.into_iter().collect()),
            seen: Mutex::default(),
        }))
    }

    /// The heads that it was sent.
    pub(crate) fn seen(&self) -> Vec<request::Parts> {
        self.0.seen.lock().unwrap().clone()
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.seen.lock().unwrap().len()
    }
}

impl<B> Clone for Backend<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> Service<Request<ReplayBody<B>>> for Backend<B> {
    type Response = Response<Steps>;
    type Error = BoxError;
    type Future = Reply;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReplayBody<B>>) -> Reply {
        let (parts, body) = request.into_parts();
        self.0.seen.lock().unwrap().push(parts.clone());
        let mut script = self.0.script.lock().unwrap();
        let line = match script.len() {
            1 => script[0].clone(),
            _ => script.pop_front().unwrap(),
        };
        drop(script);
        line(Request::from_parts(parts, body))
    }
}

/// Answers with a status, headers and this text, and reads nothing.
pub(crate) fn says<B>(
    status: u16,
    headers: &[(&'static str, &'static str)],
    text: &'static str,
) -> Line<B> {
    let headers = headers.to_vec();
    Arc::new(move |_| {
        let mut response = Response::builder().status(status);
        for &(name, value) in &headers {
            response = response.header(name, value);
        }
        let response = response.body(Steps::new([Step::Data(text)])).unwrap();
        Box::pin(async { Ok(response) })
    })
}

pub(crate) fn status<B>(status: u16) -> Line<B> {
    says(status, &[], "")
}

/// 200 and this text.
pub(crate) fn ok<B>(text: &'static str) -> Line<B> {
    says(200, &[], text)
}

/// Fails with an error made anew each time.
pub(crate) fn fails<B>(error: impl Fn() -> BoxError + Send + Sync + 'static) -> Line<B> {
    Arc::new(move |_| {
        let error = error();
        Box::pin(async { Err(error) })
    })
}

pub(crate) fn io_error<B>(kind: io::ErrorKind) -> Line<B> {
    fails(move || io::Error::from(kind).into())
}

pub(crate) fn rejects<B>(reason: Reason) -> Line<B> {
    fails(move || Rejected::new(reason, reason.name()).into())
}

/// Never answers, but keeps the request.
pub(crate) fn hangs<B: Send + 'static>() -> Line<B> {
    Arc::new(|request| {
        Box::pin(async {
            let _request = request;
            pending().await
        })
    })
}

/// An event stream of these steps.
pub(crate) fn streams<B>(steps: impl Fn() -> Vec<Step> + Send + Sync + 'static) -> Line<B> {
    Arc::new(move |_| {
        let response = Response::builder().header("content-type", "text/event-stream");
        let response = response.body(Steps::new(steps())).unwrap();
        Box::pin(async { Ok(response) })
    })
}

/// A layer with one alternative, another service.
pub(crate) fn secondary<B: Send + 'static>(other: &Backend<B>) -> FallbackLayer<B> {
    FallbackLayer::new().service("secondary", other.clone())
}

pub(crate) fn request() -> Request<Sent> {
    Request::new(Full::from("hello"))
}

pub(crate) type Passed = Response<FallbackBody<Steps>>;

/// One request through the layer.
pub(crate) async fn send<C: Classify<Judge: Send>>(
    layer: &FallbackLayer<Sent, C>,
    backend: &Backend,
    request: Request<Sent>,
) -> Result<Passed, BoxError> {
    layer.layer(backend.clone()).oneshot(request).await
}

pub(crate) async fn get<C: Classify<Judge: Send>>(
    layer: &FallbackLayer<Sent, C>,
    backend: &Backend,
) -> Result<Passed, BoxError> {
    send(layer, backend, request()).await
}

/// Who has served, by the header and by the extension, which say the same.
pub(crate) fn by<T>(response: &Response<T>) -> Option<&str> {
    let header = response.headers().get("x-fallback");
    let header = header.map(|name| name.to_str().unwrap());
    let extension = response.extensions().get::<ServedBy>();
    assert_eq!(header, extension.map(ServedBy::name));
    header
}

/// The text of a body, and the error it ended with.
pub(crate) async fn text(response: Passed) -> (String, Option<String>) {
    let mut body = Box::pin(response.into_body());
    let mut text = String::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let data = frame.into_data().unwrap_or_default();
                text.push_str(std::str::from_utf8(&data).unwrap());
            }
            Err(error) => return (text, Some(error.to_string())),
        }
    }
    (text, None)
}

/// What a request comes to: its status, who served, and its text.
pub(crate) async fn outcome<C: Classify<Judge: Send>>(
    layer: &FallbackLayer<Sent, C>,
    backend: &Backend,
) -> (u16, Option<String>, String) {
    let response = get(layer, backend).await.unwrap();
    let status: StatusCode = response.status();
    let by = by(&response).map(str::to_owned);
    (status.as_u16(), by, text(response).await.0)
}

/// The reason of a refusal.
pub(crate) fn reason(error: &BoxError) -> Option<Reason> {
    Rejected::find(&**error).map(Rejected::reason)
}
