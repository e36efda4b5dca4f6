use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, Request,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use http_body::Body;
use palisade_core::time;
use pin_project::pin_project;
use tokio::time::{Sleep, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    PromptBody,
    body::Read,
    scan::{Bounds, Content, Scan},
};
use crate::Affinity;

/// Behind a system prompt of some length the first words of the user are still found.
const READ: usize = 16 * 1024;
/// About 250 tokens, which are processed in no time: conversations whose beginning is shorter than this and not yet
/// told apart from their next turn lose nothing by going elsewhere.
const PREFIX: usize = 1024;
const WAIT: Duration = Duration::from_millis(100);
/// As good as for ever, and no instant overflows.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// A body that comes in more frames than this has none of the affinity that it would have in fewer: keeping frames of a
/// byte each takes a hundred times their size.
const FRAMES: usize = 256;

/// Keeps requests together whose prompts begin alike, so that the endpoint has the beginning in its cache: the turns of
/// a conversation.
///
/// Goes outside the balancer. The beginning of the body is read until the prompt is known, then the request is sent
/// with a [`PromptBody`] that has it all, and the rest streams on.
///
/// # What counts
///
/// In a JSON object the value of the first of the names `messages`, `prompt`, `input`, `inputs` and `contents`, after
/// `system` and `instructions` if these come before it. Of messages all up to the first one of the role `user`, since
/// they stay what they are while the conversation grows, and of each the first KiB ([`prefix`](Self::prefix)), so that
/// what the user says counts behind a long system prompt. Of a prompt in one piece the first KiB. Spaces and names do
/// not matter, nor does the `cache_control` of blocks. Of other bodies, compressed ones and JSON without such a name,
/// the first KiB as it is; of gRPC without the head of the message.
///
/// At most 16 KiB are read ([`read`](Self::read)): what was found in them counts. A body of which nothing comes for 100
/// ms ([`wait`](Self::wait)) before that is sent on without an affinity: its sender may be waiting for an answer.
///
/// A request that has an [`Affinity`] keeps it, and its body is not read. So a layer outside this one comes first:
///
/// ```
/// use http::{Request, Response};
/// use http_body_util::{Empty, Full};
/// use palisade_balance::{AffinityLayer, BalanceLayer, Endpoints, PromptAffinityLayer, Strategy};
/// use palisade_core::key;
/// use tower::ServiceBuilder;
/// # use bytes::Bytes;
/// # use palisade_core::testing::Answers;
/// # let client = Answers(|| Response::new(Empty::<Bytes>::new()));
/// # let endpoints = Endpoints::default();
/// # endpoints.insert(palisade_balance::Endpoint::new("a", client));
///
/// // By session if the request names one, and else by prompt.
/// let service = ServiceBuilder::new()
///     .layer(AffinityLayer::new(key::header("x-session-id")))
///     .layer(PromptAffinityLayer::new())
///     .layer(BalanceLayer::new(Strategy::ConsistentHash))
///     .service(endpoints);
/// # fn is_service(_: impl tower::Service<Request<Full<Bytes>>>) {}
/// # is_service(service);
/// ```
///
/// # Cancellation
///
/// Nothing is sent when the request is dropped while its body is read.
///
/// # Errors
///
/// None of its own. An error of the body comes again where the body is read.
#[derive(Clone, Copy, Debug)]
pub struct PromptAffinityLayer {
    bounds: Bounds,
    wait: Duration,
}

impl Default for PromptAffinityLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl PromptAffinityLayer {
    /// Reads 16 KiB at most, and counts the first KiB of a message.
    pub fn new() -> Self {
        let bounds = Bounds {
            read: READ,
            prefix: PREFIX,
        };
        Self { bounds, wait: WAIT }
    }

    /// Reads no more than so many bytes, 16 KiB unless said otherwise, and keeps no more than that and what else came
    /// in the same frame. 0 reads nothing.
    #[must_use]
    pub fn read(mut self, bytes: usize) -> Self {
        self.bounds.read = bytes;
        self
    }

    /// Counts so many bytes of each message or of the prompt: 1 KiB unless said otherwise, and at least 1 byte. With
    /// less, prompts that begin alike and go on differently share an endpoint; with more, a prompt in one piece that
    /// grows has to be longer before it stays where it is.
    #[must_use]
    pub fn prefix(mut self, bytes: usize) -> Self {
        self.bounds.prefix = bytes.max(1);
        self
    }

    /// Waits no longer than this for a body that does not come: 100 ms unless said otherwise. Zero takes what is there.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait.min(LONGEST);
        self
    }
}

