//! `/v1`: passed through as it is, byte for byte, but for the usage that streams are asked to count.

use std::{borrow::Cow, ops::Range, sync::Arc};

use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderValue, Method, Response,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body_util::BodyExt;
use palisade::{BoxError, rate_limit::Tokens, reject::Rejected};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, de::Deserializer};
use serde_json::{Map, Value, value::RawValue};

use super::{
    Asked, Inbound,
    forward::{self, Outbound},
    identify,
    input::{self, Sent},
    tokens::{Messages, Number, Prompts},
};
use crate::{
    affinity::Kin,
    app::App,
    body::{Answer, Body},
    errors::{self, ApiError, Language},
    exchange::{Exchange, Operation},
    headers::{REQUEST_ID, to_backend},
    record::Cause,
    splice::{place, splice},
    sse::{self, Late, PING_EVERY, Relay, UsageEvent},
    stack::PipelineBody,
};

/// Where errors are told as OpenAI tells them.
const PATH: &str = "/v1";

/// What has to be right before a backend is asked, and how much is asked for. Texts are measured, not kept.
#[derive(Debug, Deserialize)]
struct Completion<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    messages: Option<Messages>,
    prompt: Option<Prompts>,
    input: Option<Prompts>,
    #[serde(default)]
    max_tokens: Number,
    #[serde(default)]
    max_completion_tokens: Number,
    #[serde(default)]
    n: Number,
    stream: Option<bool>,
    #[serde(borrow, default, deserialize_with = "present")]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_cache_key: Option<&'a RawValue>,
}

/// Unlike the usual way, `null` is something that stands there.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// What is done about a request.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    stream: bool,
    tokens: Tokens,
    usage: UsageEvent,
    /// Prompts of the same key begin alike, says the caller.
    cache_key: Option<Bytes>,
    body: Bytes,
}

/// What `/v1/completions` gives when nothing is said.
const COMPLETION_TOKENS: u64 = 16;

impl Completion<'_> {
    /// How much of a model is asked for.
    fn tokens(&self, operation: Operation) -> Tokens {
        let answers = self.n.0.unwrap_or(1);
        let chat = || self.messages.map_or(0, Messages::tokens);
        let prompts = |prompts: Option<Prompts>| prompts.map_or((1, 0), |it| (it.count, it.tokens));
        let (prompt, most) = match operation {
            Operation::Completion => {
                let (count, prompt) = prompts(self.prompt);
                let most = self.max_tokens.0.unwrap_or(COMPLETION_TOKENS);
                (prompt, Some(most.saturating_mul(count)))
            }
            Operation::Embeddings => (prompts(self.input).1, Some(0)),
            _ => (chat(), self.max_completion_tokens.0.or(self.max_tokens.0)),
        };
        let tokens = Tokens::new(&*self.model, prompt);
        match most {
            Some(most) => tokens.max_completion(most.saturating_mul(answers)),
            None => tokens,
        }
    }
}

impl Plan {
    fn new(operation: Operation, body: Bytes) -> Result<Self, ApiError> {
        let asked: Completion<'_> = input::json(&body)?;
        let wrong = |field: &'static str, detail: &'static str| {
            Err(ApiError::bad_request(format!("`{field}` {detail}")).param(field))
        };
        if asked.model.is_empty() {
            return wrong("model", "is empty");
        }
        match operation {
            Operation::Chat => match asked.messages {
                None => return wrong("messages", "is missing"),
                Some(messages) if messages.count == 0 => return wrong("messages", "is empty"),
                Some(_) => {}
            },
            Operation::Completion if asked.prompt.is_none() => {
                return wrong("prompt", "is missing");
            }
            Operation::Embeddings if asked.input.is_none() => return wrong("input", "is missing"),
            _ => {}
        }
        let stream = asked.stream == Some(true) && operation != Operation::Embeddings;
        let tokens = asked.tokens(operation);
        let cache_key = asked.prompt_cache_key;
        let cache_key = cache_key.map(|key| body.slice_ref(key.get().as_bytes()));
        if !stream {
            let usage = UsageEvent::Keep;
            return Ok(Self {
                stream,
                tokens,
                usage,
                cache_key,
                body,
            });
        }
        let edit = match asked.stream_options {
            None => Edit::Append,
            Some(raw) => match serde_json::from_str::<Option<Map<String, Value>>>(raw.get()) {
                Err(_) => return wrong("stream_options", "is not an object"),
                Ok(options) => {
                    let mut options = options.unwrap_or_default();
                    if options.get("include_usage") == Some(&Value::Bool(true)) {
                        Edit::None
                    } else {
                        options.insert("include_usage".into(), true.into());
                        Edit::Replace(place(&body, raw), errors::json(&options))
                    }
                }
            },
        };
        let usage = match edit {
            Edit::None => UsageEvent::Keep,
            _ => UsageEvent::Remove,
        };
        let body = edit.apply(body);
        Ok(Self {
            stream,
            tokens,
            usage,
            cache_key,
            body,
        })
    }
}

