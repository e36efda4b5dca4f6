//! What goes over the wire: the shapes of `/generate`, and in [`openai`] those of `/v1`.
//!
//! Requests are read leniently, as such servers do: fields that are not known are ignored.

use serde::{Deserialize, Serialize};

pub mod openai;

/// The model of a request to `/generate` that names none.
pub const DEFAULT_MODEL: &str = "gpt-3.5-turbo";
/// The most tokens that an answer of `/generate` has when the request does not say.
pub const DEFAULT_MAX_TOKENS: u32 = 150;
/// The temperature of a request to `/generate` that names none.
pub const DEFAULT_TEMPERATURE: f32 = 0.7;

/// The body of `POST /generate`.
///
/// ```
/// use demo_backend::api::GenerateRequest;
///
/// let request: GenerateRequest = serde_json::from_str(r#"{"prompt": "Hello"}"#)?;
/// assert_eq!((request.model.as_str(), request.max_tokens), ("gpt-3.5-turbo", 150));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// What to answer.
    pub prompt: String,
    /// Which model is to answer.
    #[serde(default = "default_model")]
    pub model: String,
    /// The most tokens that the answer may have.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
    /// From 0 (always the same answer) to 2.
    #[serde(default = "default_temperature")]
    pub temperature: f32,
    /// Whom the request is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
}

fn default_model() -> String {
    DEFAULT_MODEL.to_owned()
}

fn default_max_tokens() -> u32 {
    DEFAULT_MAX_TOKENS
}

fn default_temperature() -> f32 {
    DEFAULT_TEMPERATURE
}

impl GenerateRequest {
    /// One with the default for all but the prompt.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            model: default_model(),
            max_tokens: DEFAULT_MAX_TOKENS,
            temperature: DEFAULT_TEMPERATURE,
            user_id: None,
        }
    }
}

/// The answer of `POST /generate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateResponse {
    /// The text.
    pub response: String,
    /// Which backend wrote it.
    pub backend_id: String,
    /// How long that took, the queue included.
    pub processing_time_ms: f64,
    /// Of the prompt and of the answer together.
    pub tokens_used: u32,
    /// The `x-request-id` of the request, or one that was made for it.
    pub request_id: String,
}

/// The answer of `GET /health` of a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// `healthy`, or `draining` with status 503.
    pub status: String,
    /// Which backend this is.
    pub instance_id: String,
    /// Seconds since 1970.
    pub timestamp: f64,
}

/// The answer of `GET /load` of a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Which backend this is.
    pub instance_id: String,
    /// Requests that have a slot.
    pub active: usize,
    /// Requests that wait for one.
    pub queued: usize,
    /// How many requests are served together; 0 when there is no limit.
    pub slots: usize,
    /// Requests per second, over the last seconds.
    pub requests_per_second: f64,
    /// How many of them got a status from 500 on, or less than a whole answer.
    pub errors_per_second: f64,
    /// About how long a request that comes now waits for a slot.
    pub simulated_load_seconds: f64,
    /// Percent of the slots that are in use.
    pub cpu_simulation: f64,
}

/// An error as RFC 9457 puts it, which all paths but `/v1` answer with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The status in words.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// What is wrong and where.
    pub detail: String,
    /// What is wrong, for programs.
    pub reason: String,
}
