//! `POST /generate`.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderValue, Method, Response, Uri};
use http_body_util::BodyExt;
use palisade::{rate_limit::Tokens, time};
use serde::{Deserialize, Serialize};

use super::{
    Asked, Inbound,
    forward::{self, Outbound},
    input::{self, Sent},
    tokens,
};
use crate::{
    affinity::Kin,
    app::App,
    body::{self, Answer, Body},
    errors::{ApiError, Language},
    exchange::{Exchange, Operation},
    headers::{REQUEST_ID, to_backend},
    record::Cause,
};

const PATH: &str = "/generate";

/// What is asked. The backend gets the bytes as they came, so only what must be right is read.
#[derive(Debug, Deserialize)]
pub(super) struct GenerateRequest<'a> {
    #[serde(borrow)]
    prompt: Cow<'a, str>,
    model: Option<Cow<'a, str>>,
    max_tokens: Option<u32>,
    temperature: Option<f64>,
    user_id: Option<Cow<'a, str>>,
}

/// What is asked where nothing is said.
const MODEL: &str = "gpt-3.5-turbo";
const MAX_TOKENS: u32 = 150;

impl<'a> GenerateRequest<'a> {
    /// Finds what is wrong, or how much is asked for.
    pub(super) fn check(body: &'a [u8]) -> Result<Tokens, ApiError> {
        let request: Self = input::json(body)?;
        let wrong = |field, detail: &'static str| {
            Err(ApiError::bad_request(format!("`{field}` {detail}")).param(field))
        };
        if request.prompt.is_empty() {
            return wrong("prompt", "is empty");
        }
        if request.max_tokens == Some(0) {
            return wrong("max_tokens", "is not at least 1");
        }
        if request
            .temperature
            .is_some_and(|temperature| !(0.0..=2.0).contains(&temperature))
        {
            return wrong("temperature", "is not 0 to 2");
        }
        let user = request.user_id.as_deref().unwrap_or_default();
        if user.chars().any(char::is_control) {
            return wrong("user_id", "has control characters");
        }
        let most = request.max_tokens.unwrap_or(MAX_TOKENS);
        let model = request.model.as_deref().unwrap_or(MODEL);
        let prompt = tokens::of_text(request.prompt.len());
        Ok(Tokens::new(model, prompt).max_completion(most.into()))
    }
}

/// What is answered.
#[derive(Debug, Serialize)]
pub(super) struct GenerateAnswer {
    response: String,
    backend_id: Arc<str>,
    processing_time_ms: f64,
    tokens_used: u64,
    request_id: String,
}

pub(super) async fn answer(inbound: Inbound<impl Sent>) -> Result<Answer, ApiError> {
    let Asked {
        app,
        entry,
        exchange,
        parts,
        body,
    } = match inbound.enter(Operation::Generate, PATH).await? {
        Ok(asked) => asked,
        Err(refused) => return Ok(*refused),
    };
    let tokens = GenerateRequest::check(&body);
    let tokens = tokens.map_err(|error| forward::wrong(&app, &exchange, PATH, error))?;
    let kin = Kin::find(&app, &exchange.caller, &parts.headers);
    let headers = to_backend(parts.headers);
    let answer = one(&app, &exchange, kin, headers, body, tokens, entry.id()).await;
    Ok(match answer {
        Ok(answer) => {
            let (parts, answer) = answer.into_parts();
            let mut done = body::json(&answer);
            forward::copy_signature(&parts.headers, done.headers_mut());
            done
        }
        Err(answer) => *answer,
    })
}

/// One request that was found to be right, through the layers.
pub(super) async fn one(
    app: &App,
    exchange: &Arc<Exchange>,
    kin: Kin,
    mut headers: HeaderMap,
    body: Bytes,
    tokens: Tokens,
    id: &HeaderValue,
) -> Result<Response<GenerateAnswer>, Box<Answer>> {
    let since = time::now();
    exchange.asked_for(&tokens, false);
    headers.insert(REQUEST_ID, id.clone());
    let outbound = Outbound {
        exchange: exchange.clone(),
        method: Method::POST,
        uri: Uri::from_static(PATH),
        headers,
        extensions: Extensions::new(),
        affinity: kin.with_body(None, &body),
        body,
        tokens: Some(tokens),
        limit: app.config.timeouts.request,
    };
    let answer = outbound.send(app).await;
    let response = forward::passed(app, exchange, PATH, answer)?;
    if !response.status().is_success() {
        return Err(Box::new(response.map(Body::Passed)));
    }
    let (parts, body) = response.into_parts();
    // Settles the request: the answer itself was read by the attempt.
    let failed = match body.collect().await {
        Ok(_) => None,
        Err(error) => Some(forward::refuse(app, exchange, PATH, &error)),
    };
    let (Some(generated), Some(backend), None) =
        (exchange.take_generated(), exchange.backend(), &failed)
    else {
        let failed = failed.unwrap_or_else(|| {
            let error = ApiError::bad_gateway("the backend answered without a text");
            exchange.because(Cause::of_answer(&error));
            error.answer(Language::Problem)
        });
        let mut answer = body::full(failed);
        forward::copy_signature(&parts.headers, answer.headers_mut());
        return Err(Box::new(answer));
    };
    let answer = GenerateAnswer {
        response: generated.response,
        backend_id: backend.id.clone(),
        processing_time_ms: millis(time::now().saturating_duration_since(since)),
        tokens_used: generated.tokens_used,
        request_id: id.to_str().unwrap_or_default().to_owned(),
    };
    Ok(Response::from_parts(parts, answer))
}

fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_field_is_named_with_its_place() {
        for (body, says) in [
            ("{\"prompt\":\"a\"", "line 1 column 13"),
            ("{}", "`prompt`"),
            (
                "{\"prompt\":7}",
                "`prompt`: invalid type: integer `7`, expected a string at line 1",
            ),
            ("{\"prompt\":\"\"}", "`prompt` is empty"),
            ("{\"prompt\":\"a\",\"max_tokens\":-1}", "`max_tokens`"),
            ("{\"prompt\":\"a\",\"max_tokens\":0}", "`max_tokens`"),
            ("{\"prompt\":\"a\",\"temperature\":3}", "`temperature`"),
            ("{\"prompt\":\"a\",\"user_id\":\"x\\u0000\"}", "`user_id`"),
            ("[\"a\",null,1,1,null]", "instead of an object"),
            ("", "line 1 column 0"),
            ("{\"prompt\":\"a\"} x", "trailing"),
        ] {
            let error = GenerateRequest::check(body.as_bytes()).unwrap_err();
            let told = error.problem();
            assert!(
                told.contains("\"status\":400") && told.contains(says),
                "{body}: {told}"
            );
        }
        GenerateRequest::check(b"{\"prompt\":\"a\",\"model\":null,\"other\":{}}").unwrap();
    }
}