/// How `stream_options` get to ask for the usage.
enum Edit {
    None,
    Append,
    Replace(Range<usize>, String),
}

impl Edit {
    fn apply(self, body: Bytes) -> Bytes {
        let (at, text) = match self {
            Self::None => return body,
            Self::Replace(at, text) => (at, text),
            Self::Append => {
                // An object with a model in it, so there is something before its end.
                let end = body
                    .iter()
                    .rposition(|byte| *byte == b'}')
                    .unwrap_or(body.len());
                (
                    end..end,
                    r#","stream_options":{"include_usage":true}"#.into(),
                )
            }
        };
        splice(&body, at, &text)
    }
}

/// `POST` below `/v1`.
pub(super) async fn answer(
    inbound: Inbound<impl Sent>,
    operation: Operation,
) -> Result<Answer, ApiError> {
    let Asked {
        app,
        entry,
        exchange,
        parts,
        body,
    } = match inbound.enter(operation, PATH).await? {
        Ok(asked) => asked,
        Err(refused) => return Ok(*refused),
    };
    let plan = Plan::new(operation, body);
    let plan = plan.map_err(|error| forward::wrong(&app, &exchange, PATH, error))?;
    exchange.asked_for(&plan.tokens, plan.stream);
    let kin = Kin::find(&app, &exchange.caller, &parts.headers);
    let mut headers = to_backend(parts.headers);
    headers.insert(REQUEST_ID, entry.id().clone());
    let timeouts = &app.config.timeouts;
    let outbound = Outbound {
        exchange: exchange.clone(),
        method: Method::POST,
        uri: parts.uri,
        headers,
        extensions: parts.extensions,
        affinity: kin.with_body(plan.cache_key.as_deref(), &plan.body),
        body: plan.body,
        tokens: Some(plan.tokens),
        limit: if plan.stream {
            timeouts.stream
        } else {
            timeouts.request
        },
    };
    if plan.stream {
        return Ok(stream(&app, &exchange, outbound, plan.usage).await);
    }
    let answer = outbound.send(&app).await;
    let answer = match forward::passed(&app, &exchange, PATH, answer) {
        Ok(response) => response.map(Body::Passed),
        Err(answer) => *answer,
    };
    Ok(answer)
}

/// `GET /v1/models`, of any backend.
pub(super) async fn models(inbound: Inbound) -> Result<Answer, ApiError> {
    let Inbound {
        app,
        entry,
        request,
    } = inbound;
    let (parts, _) = request.into_parts();
    let exchange = identify(&app, &entry, &parts.headers, Operation::Models);
    let exchange = exchange.map_err(|(_, error)| error)?;
    if leaves(parts.uri.path()) {
        return Err(ApiError::not_found("there is no such model"));
    }
    let mut headers = to_backend(parts.headers);
    headers.insert(REQUEST_ID, entry.id().clone());
    let outbound = Outbound {
        exchange: exchange.clone(),
        method: Method::GET,
        uri: parts.uri,
        headers,
        extensions: Extensions::new(),
        body: Bytes::new(),
        tokens: None,
        affinity: None,
        limit: app.config.timeouts.request,
    };
    let answer = outbound.send(&app).await;
    Ok(match forward::passed(&app, &exchange, PATH, answer) {
        Ok(response) => response.map(Body::Passed),
        Err(answer) => *answer,
    })
}

/// Whether a path leads out of where it begins, for a backend that follows `..`: the gateway's key goes with it.
fn leaves(path: &str) -> bool {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    decoded
        .split(['/', '\\'])
        .any(|segment| matches!(segment, "." | ".."))
}

async fn stream(
    app: &Arc<App>,
    exchange: &Arc<Exchange>,
    outbound: Outbound,
    usage: UsageEvent,
) -> Answer {
    let sent = {
        let app = app.clone();
        async move { outbound.send(&app).await }
    };
    let mut sent = Box::pin(sent);
    let farewell = Farewell {
        app: app.clone(),
        exchange: exchange.clone(),
    };
    let Ok(answer) = tokio::time::timeout(PING_EVERY, &mut sent).await else {
        // From here on there is no status left to fail with.
        let mut answer = Response::new(());
        forward::sign(answer.headers_mut(), exchange, app, Language::OpenAi);
        let (late, exchange) = (app.clone(), exchange.clone());
        let late: Late<PipelineBody> =
            Box::pin(
                async move { told(forward::passed(&late, &exchange, PATH, sent.await)).await },
            );
        return events(answer.map(|()| Relay::waiting(late, usage, farewell)));
    };
    match forward::passed(app, exchange, PATH, answer) {
        Ok(response) if is_events(response.headers()) => {
            events(response.map(|body| Relay::new(body, usage, farewell)))
        }
        Ok(response) => response.map(Body::Passed),
        Err(answer) => *answer,
    }
}

