//! One attempt, up to what decides whether it has won.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Response, header::CONTENT_TYPE, response};
use http_body::Body;
use palisade_core::{
    BoxError,
    classify::{Judge, Verdict},
    head::ResponseHead,
    peek::{Peeked, PeekedBody},
    reject::Rejected,
    retry_after::pushback,
};
use pin_project::pin_project;

use crate::policy::SHOULD_RETRY;

pub(crate) type Answer<R> = Result<Response<PeekedBody<R>>, BoxError>;

#[pin_project(project = RunProj)]
pub(crate) enum Run<F, J, R> {
    Called {
        #[pin]
        inner: F,
        /// `None` when nobody asks.
        judge: Option<J>,
    },
    /// A stream has begun: it is an answer once it has data.
    Peeking {
        peek: Option<Peek<J, R>>,
    },
    Over,
}

pub(crate) struct Peek<J, R> {
    head: response::Parts,
    body: Peeked<R>,
    judge: J,
}

/// What an attempt has come to.
pub(crate) struct Ended<R> {
    pub(crate) answer: Answer<R>,
    /// `None` when the answer has only begun, and well.
    pub(crate) verdict: Option<Verdict>,
}

impl<F, J, R> Run<F, J, R> {
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }
}

impl<F, J, R, E> Run<F, J, R>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: Into<BoxError>,
    J: Judge,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    /// The head of an answer in gRPC is held back until data come, if `holds` says that nothing can wait for it.
    pub(crate) fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        holds: impl FnOnce() -> bool,
    ) -> Poll<Ended<R>> {
        if let RunProj::Called { inner, judge } = self.as_mut().project() {
            let answer = ready!(inner.poll(cx)).map_err(Into::into);
            // Out of the future, so that nobody asks a judge that has panicked.
            let Some(mut judge) = judge.take() else {
                let answer = answer.map(|response| response.map(PeekedBody::plain));
                return Poll::Ready(Ended {
                    answer,
                    verdict: None,
                });
            };
            let response = match answer {
                Ok(response) => response,
                Err(error) => {
                    let verdict = Some(judge.error(&*error));
                    return Poll::Ready(Ended {
                        answer: Err(error),
                        verdict,
                    });
                }
            };
            let head = ResponseHead::from(&response);
            let verdict = judge.head(&head);
            let streams =
                J::READS_DATA && head.is_event_stream() || is_grpc(head.headers) && holds();
            if verdict.is_some() || !streams || response.body().is_end_stream() {
                let answer = Ok(response.map(PeekedBody::plain));
                return Poll::Ready(Ended { answer, verdict });
            }
            let (head, body) = response.into_parts();
            let body = Peeked::new(body);
            let peek = Some(Peek { head, body, judge });
            self.set(Self::Peeking { peek });
        }
        let RunProj::Peeking { peek: slot } = self.project() else {
            panic!("polled after completion");
        };
        let peek = slot.as_mut().expect("polled after a panic");
        let verdict = ready!(peek.body.poll(cx, &mut peek.judge));
        let peek = slot.take().expect("was there");
        let answer = Ok(Response::from_parts(
            peek.head,
            PeekedBody::peeked(peek.body),
        ));
        Poll::Ready(Ended { answer, verdict })
    }
}

impl<R> Ended<R> {
    /// Whether the others are to go on.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(
            self.verdict,
            Some(
                Verdict::Failure
                    | Verdict::Overload { .. }
                    | Verdict::TimedOut
                    | Verdict::Unsent
                    | Verdict::Refused(_)
            )
        )
    }

    /// Whether the server asks not to be sent more: for a while or at all.
    pub(crate) fn pushes_back(&self) -> bool {
        if matches!(
            self.verdict,
            Some(Verdict::Overload {
                retry_after: Some(_)
            })
        ) {
            return true;
        }
        match &self.answer {
            Ok(response) => {
                let should_retry = response.headers().get(SHOULD_RETRY);
                should_retry.is_some_and(|value| value.as_bytes() == b"false")
                    || pushback(response.headers()).is_some()
            }
            Err(error) => Rejected::find(&**error).is_some_and(Rejected::is_final),
        }
    }
}

pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
