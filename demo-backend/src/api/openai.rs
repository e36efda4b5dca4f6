//! The shapes of OpenAI's API, as far as a text model needs them.

use serde::{Deserialize, Serialize};

/// The body of `POST /v1/chat/completions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// Which model is to answer.
    pub model: String,
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// The older name of `max_completion_tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// The most tokens that each answer may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u32>,
    /// From 0 (always the same answer) to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// How many answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Whether the answer comes in events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// What a stream tells beside the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// The same seed and prompt, the same answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Whom the request is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` ...
    pub role: String,
    /// What was said; an assistant that called a tool said nothing.
    #[serde(default)]
    pub content: Option<Content>,
}

/// What was said, whole or in parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// A text.
    Text(String),
    /// Texts, images ...
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// `text`, `image_url` ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The text, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// What a stream tells beside the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOptions {
    /// Whether the last chunk carries the usage.
    #[serde(default)]
    pub include_usage: bool,
}

/// The body of `POST /v1/completions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionRequest {
    /// Which model is to answer.
    pub model: String,
    /// What to complete: each prompt gets its own answers.
    pub prompt: Input,
    /// The most tokens that each answer may have: 16 when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// From 0 (always the same answer) to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// How many answers for each prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Whether the answer comes in events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// What a stream tells beside the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// The same seed and prompt, the same answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Whom the request is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// One text or many, in words or in numbers of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Input {
    /// One text.
    Text(String),
    /// Many texts.
    Texts(Vec<String>),
    /// One text in tokens.
    Tokens(Vec<u32>),
    /// Many texts in tokens.
    TokenLists(Vec<Vec<u32>>),
}

/// The body of `POST /v1/embeddings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingRequest {
    /// Which model is to answer.
    pub model: String,
    /// What to embed.
    pub input: Input,
    /// How long each vector is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// How vectors are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding_format: Option<Encoding>,
    /// Whom the request is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As an array of numbers.
    #[default]
    Float,
    /// As little-endian 32-bit floats in Base64.
    Base64,
}

/// A whole answer of `/v1/chat/completions`, or one chunk of a streamed one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chat {
    /// The same in all chunks.
    pub id: String,
    /// `chat.completion` or `chat.completion.chunk`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// Which version of the server answered.
    pub system_fingerprint: Option<String>,
    /// The answers; none in the chunk that carries the usage.
    pub choices: Vec<ChatChoice>,
    /// What it took.
    pub usage: Option<Usage>,
}

/// One answer, or what a chunk adds to one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChoice {
    /// Which answer.
    pub index: u32,
    /// The whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Answer>,
    /// What is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<Answer>,
    /// Always none.
    pub logprobs: Option<()>,
    /// Why it ended, in the last chunk of a streamed answer.
    pub finish_reason: Option<Finish>,
}

/// What the model says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// `assistant`, in the first chunk of a streamed answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Always none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

/// A whole answer of `/v1/completions`, or one chunk of a streamed one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The same in all chunks.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// Which version of the server answered.
    pub system_fingerprint: Option<String>,
    /// The answers; none in the chunk that carries the usage.
    pub choices: Vec<CompletionChoice>,
    /// What it took.
    pub usage: Option<Usage>,
}

/// One answer, or what a chunk adds to one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// Which answer: those to the first prompt come first.
    pub index: u32,
    /// The text.
    pub text: String,
    /// Always none.
    pub logprobs: Option<()>,
    /// Why it ended, in the last chunk of a streamed answer.
    pub finish_reason: Option<Finish>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// It was complete.
    Stop,
    /// It reached the most tokens that were allowed.
    Length,
}

impl Finish {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// What a request took, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u32,
    /// Of the answers; embeddings have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u32>,
    /// Of both.
    pub total_tokens: u32,
    /// More about the prompt's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// More about the tokens of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// How many were known from earlier prompts.
    pub cached_tokens: u32,
}

/// The answer of `/v1/embeddings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embeddings {
    /// `list`.
    pub object: String,
    /// One for each text.
    pub data: Vec<Embedding>,
    /// The model that answered.
    pub model: String,
    /// What it took.
    pub usage: Usage,
}

/// The embedding of one text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// `embedding`.
    pub object: String,
    /// Which text.
    pub index: u32,
    /// Its vector.
    pub embedding: Vector,
}

/// A vector in one of the two encodings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Vector {
    /// As numbers.
    Floats(Vec<f32>),
    /// As little-endian 32-bit floats in Base64.
    Base64(String),
}

/// The answer of `GET /v1/models`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Models {
    /// `list`.
    pub object: String,
    /// The models.
    pub data: Vec<Model>,
}

/// A model that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Its name.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Who runs it.
    pub owned_by: String,
}

/// The body of an error under `/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorObject {
    /// What is wrong and where, in words.
    pub message: String,
    /// `invalid_request_error`, `rate_limit_error`, `server_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Which field of the request is wrong.
    pub param: Option<String>,
    /// What is wrong, for programs.
    pub code: Option<String>,
}