/// An answer as an event, if it is no stream of them.
async fn told(
    answer: Result<Response<PipelineBody>, Box<Answer>>,
) -> Result<Response<PipelineBody>, String> {
    let body = match answer {
        Ok(response) if is_events(response.headers()) => return Ok(response),
        Ok(response) => response.map(Body::Passed).into_body(),
        Err(answer) => answer.into_body(),
    };
    let body = body.collect().await.map(|body| body.to_bytes());
    let body = body.unwrap_or_default();
    // An event is one line.
    let told = serde_json::from_slice::<Value>(&body).ok();
    let told = told.filter(|told| told.get("error").is_some());
    Err(match told {
        Some(told) => told.to_string(),
        None => ApiError::bad_gateway("the backend did not answer with a stream").openai(),
    })
}

fn events(response: Response<Relay<PipelineBody, Farewell>>) -> Answer {
    let mut answer = response.map(Body::Events);
    let headers = answer.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

fn is_events(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"))
}

/// Tells why a stream breaks off.
pub(crate) struct Farewell {
    app: Arc<App>,
    exchange: Arc<Exchange>,
}

impl sse::Farewell for Farewell {
    fn data(&self, error: BoxError) -> String {
        if Rejected::find(&*error).is_none() {
            self.exchange.because(Cause::of_error(&error));
            return ApiError::bad_gateway("the backend broke the stream off").openai();
        }
        forward::count_refusal(&self.app, &self.exchange.caller, &error);
        let answer = forward::refuse(&self.app, &self.exchange, PATH, &error);
        let told = errors::whole(answer.into_body());
        String::from_utf8_lossy(&told).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: &str = r#"{"model":"m","messages":[{}],"stream":true}"#;

    fn plan(body: &str) -> Plan {
        Plan::new(Operation::Chat, Bytes::copy_from_slice(body.as_bytes())).unwrap()
    }

    #[test]
    fn a_stream_always_counts_its_tokens_and_the_rest_stays_byte_for_byte() {
        let asked = r#""stream_options":{"include_usage":true}"#;
        for (body, expected) in [
            (
                ASKED.to_owned(),
                format!(r#"{{"model":"m","messages":[{{}}],"stream":true,{asked}}}"#),
            ),
            (
                ASKED.replace("true}", "true,  \"stream_options\": null , \"x\":[1e2]}\n"),
                ASKED.replace(
                    "true}",
                    "true,  \"stream_options\": {\"include_usage\":true} , \"x\":[1e2]}\n",
                ),
            ),
            (
                ASKED.replace(
                    "true}",
                    r#"true,"stream_options":{"include_usage":false,"a":1}}"#,
                ),
                ASKED.replace(
                    "true}",
                    r#"true,"stream_options":{"a":1,"include_usage":true}}"#,
                ),
            ),
        ] {
            let plan = plan(&body);
            assert_eq!(plan.body, expected);
            assert_eq!((plan.stream, plan.usage), (true, UsageEvent::Remove));
        }
    }

    #[test]
    fn what_needs_no_edit_is_not_copied() {
        let asked = ASKED.replace("true}", r#"true,"stream_options":{"include_usage":true}}"#);
        for (body, usage) in [
            (asked, UsageEvent::Keep),
            (ASKED.replace("true", "false"), UsageEvent::Keep),
            (ASKED.replace("true", "null"), UsageEvent::Keep),
        ] {
            let bytes = Bytes::from(body);
            let plan = Plan::new(Operation::Chat, bytes.clone()).unwrap();
            assert_eq!(plan.body.as_ptr(), bytes.as_ptr());
            assert_eq!(plan.usage, usage);
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (operation, body, param) in [
            (Operation::Chat, r#"{"messages":[{}]}"#, "model"),
            (Operation::Chat, r#"{"model":"m"}"#, "messages"),
            (
                Operation::Chat,
                r#"{"model":"m","messages":[]}"#,
                "messages",
            ),
            (
                Operation::Chat,
                r#"{"model":"m","messages":"hi"}"#,
                "messages",
            ),
            (Operation::Chat, r#"{"model":7,"messages":[{}]}"#, "model"),
            (
                Operation::Chat,
                r#"{"model":"m","messages":[{}],"stream":"yes"}"#,
                "stream",
            ),
            (
                Operation::Chat,
                r#"{"model":"m","messages":[{}],"stream":true,"stream_options":7}"#,
                "stream_options",
            ),
            (Operation::Completion, r#"{"model":"m"}"#, "prompt"),
            (Operation::Embeddings, r#"{"model":"m"}"#, "input"),
        ] {
            let error = Plan::new(operation, Bytes::from(body)).unwrap_err();
            let told: Value = serde_json::from_str(&error.openai()).unwrap();
            assert_eq!(told["error"]["param"], param, "{body}: {told}");
            assert_eq!(told["error"]["type"], "invalid_request_error");
        }
    }
}
