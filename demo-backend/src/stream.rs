//! Answers that come token by token.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame};

use crate::{
    api::openai::{Finish, Usage},
    instance::{Instance, Serving},
    simulation::Text,
};

/// One of the answers to a request.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) text: Text,
    pub(crate) finish: Finish,
}

/// Which of OpenAI's two shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Chat,
    Completion,
}

/// The events of an answer, each when its token is due.
///
/// The slot is given back with the last token, or when this is dropped.
pub(crate) struct Events {
    instance: Arc<Instance>,
    serving: Option<Serving>,
    sent: Arc<AtomicU32>,
    wire: Wire,
    choices: Vec<Choice>,
    /// What each event begins with.
    head: Vec<u8>,
    /// What each event ends with.
    tail: &'static [u8],
    usage: Option<Usage>,
    stage: Stage,
    tokens: u32,
    scratch: String,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Role(usize),
    Token(usize),
    Finish(usize),
    Usage,
    Done,
    Over,
}

/// What all events of an answer have in common.
pub(crate) struct Envelope<'a> {
    pub(crate) id: &'a str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
}

impl Events {
    /// `usage` is sent at the end, with the tokens that were sent until then.
    pub(crate) fn new(
        instance: Arc<Instance>,
        serving: Serving,
        sent: Arc<AtomicU32>,
        wire: Wire,
        envelope: &Envelope<'_>,
        choices: Vec<Choice>,
        usage: Option<Usage>,
    ) -> Self {
        let object = match wire {
            Wire::Chat => "chat.completion.chunk",
            Wire::Completion => "text_completion",
        };
        let mut head = Vec::with_capacity(192);
        head.extend_from_slice(b"data: {\"id\":");
        write_json(&mut head, envelope.id);
        head.extend_from_slice(b",\"object\":");
        write_json(&mut head, object);
        head.extend_from_slice(b",\"created\":");
        head.extend_from_slice(envelope.created.to_string().as_bytes());
        head.extend_from_slice(b",\"model\":");
        write_json(&mut head, envelope.model);
        head.extend_from_slice(b",\"system_fingerprint\":null,\"choices\":[");
        Self {
            instance,
            serving: Some(serving),
            sent,
            wire,
            choices,
            head,
            // As OpenAI does: the field is there in every chunk when one will have it.
            tail: match usage {
                Some(_) => b"],\"usage\":null}\n\n",
                None => b"]}\n\n",
            },
            usage,
            stage: match wire {
                Wire::Chat => Stage::Role(0),
                Wire::Completion => Stage::Token(0),
            },
            tokens: 0,
            scratch: String::new(),
        }
    }

    /// The next choice that has a token left, from `first` on and then around.
    fn next_choice(&self, first: usize) -> Option<usize> {
        let count = self.choices.len();
        (0..count)
            .map(|step| (first + step) % count)
            .find(|index| self.choices[*index].text.left() > 0)
    }

    fn event(&self, index: usize, piece: Piece<'_>) -> Bytes {
        let mut event = Vec::with_capacity(self.head.len() + 128);
        event.extend_from_slice(&self.head);
        event.extend_from_slice(b"{\"index\":");
        event.extend_from_slice(index.to_string().as_bytes());
        let (before, text, after): (&[u8], _, &[u8]) = match (self.wire, &piece) {
            (Wire::Chat, Piece::Role) => (
                b",\"delta\":{\"role\":\"assistant\",\"content\":",
                "",
                b",\"refusal\":null}",
            ),
            (Wire::Chat, Piece::Token(token)) => (b",\"delta\":{\"content\":", *token, b"}"),
            (Wire::Chat, Piece::Finish(_)) => {
                event.extend_from_slice(b",\"delta\":{");
                (b"", "", b"}")
            }
            (Wire::Completion, Piece::Token(token)) => (b",\"text\":", *token, b""),
            (Wire::Completion, _) => (b",\"text\":", "", b""),
        };
        event.extend_from_slice(before);
        if !before.is_empty() {
            write_json(&mut event, text);
        }
        event.extend_from_slice(after);
        event.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":");
        match piece {
            Piece::Finish(finish) => write_json(&mut event, finish.as_str()),
            _ => event.extend_from_slice(b"null"),
        }
        event.extend_from_slice(b"}");
        event.extend_from_slice(self.tail);
        event.into()
    }

    fn usage_event(&self, usage: Usage) -> Bytes {
        let mut event = self.head.clone();
        event.extend_from_slice(b"],\"usage\":");
        let usage = Usage {
            completion_tokens: Some(self.tokens),
            total_tokens: usage.prompt_tokens.saturating_add(self.tokens),
            ..usage
        };
        serde_json::to_writer(&mut event, &usage).expect("numbers into memory");
        event.extend_from_slice(b"}\n\n");
        event.into()
    }
}

#[derive(Clone, Copy)]
enum Piece<'a> {
    Role,
    Token(&'a str),
    Finish(Finish),
}

fn write_json(to: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(to, text).expect("text into memory");
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let event = loop {
            match this.stage {
                Stage::Role(index) if index < this.choices.len() => {
                    this.stage = Stage::Role(index + 1);
                    break this.event(index, Piece::Role);
                }
                Stage::Role(_) => this.stage = Stage::Token(0),
                Stage::Token(first) => {
                    let Some(index) = this.next_choice(first) else {
                        this.serving = None;
                        this.stage = Stage::Finish(0);
                        continue;
                    };
                    if let Some(serving) = &mut this.serving {
                        ready!(serving.poll_due(this.tokens + 1, cx));
                    }
                    let mut token = std::mem::take(&mut this.scratch);
                    token.clear();
                    this.choices[index].text.next(&mut token);
                    let event = this.event(index, Piece::Token(&token));
                    this.scratch = token;
                    this.tokens += 1;
                    this.sent.store(this.tokens, Relaxed);
                    this.instance.meters.tokens(1);
                    this.stage = Stage::Token(index + 1);
                    break event;
                }
                Stage::Finish(index) if index < this.choices.len() => {
                    this.stage = Stage::Finish(index + 1);
                    break this.event(index, Piece::Finish(this.choices[index].finish));
                }
                Stage::Finish(_) => this.stage = Stage::Usage,
                Stage::Usage => {
                    this.stage = Stage::Done;
                    if let Some(usage) = this.usage {
                        break this.usage_event(usage);
                    }
                }
                Stage::Done => {
                    this.stage = Stage::Over;
                    break Bytes::from_static(b"data: [DONE]\n\n");
                }
                Stage::Over => return Poll::Ready(None),
            }
        };
        Poll::Ready(Some(Ok(Frame::data(event))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }
}
