//! Other models, asked when the one that was asked for cannot answer.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header::CONTENT_LENGTH};
use http_body_util::{BodyExt, Full};
use palisade::{
    BoxError, Reason,
    attempt::Attempts,
    fallback::{Failure, unserved},
    head::RequestHead,
    rate_limit::Tokens,
    replay::ReplayBody,
};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tower::Service;

use crate::{
    errors,
    exchange::{Exchange, Operation},
    splice::{place, splice},
};

/// Says which model has answered instead of the one that was asked for.
pub(crate) const FALLBACK: HeaderName = HeaderName::from_static("x-fallback");

/// The key of [`Config::fallbacks`](crate::Config::fallbacks) for all models that have none of their own.
const DEFAULT: &str = "default";

pub(crate) type Fallbacks = BTreeMap<String, Vec<String>>;

/// Asks the service for the model that comes in this place after the one that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct OtherModel<S> {
    inner: S,
    fallbacks: Arc<Fallbacks>,
    place: usize,
}

impl<S> OtherModel<S> {
    pub(crate) fn new(inner: S, fallbacks: Arc<Fallbacks>, place: usize) -> Self {
        Self {
            inner,
            fallbacks,
            place,
        }
    }
}

/// Whether another model comes in this place after the one that is asked for.
pub(crate) fn has(fallbacks: &Fallbacks, head: &RequestHead<'_>, place: usize) -> bool {
    let Some(asked) = head.extensions.get::<Tokens>() else {
        return false;
    };
    let exchange = head.extensions.get::<Arc<Exchange>>();
    let vectors = exchange.is_some_and(|exchange| exchange.operation == Operation::Embeddings);
    // Vectors of another model mean something else, unless somebody has said that they do not.
    (!vectors || fallbacks.contains_key(&*asked.model))
        && find(fallbacks, &asked.model, place).is_some()
}

/// Whether another model may do better: not where no backend is left for any model, which then would have to carry the
/// requests of all of them.
pub(crate) fn helps(failure: &Failure<'_>) -> bool {
    unserved(failure) && failure.reason() != Some(Reason::NoEndpoint)
}

/// The most models that are ever asked after the first.
pub(crate) fn most(fallbacks: &Fallbacks) -> usize {
    fallbacks.values().map(Vec::len).max().unwrap_or_default()
}

fn find<'a>(fallbacks: &'a Fallbacks, model: &str, place: usize) -> Option<&'a str> {
    let others = fallbacks.get(model).or_else(|| fallbacks.get(DEFAULT))?;
    // One that all others fall back to does not fall back to itself.
    let mut others = others.iter().filter(|other| *other != model);
    others.nth(place).map(String::as_str)
}

impl<S, R> Service<Request<ReplayBody<Full<Bytes>>>> for OtherModel<S>
where
    S: Service<Request<ReplayBody<Full<Bytes>>>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<ReplayBody<Full<Bytes>>>) -> Self::Future {
        let clone = self.inner.clone();
        // The one that was ready is the one that is called.
        let mut inner = mem::replace(&mut self.inner, clone);
        let (fallbacks, place) = (self.fallbacks.clone(), self.place);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let asked = parts.extensions.get::<Tokens>();
            let other = asked.and_then(|asked| find(&fallbacks, &asked.model, place));
            let other = other.ok_or(NoOther)?;
            let body = body.collect().await?.to_bytes();
            let body = with_model(&body, other).ok_or(NoOther)?;
            parts.headers.insert(CONTENT_LENGTH, body.len().into());
            parts.extensions.insert(Instead(other.into()));
            // Those that the fallback looks at: what is spent in there is told to those outside.
            let attempts = parts.extensions.get_or_insert_default::<Attempts>();
            let attempts = attempts.clone();
            let exchange = parts.extensions.get::<Arc<Exchange>>().cloned();
            let counts = exchange.map(|exchange| Counts { exchange, attempts });
            let request = Request::from_parts(parts, ReplayBody::plain(Full::new(body)));
            let answer = inner.call(request).await;
            drop(counts);
            let mut answer = answer.map_err(Into::into)?;
            // It does not know the model, or has no room for the prompt, of which the caller has said nothing.
            if is_about_the_model(answer.status()) {
                return Err(NoOther.into());
            }
            if let Ok(name) = HeaderValue::from_str(other) {
                answer.headers_mut().insert(FALLBACK, name);
            }
            Ok(answer)
        })
    }
}

