//! Judging answers of language models, streams and plain ones.

use std::{error::Error, sync::Arc};

use http::HeaderMap;
use palisade::{
    classify::{Classify, Judge, Sse, SseJudge, Usage, Verdict},
    head::{RequestHead, ResponseHead},
};

use crate::exchange::Exchange;

/// Judges as [`Sse`] does, and knows the tokens that a plain answer counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Llm;

pub(crate) struct LlmJudge {
    inner: SseJudge,
    exchange: Option<Arc<Exchange>>,
}

impl Classify for Llm {
    type Judge = LlmJudge;

    fn start(&self, head: &RequestHead<'_>) -> LlmJudge {
        LlmJudge {
            inner: Sse.start(head),
            exchange: head.extensions.get().cloned(),
        }
    }
}

impl Judge for LlmJudge {
    const READS_DATA: bool = SseJudge::READS_DATA;

    fn head(&mut self, head: &ResponseHead<'_>) -> Option<Verdict> {
        self.inner.head(head)
    }

    fn data(&mut self, data: &[u8]) -> Option<Verdict> {
        self.inner.data(data)
    }

    fn begun(&self) -> bool {
        self.inner.begun()
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) -> Verdict {
        self.inner.end(trailers)
    }

    fn error(&mut self, error: &(dyn Error + 'static)) -> Verdict {
        self.inner.error(error)
    }

    fn streamed(&self) -> u64 {
        self.inner.streamed()
    }

    fn usage(&self) -> Option<Usage> {
        let counted = self.inner.usage();
        counted.or_else(|| self.exchange.as_ref()?.usage())
    }
}
