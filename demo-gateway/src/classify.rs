//! Judging answers of language models, streams and plain ones.

use std::{error::Error, sync::Arc};

use http::HeaderMap;
use palisade::{
    classify::{Classify, Judge, Sse, SseJudge, Usage, Verdict},
    head::{RequestHead, ResponseHead},
};

use crate::exchange::{Exchange, Operation};

/// Judges as [`Sse`] does, and knows the tokens that a plain answer counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Llm;

pub(crate) struct LlmJudge {
    inner: SseJudge,
    exchange: Option<Arc<Exchange>>,
    plain: Plain,
}

/// Whether the attempt has counted the tokens of this answer, so that not each judge has to find them again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Plain {
    No,
    Counted { begun: bool },
}

impl Classify for Llm {
    type Judge = LlmJudge;

    fn start(&self, head: &RequestHead<'_>) -> LlmJudge {
        LlmJudge {
            inner: Sse.start(head),
            exchange: head.extensions.get().cloned(),
            plain: Plain::No,
        }
    }
}

impl Judge for LlmJudge {
    const READS_DATA: bool = SseJudge::READS_DATA;

    fn head(&mut self, head: &ResponseHead<'_>) -> Option<Verdict> {
        // `/generate` has numbers of its own, which come after those that stand in the answer.
        let is_counted = self.exchange.as_ref().is_some_and(|exchange| {
            exchange.operation != Operation::Generate && exchange.usage().is_some()
        });
        if is_counted && !head.is_event_stream() {
            self.plain = Plain::Counted { begun: false };
        }
        self.inner.head(head)
    }

    fn data(&mut self, data: &[u8]) -> Option<Verdict> {
        if let Plain::Counted { begun } = &mut self.plain {
            *begun |= !data.is_empty();
            return None;
        }
        self.inner.data(data)
    }

    fn begun(&self) -> bool {
        match self.plain {
            Plain::Counted { begun } => begun,
            Plain::No => self.inner.begun(),
        }
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

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Request, Response, header::CONTENT_TYPE};

    use super::*;
    use crate::{config::Config, identity::Identities};

    const ANSWER: &[u8] = br#"{"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;

    const COUNTED: Usage = Usage {
        prompt: 30,
        completion: 40,
    };

    /// What a judge says of an answer of this kind, of which the attempt has counted so much.
    fn told(operation: Operation, kind: &str, counted: Option<Usage>) -> Option<Usage> {
        let identities = Identities::new(&Config::default());
        let peer = (std::net::Ipv4Addr::LOCALHOST, 1).into();
        let caller = identities.unknown(peer, &HeaderMap::new());
        let exchange = Arc::new(Exchange::new(
            Arc::new(caller),
            operation,
            palisade::time::now(),
        ));
        let mut request = Request::new(());
        request.extensions_mut().insert(exchange.clone());
        let mut judge = Llm.start(&RequestHead::from(&request));
        if let Some(usage) = counted {
            exchange.used(usage);
        }
        let response = Response::builder().header(CONTENT_TYPE, kind);
        let response = response.body(()).unwrap();
        assert_eq!(judge.head(&ResponseHead::from(&response)), None);
        assert!(!judge.begun());
        assert_eq!(judge.data(b""), None);
        let data = match kind {
            "text/event-stream" => [b"data: ", ANSWER, b"\n\n"].concat(),
            _ => ANSWER.to_vec(),
        };
        assert_eq!(judge.data(&data), None);
        assert!(judge.begun());
        assert_eq!(judge.end(None), Verdict::Success);
        judge.usage()
    }

    #[test]
    fn what_an_attempt_has_counted_is_not_looked_for_again_where_it_can_only_be_the_same() {
        let said = Some(Usage {
            prompt: 3,
            completion: 4,
        });
        let json = "application/json";
        assert_eq!(told(Operation::Chat, json, None), said);
        assert_eq!(told(Operation::Chat, json, Some(COUNTED)), Some(COUNTED));
        assert_eq!(told(Operation::Generate, json, Some(COUNTED)), said);
        let events = "text/event-stream";
        assert_eq!(told(Operation::Chat, events, Some(COUNTED)), said);
    }
}
