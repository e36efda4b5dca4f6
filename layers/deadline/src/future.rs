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
    tally::{Tally, Why},
    watch::Watch,
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
        /// Until there is an answer.
        watch: Option<Watch>,
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
    pub(crate) fn new(inner: F, watch: Watch) -> Self {
        Self {
            state: State::Called {
                inner,
                watch: Some(watch),
            },
        }
    }

    pub(crate) fn refused(refusal: Refusal, tally: Arc<Tally>) -> Self {
        let state = State::Refused { refusal, tally };
        Self { state }
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
            StateProj::Called { inner, watch } => match inner.poll(cx) {
                Poll::Ready(Ok(answer)) => {
                    let mut watch = watch.take().expect("polled after completion");
                    DeadlineBody::hear(&answer, &mut watch);
                    return Poll::Ready(Ok(answer.map(|inner| DeadlineBody::new(inner, watch))));
                }
                Poll::Ready(Err(error)) => {
                    *watch = None;
                    return Poll::Ready(Err(error.into()));
                }
                Poll::Pending => {
                    let watch = watch.as_mut().expect("polled after completion");
                    ready!(watch.elapse(cx))
                }
            },
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
