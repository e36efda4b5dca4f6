//! What came of one service, while it can still be replaced.

use std::{
    error::Error,
    pin::pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, response};
use http_body::Body;
use palisade_core::{
    BoxError,
    classify::{Judge, Verdict},
    head::ResponseHead,
    peek::{Peeked, PeekedBody, drain},
    reject::Rejected,
};

use crate::Failure;

pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// An answer that has not begun to be passed on, or an error.
pub(crate) struct Outcome<T> {
    /// `None` if it has begun to answer, which is no failure.
    verdict: Option<Verdict>,
    answer: Result<Response<Taken<T>>, BoxError>,
}

enum Taken<T> {
    Whole(T),
    Peeked(Peeked<T>),
}

/// What the head of an answer has led to.
pub(crate) enum Heard<J, T> {
    Judged(Outcome<T>),
    Holding(Holding<J, T>),
}

impl<J, T> Heard<J, T>
where
    J: Judge,
    T: Body<Data = Bytes>,
    T::Error: Into<BoxError>,
{
    pub(crate) fn new(
        mut judge: J,
        answer: Result<Response<T>, BoxError>,
        holds_back: impl FnOnce(&ResponseHead<'_>) -> bool,
    ) -> Self {
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                return Self::Judged(Outcome {
                    verdict: Some(judge.error(&*error)),
                    answer: Err(error),
                });
            }
        };
        let head = ResponseHead::from(&response);
        let verdict = judge.head(&head);
        let verdict = match verdict {
            // Nothing follows: it has ended without a word on how it went.
            None if response.body().is_end_stream() => Some(judge.end(None)),
            None if holds_back(&head) => {
                let (head, body) = response.into_parts();
                let held = Some((head, Peeked::new(body), judge));
                return Self::Holding(Holding { held });
            }
            verdict => verdict,
        };
        let answer = Ok(response.map(Taken::Whole));
        Self::Judged(Outcome { verdict, answer })
    }
}

/// An answer whose first data are awaited.
pub(crate) struct Holding<J, T> {
    held: Option<(response::Parts, Peeked<T>, J)>,
}

impl<J, T> Holding<J, T>
where
    J: Judge,
    T: Body<Data = Bytes>,
    T::Error: Into<BoxError>,
{
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        // Out while users' code runs: after a panic nobody reads on.
        let (head, mut body, mut judge) = self.held.take().expect("polled after completion");
        let Poll::Ready(verdict) = body.poll(cx, &mut judge) else {
            self.held = Some((head, body, judge));
            return Poll::Pending;
        };
        let answer = Ok(Response::from_parts(head, Taken::Peeked(body)));
        Poll::Ready(Outcome { verdict, answer })
    }
}

impl<T> Outcome<T>
where
    T: Body<Data = Bytes>,
    T::Error: Into<BoxError>,
{
    /// How it failed, if it did.
    pub(crate) fn failure<'a>(&'a self, by: Option<&'a str>) -> Option<Failure<'a>> {
        let error = match &self.answer {
            Ok(response) => response.body().error(),
            Err(error) => Some(&**error as _),
        };
        Some(Failure {
            verdict: self.verdict?,
            answer: self.answer.as_ref().ok().map(ResponseHead::from),
            trailers: self.trailers(),
            error,
            by,
        })
    }

    fn trailers(&self) -> Option<&HeaderMap> {
        match self.answer.as_ref().ok()?.body() {
            Taken::Whole(_) => None,
            Taken::Peeked(body) => body.trailers(),
        }
    }

    /// Tells the caller not to try what was tried.
    pub(crate) fn give_up(&mut self, is_grpc: bool) {
        let response = match &mut self.answer {
            Ok(response) => response,
            Err(error) => {
                if let Some(rejected) = error.downcast_mut::<Rejected>() {
                    rejected.give_up();
                }
                return;
            }
        };
        if !is_grpc {
            let value = HeaderValue::from_static("false");
            response.headers_mut().insert(SHOULD_RETRY, value);
            return;
        }
        let value = HeaderValue::from_static("-1");
        // Beside the status, where clients look for it.
        if let Taken::Peeked(body) = response.body_mut()
            && let Some(trailers) = body.trailers_mut()
        {
            trailers.insert(GRPC_PUSHBACK, value);
            return;
        }
        response.headers_mut().insert(GRPC_PUSHBACK, value);
    }

    /// Passes it on.
    pub(crate) fn pass(self) -> Result<Response<PeekedBody<T>>, BoxError> {
        self.answer.map(|response| {
            response.map(|body| match body {
                Taken::Whole(body) => PeekedBody::plain(body),
                Taken::Peeked(body) => PeekedBody::peeked(body),
            })
        })
    }

    /// Gives it up.
    pub(crate) fn discard(self) {
        match self.answer.map(Response::into_body) {
            Ok(Taken::Whole(body)) => drain(pin!(body)),
            Ok(Taken::Peeked(body)) => body.drain(),
            Err(_) => {}
        }
    }
}

impl<T> Taken<T>
where
    T: Body<Data = Bytes>,
    T::Error: Into<BoxError>,
{
    fn error(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Whole(_) => None,
            Self::Peeked(body) => body.error(),
        }
    }
}