impl Affinity {
    /// Of how the prompt begins in a body that is here as a whole, as [`PromptAffinityLayer`] finds it. `None` if the
    /// body is empty.
    ///
    /// ```
    /// use palisade_balance::Affinity;
    ///
    /// let turn = br#"{"messages": [{"role": "user", "content": "Hello"}]}"#;
    /// let next = br#"{"model": "m", "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant"}]}"#;
    /// assert_eq!(Affinity::of_prompt(turn), Affinity::of_prompt(next));
    /// assert_eq!(Affinity::of_prompt(b""), None);
    /// ```
    pub fn of_prompt(body: &[u8]) -> Option<Self> {
        let bounds = PromptAffinityLayer::new().bounds;
        let mut scan = Scan::new(bounds, Content::Open);
        scan.read(body);
        scan.affinity()
    }
}

impl<S> Layer<S> for PromptAffinityLayer {
    type Service = PromptAffinity<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PromptAffinity {
            inner,
            layer: *self,
        }
    }
}

/// Says to which others a request belongs, by its prompt. Made by [`PromptAffinityLayer`].
///
/// The instance that was ready is kept while the body is read, so places that it holds are taken for that long.
#[derive(Clone, Debug)]
pub struct PromptAffinity<S> {
    inner: S,
    layer: PromptAffinityLayer,
}

impl<S, B> Service<Request<B>> for PromptAffinity<S>
where
    S: Service<Request<PromptBody<B>>> + Clone,
    B: Body<Data = Bytes> + Unpin,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = PromptFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let request = request.map(PromptBody::new);
        let known = request.extensions().get::<Affinity>().is_some();
        if known || self.layer.bounds.read == 0 || request.body().is_end_stream() {
            let inner = self.inner.call(request);
            return PromptFuture {
                state: State::Called { inner },
            };
        }
        let scan = Scan::new(self.layer.bounds, content(request.headers()));
        let clone = self.inner.clone();
        let reading = Reading {
            // The one that was ready is the one that is called.
            service: mem::replace(&mut self.inner, clone),
            request,
            scan,
        };
        PromptFuture {
            state: State::Reading {
                reading: Some(reading),
                wait: self.layer.wait,
                sleep: None,
            },
        }
    }
}

fn content(headers: &HeaderMap) -> Content {
    let kind = headers
        .get(CONTENT_TYPE)
        .map_or(&[][..], |value| value.as_bytes());
    let grpc = kind
        .get(..16)
        .is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/grpc"));
    let coding = headers.get(CONTENT_ENCODING);
    if grpc {
        Content::Grpc
    } else if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        Content::Opaque
    } else {
        Content::Open
    }
}

/// A response future that reads the beginning of the request first.
#[pin_project]
pub struct PromptFuture<S, B>
where
    S: Service<Request<PromptBody<B>>>,
    B: Body,
{
    #[pin]
    state: State<S, B>,
}

#[pin_project(project = StateProj)]
#[allow(
    clippy::large_enum_variant,
    reason = "a box would be an allocation for each request"
)]
enum State<S, B>
where
    S: Service<Request<PromptBody<B>>>,
    B: Body,
{
    Reading {
        reading: Option<Reading<S, B>>,
        wait: Duration,
        /// Only of a body that has let itself be waited for.
        #[pin]
        sleep: Option<Sleep>,
    },
    Called {
        #[pin]
        inner: S::Future,
    },
}

struct Reading<S, B: Body> {
    service: S,
    request: Request<PromptBody<B>>,
    scan: Scan,
}

impl<S, B> Reading<S, B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// Reads until the prompt is known, or there is nothing to be known.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Affinity>> {
        loop {
            let body = self.request.body_mut();
            if body.frames() == FRAMES {
                return Poll::Ready(None);
            }
            let known = match ready!(body.poll_read(cx)) {
                Read::Data(data) => self.scan.read(data),
                Read::End => true,
                Read::Error => return Poll::Ready(None),
            };
            if known {
                return Poll::Ready(self.scan.affinity());
            }
        }
    }
}

impl<S, B> Future for PromptFuture<S, B>
where
    S: Service<Request<PromptBody<B>>>,
    B: Body<Data = Bytes> + Unpin,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.as_mut().project().state;
        if let StateProj::Reading {
            reading,
            wait,
            mut sleep,
        } = state.as_mut().project()
        {
            let affinity = match reading.as_mut().expect("polled after a panic").poll(cx) {
                Poll::Ready(affinity) => affinity,
                Poll::Pending => {
                    if sleep.is_none() {
                        sleep.set(Some(sleep_until(time::now() + *wait)));
                    }
                    if let Some(sleep) = sleep.as_pin_mut() {
                        ready!(sleep.poll(cx));
                    }
                    None
                }
            };
            let Reading {
                mut service,
                mut request,
                ..
            } = reading.take().expect("there a moment ago");
            if let Some(affinity) = affinity {
                request.extensions_mut().insert(affinity);
            }
            let inner = service.call(request);
            state.set(State::Called { inner });
        }
        let StateProj::Called { inner } = state.project() else {
            unreachable!("left above");
        };
        inner.poll(cx)
    }
}

impl<S, B> fmt::Debug for PromptFuture<S, B>
where
    S: Service<Request<PromptBody<B>>>,
    B: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptFuture").finish_non_exhaustive()
    }
}
