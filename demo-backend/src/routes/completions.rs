//! `/generate`, `/v1/chat/completions` and `/v1/completions`: one way of answering, three shapes.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use axum::{Extension, body::Body, extract::State};
use http::{
    HeaderValue, Response,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use palisade_core::time;

use super::{ThisCall, answer, millis, read};
use crate::{
    api::{
        GenerateRequest, GenerateResponse,
        openai::{
            Answer, Chat, ChatChoice, ChatRequest, Completion, CompletionChoice, CompletionRequest,
            Content, Finish, Input, Message, PromptTokensDetails, StreamOptions, Usage,
        },
    },
    errors::{Failure, json},
    instance::{Instance, Prompt, Serving},
    reply::What,
    rng::{Rng, hash, mix},
    simulation::Text,
    stream::{Choice, Envelope, Events, Wire},
    ticket::Call,
};

/// The most answers to one prompt, and the most prompts of one request: OpenAI's bounds.
const MAX_ANSWERS: u32 = 128;
const MAX_PROMPTS: usize = 2048;
/// What `/v1/completions` gives when nothing is said.
const COMPLETION_TOKENS: u32 = 16;
/// What the roles and the frame of a conversation take, after OpenAI's cookbook.
const TOKENS_PER_MESSAGE: u32 = 3;
const TOKENS_PER_CHAT: u32 = 3;

pub(super) async fn generate(
    State(instance): State<Arc<Instance>>,
    Extension(call): ThisCall,
) -> Response<Body> {
    answer(generate_text(&instance, &call).await, "/generate")
}

pub(super) async fn chat(
    State(instance): State<Arc<Instance>>,
    Extension(call): ThisCall,
) -> Response<Body> {
    answer(chat_text(&instance, &call).await, "/v1/chat/completions")
}

pub(super) async fn completion(
    State(instance): State<Arc<Instance>>,
    Extension(call): ThisCall,
) -> Response<Body> {
    answer(completion_text(&instance, &call).await, "/v1/completions")
}

async fn generate_text(instance: &Arc<Instance>, call: &Call) -> Result<Response<Body>, Failure> {
    let request: GenerateRequest = read(call)?;
    check_tokens("max_tokens", Some(request.max_tokens))?;
    check_temperature(Some(request.temperature))?;
    let job = Job {
        prompts: vec![Prompt::new(request.prompt)],
        answers: 1,
        limit: Some(request.max_tokens),
        fixed: (request.temperature == 0.0).then_some(0),
    };
    let (choices, serving) = job.start(instance, call).await?;
    let (mut texts, usage) = whole(instance, call, &job, choices, serving).await;
    let (response, _) = texts.pop().expect("one prompt has one answer");
    Ok(json(&GenerateResponse {
        response,
        backend_id: instance.id.clone(),
        processing_time_ms: millis(time::now().saturating_duration_since(call.at)),
        tokens_used: usage.total_tokens,
        // Checked, or made, where the request came in.
        request_id: call.request_id.to_str().unwrap_or_default().to_owned(),
    }))
}

async fn chat_text(instance: &Arc<Instance>, call: &Call) -> Result<Response<Body>, Failure> {
    let request: ChatRequest = read(call)?;
    if request.messages.is_empty() {
        return Err(Failure::field(
            "messages",
            "an empty conversation has no answer",
        ));
    }
    check_tokens("max_tokens", request.max_tokens)?;
    check_tokens("max_completion_tokens", request.max_completion_tokens)?;
    check_temperature(request.temperature)?;
    let job = Job {
        prompts: vec![conversation(&request.messages)],
        answers: check_answers(request.n)?,
        limit: request.max_completion_tokens.or(request.max_tokens),
        fixed: fixed(request.temperature, request.seed),
    };
    let stream = stream(request.stream, request.stream_options)?;
    let (choices, serving) = job.start(instance, call).await?;
    let id = format!("chatcmpl-{}", instance.unique(call.nth));
    let envelope = Envelope {
        id: &id,
        created: created(),
        model: &request.model,
    };
    if let Some(with_usage) = stream {
        let usage = with_usage.then(|| job.usage(&serving, 0));
        let wire = Wire::Chat;
        return Ok(events(
            instance, call, serving, wire, &envelope, choices, usage,
        ));
    }
    let (texts, usage) = whole(instance, call, &job, choices, serving).await;
    let choices = texts.into_iter().zip(0..);
    Ok(json(&Chat {
        object: "chat.completion".to_owned(),
        created: envelope.created,
        model: request.model,
        system_fingerprint: None,
        choices: choices
            .map(|((text, finish), index)| ChatChoice {
                index,
                message: Some(Answer {
                    role: Some("assistant".to_owned()),
                    content: Some(text),
                    refusal: None,
                }),
                delta: None,
                logprobs: None,
                finish_reason: Some(finish),
            })
            .collect(),
        usage: Some(usage),
        id,
    }))
}

async fn completion_text(instance: &Arc<Instance>, call: &Call) -> Result<Response<Body>, Failure> {
    let request: CompletionRequest = read(call)?;
    check_tokens("max_tokens", request.max_tokens)?;
    check_temperature(request.temperature)?;
    let job = Job {
        prompts: prompts("prompt", request.prompt)?,
        answers: check_answers(request.n)?,
        limit: Some(request.max_tokens.unwrap_or(COMPLETION_TOKENS)),
        fixed: fixed(request.temperature, request.seed),
    };
    let stream = stream(request.stream, request.stream_options)?;
    let (choices, serving) = job.start(instance, call).await?;
    let id = format!("cmpl-{}", instance.unique(call.nth));
    let envelope = Envelope {
        id: &id,
        created: created(),
        model: &request.model,
    };
    if let Some(with_usage) = stream {
        let usage = with_usage.then(|| job.usage(&serving, 0));
        let wire = Wire::Completion;
        return Ok(events(
            instance, call, serving, wire, &envelope, choices, usage,
        ));
    }
    let (texts, usage) = whole(instance, call, &job, choices, serving).await;
    let choices = texts.into_iter().zip(0..);
    Ok(json(&Completion {
        object: "text_completion".to_owned(),
        created: envelope.created,
        model: request.model,
        system_fingerprint: None,
        choices: choices
            .map(|((text, finish), index)| CompletionChoice {
                index,
                text,
                logprobs: None,
                finish_reason: Some(finish),
            })
            .collect(),
        usage: Some(usage),
        id,
    }))
}

/// What is to be answered, without the shape of the answer.
struct Job {
    prompts: Vec<Prompt>,
    /// For each prompt.
    answers: u32,
    limit: Option<u32>,
    /// The same number and prompt, the same answer.
    fixed: Option<u64>,
}

impl Job {
    /// Ready when the prompts are processed.
    async fn start(
        &self,
        instance: &Arc<Instance>,
        call: &Call,
    ) -> Result<(Vec<Choice>, Serving), Failure> {
        let serving = instance.serve(&self.prompts).await?;
        let choices = self
            .prompts
            .iter()
            .zip(0_u64..)
            .flat_map(|(prompt, place)| {
                let own = match self.fixed {
                    Some(fixed) => fixed ^ hash(prompt.text.as_bytes()),
                    None => mix(call.nth + 1) ^ place,
                };
                let seed = instance.seed ^ mix(own);
                (0..self.answers).map(move |answer| self.choice(instance, call, seed, answer))
            });
        Ok((choices.collect(), serving))
    }

    fn choice(&self, instance: &Instance, call: &Call, seed: u64, answer: u32) -> Choice {
        let mut rng = Rng::of(seed, answer.into());
        let mut text = match &call.what {
            What::Text(text) => Text::given(text),
            What::Tokens(tokens) => Text::made(rng, *tokens),
            _ => {
                let tokens = instance.lengths.draw(&mut rng);
                Text::made(rng, tokens)
            }
        };
        let cut = self.limit.is_some_and(|limit| text.cut(limit));
        let finish = if cut { Finish::Length } else { Finish::Stop };
        Choice { text, finish }
    }

    fn usage(&self, serving: &Serving, completion: u32) -> Usage {
        let prompt = self.prompts.iter().map(|prompt| prompt.tokens);
        let prompt_tokens = prompt.fold(0, u32::saturating_add);
        Usage {
            prompt_tokens,
            completion_tokens: Some(completion),
            total_tokens: prompt_tokens.saturating_add(completion),
            prompt_tokens_details: Some(PromptTokensDetails {
                cached_tokens: serving.cached(),
            }),
        }
    }
}

/// All texts at once, when the last token is due.
async fn whole(
    instance: &Instance,
    call: &Call,
    job: &Job,
    choices: Vec<Choice>,
    mut serving: Serving,
) -> (Vec<(String, Finish)>, Usage) {
    let left = choices.iter().map(|choice| choice.text.left());
    let tokens = left.fold(0, u32::saturating_add);
    poll_fn(|cx| serving.poll_due(tokens, cx)).await;
    call.sent.store(tokens, Relaxed);
    instance.meters.tokens(tokens);
    let usage = job.usage(&serving, tokens);
    let texts = choices
        .into_iter()
        .map(|choice| (choice.text.all(), choice.finish));
    (texts.collect(), usage)
}

fn events(
    instance: &Arc<Instance>,
    call: &Call,
    serving: Serving,
    wire: Wire,
    envelope: &Envelope<'_>,
    choices: Vec<Choice>,
    usage: Option<Usage>,
) -> Response<Body> {
    let sent = Arc::clone(&call.sent);
    let instance = Arc::clone(instance);
    let events = Events::new(instance, serving, sent, wire, envelope, choices, usage);
    let mut response = Response::new(Body::new(events));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Whether the answer is streamed, and if so whether with its usage.
fn stream(stream: Option<bool>, options: Option<StreamOptions>) -> Result<Option<bool>, Failure> {
    match (stream.unwrap_or(false), options) {
        (true, options) => Ok(Some(options.unwrap_or_default().include_usage)),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(Failure::field("stream_options", "only when stream is true")),
    }
}

/// A number when the same request is to get the same answer again.
fn fixed(temperature: Option<f32>, seed: Option<i64>) -> Option<u64> {
    match (seed, temperature) {
        (Some(seed), _) => Some(mix(seed.cast_unsigned()) | 1),
        (None, Some(0.0)) => Some(0),
        _ => None,
    }
}

fn conversation(messages: &[Message]) -> Prompt {
    let mut text = String::new();
    for message in messages {
        text.push_str(&message.role);
        text.push_str(": ");
        match &message.content {
            None => {}
            Some(Content::Text(said)) => text.push_str(said),
            Some(Content::Parts(parts)) => {
                text.extend(parts.iter().filter_map(|part| part.text.as_deref()));
            }
        }
        text.push('\n');
    }
    // The frame counts by OpenAI's rule, not by how it is written here.
    let frame: usize = messages.iter().map(|message| message.role.len() + 3).sum();
    let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
    let said = u32::try_from((text.len() - frame).div_ceil(4)).unwrap_or(u32::MAX);
    let frame = count
        .saturating_mul(TOKENS_PER_MESSAGE)
        .saturating_add(TOKENS_PER_CHAT);
    Prompt {
        text,
        tokens: said.saturating_add(frame),
    }
}

/// One prompt for each text.
pub(super) fn prompts(field: &str, input: Input) -> Result<Vec<Prompt>, Failure> {
    let from_tokens = |tokens: Vec<u32>| Prompt {
        tokens: u32::try_from(tokens.len()).unwrap_or(u32::MAX),
        text: tokens.iter().map(|token| format!("{token} ")).collect(),
    };
    let prompts: Vec<_> = match input {
        Input::Text(text) => vec![Prompt::new(text)],
        Input::Texts(texts) => texts.into_iter().map(Prompt::new).collect(),
        Input::Tokens(tokens) => vec![from_tokens(tokens)],
        Input::TokenLists(lists) => lists.into_iter().map(from_tokens).collect(),
    };
    match prompts.len() {
        0 => Err(Failure::field(field, "an empty array has no answer")),
        count if count > MAX_PROMPTS => {
            let what = format!("{count} texts are more than {MAX_PROMPTS}");
            Err(Failure::field(field, what))
        }
        _ => Ok(prompts),
    }
}

fn check_tokens(field: &str, tokens: Option<u32>) -> Result<(), Failure> {
    match tokens {
        Some(0) => Err(Failure::field(field, "0 is not at least 1")),
        _ => Ok(()),
    }
}

fn check_temperature(temperature: Option<f32>) -> Result<(), Failure> {
    match temperature {
        Some(temperature) if !(0.0..=2.0).contains(&temperature) => {
            let what = format!("{temperature} is not from 0 to 2");
            Err(Failure::field("temperature", what))
        }
        _ => Ok(()),
    }
}

fn check_answers(n: Option<u32>) -> Result<u32, Failure> {
    match n.unwrap_or(1) {
        n @ 1..=MAX_ANSWERS => Ok(n),
        n => {
            let what = format!("{n} is not from 1 to {MAX_ANSWERS}");
            Err(Failure::field("n", what))
        }
    }
}

fn created() -> u64 {
    let date = time::wall_clock().duration_since(std::time::UNIX_EPOCH);
    date.map_or(0, |date| date.as_secs())
}