/// The model that is asked instead of the one that the caller asked for. In the extensions of its attempts.
#[derive(Clone, Debug)]
pub(crate) struct Instead(pub(crate) Arc<str>);

fn is_about_the_model(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY
    )
}

/// Counts the attempts at another model when they are over, also because time has run out.
struct Counts {
    exchange: Arc<Exchange>,
    attempts: Attempts,
}

impl Drop for Counts {
    fn drop(&mut self) {
        self.exchange.asked_elsewhere(self.attempts.count());
    }
}

/// The same request for another model; `None` if it is no object.
fn with_model(body: &Bytes, model: &str) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Asked<'a> {
        #[serde(borrow, default, deserialize_with = "raw")]
        model: Option<&'a RawValue>,
    }
    let asked: Asked<'_> = serde_json::from_slice(body).ok()?;
    let model = errors::json(&model);
    let (at, text) = match asked.model {
        Some(raw) => (place(body, raw), model),
        None => {
            let start = body.iter().position(|byte| *byte == b'{')? + 1;
            let empty = body[start..].trim_ascii_start().starts_with(b"}");
            let comma = if empty { "" } else { "," };
            (start..start, format!("\"model\":{model}{comma}"))
        }
    };
    Some(splice(body, at, &text))
}

/// Also `null`, which an `Option` takes for nothing at all.
fn raw<'de, D: Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(value).map(Some)
}

/// Nothing stands in this place, or not for this request.
#[derive(Debug)]
struct NoOther;

impl fmt::Display for NoOther {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no other model answers instead")
    }
}

impl Error for NoOther {}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(body: &'static str) -> Option<String> {
        let changed = with_model(&Bytes::from_static(body.as_bytes()), "b\"c")?;
        Some(String::from_utf8(changed.to_vec()).unwrap())
    }

    #[test]
    fn only_the_model_of_a_request_is_changed() {
        let expected = r#"{ "messages": [{"model": "x"}], "model": "b\"c" , "n": 1}"#;
        let body = r#"{ "messages": [{"model": "x"}], "model": "a" , "n": 1}"#;
        assert_eq!(changed(body).as_deref(), Some(expected));
        let expected = r#"{"model":"b\"c","prompt":"hi"}"#;
        assert_eq!(changed(r#"{"prompt":"hi"}"#).as_deref(), Some(expected));
        let null = r#"{"model":null,"prompt":"hi"}"#;
        assert_eq!(changed(null).as_deref(), Some(expected), "named once");
        assert_eq!(changed("{ }").as_deref(), Some(r#"{"model":"b\"c" }"#));
        for broken in ["", "[]", "{", r#"{"model":1"#] {
            assert_eq!(changed(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_model_has_those_of_its_own_or_those_of_all_but_never_itself() {
        let list = |names: [&str; 2]| names.map(String::from).to_vec();
        let fallbacks = Fallbacks::from([
            ("a".into(), list(["b", "c"])),
            (DEFAULT.into(), list(["d", "e"])),
        ]);
        let all = |model| {
            (0..3)
                .filter_map(|place| find(&fallbacks, model, place))
                .collect::<Vec<_>>()
        };
        assert_eq!(all("a"), ["b", "c"]);
        assert_eq!(all("z"), ["d", "e"]);
        assert_eq!(all("d"), ["e"]);
        assert_eq!(most(&fallbacks), 2);
        assert_eq!(most(&Fallbacks::new()), 0);
    }
}
