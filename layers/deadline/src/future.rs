use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::Body;
use palisade_core::{BoxError, reject::Rejected};
use pin_project::pin_project;

use crate::{
    body::DeadlineBody,
    error::{Awaited, Elapsed, Hopeless, Limit},
    limits::Limits,
    tally::{Tally, Why},
    timer::Timer,
};

/// The future of [`DeadlineService`](crate::DeadlineService) and of [`AttemptTimeout`](crate::AttemptTimeout).
#[pin_project]
pub struct DeadlineFuture<F> {
    #[pin]
    state: State<F>,
}

#[pin_project(project = StateProj)]
enum State<F> {
    Called {
        #[pin]
        inner: F,
        #[pin]
        timer: Timer,
        /// Until there is an answer.
        limits: Option<Limits>,
    },
    Refused {
        refusal: Refusal,
        tally: Arc<Tally>,
    },
    Over,
}

/// Why the service is not called.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Refusal {
    Passed,
    Hopeless(Hopeless),
}

impl Refusal {
    pub(crate) fn why(self) -> Why {
        match self {
            Self::Passed => Why::Passed,
            Self::Hopeless(_) => Why::Hopeless,
        }
    }

    fn rejected(self) -> Rejected {
        match self {
            Self::Passed => Rejected::from(Elapsed {
                limit: Limit::Deadline,
                after: std::time::Duration::ZERO,
                awaited: Awaited::Call,
            }),
            Self::Hopeless(hopeless) => hopeless.into(),
        }
    }
}

impl<F> DeadlineFuture<F> {
    #[inline]
    pub(crate) fn new(inner: F, limits: Limits) -> Self {
        let state = State::Called {
            inner,
            timer: Timer::new(),
            limits: Some(limits),
        };
        Self { state }
    }

    pub(crate) fn refused(refusal: Refusal, tally: Arc<Tally>) -> Self {
        let state = State::Refused { refusal, tally };
        Self { state }
    }
}

impl Limits {
    /// Waits for the next limit that ends the request, if there is one.
    pub(crate) fn elapse(
        &mut self,
        mut timer: Pin<&mut Timer>,
        cx: &mut Context<'_>,
    ) -> Poll<BoxError> {
        while let Some((at, limit)) = self.next() {
            ready!(timer.as_mut().poll(cx, at));
            if let Some(error) = self.reach(limit) {
                return Poll::Ready(error);
            }
        }
        Poll::Pending
    }
}

impl<F, B, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body,
{
    type Output = Result<Response<DeadlineBody<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        let error = match state.as_mut().project() {
            StateProj::Called {
                inner,
                timer,
                limits,
            } => {
                if let Poll::Ready(answer) = inner.poll(cx) {
                    let limits = limits.take().expect("polled after completion");
                    let answer = answer.map_err(Into::into)?;
                    return Poll::Ready(Ok(DeadlineBody::answer(answer, limits)));
                }
                let limits = limits.as_mut().expect("polled after completion");
                ready!(limits.elapse(timer, cx))
            }
            StateProj::Refused { refusal, tally } => {
                tally.ends(refusal.why());
                refusal.rejected().into()
            }
            StateProj::Over => panic!("polled after completion"),
        };
        // What is late lets go of what it holds, also when this future is kept.
        state.set(State::Over);
        Poll::Ready(Err(error))
    }
}

impl<F> fmt::Debug for DeadlineFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineFuture").finish_non_exhaustive()
    }
}
