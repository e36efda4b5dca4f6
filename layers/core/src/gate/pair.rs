//! Two gates that are one.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::{Admit, Gate, Outlook};
use crate::{
    classify::Verdict,
    head::RequestHead,
    reject::Rejected,
    settle::{End, Settle},
    time,
};

/// Two gates as one: admitted left to right, settled right to left.
///
/// When the second gate refuses, the guard of the first hears [`Verdict::Refused`].
impl<A: Gate, B: Gate> Gate for (A, B) {
    type Guard = (A::Guard, B::Guard);

    #[inline]
    fn admit(&self, head: &RequestHead<'_>, now: Instant) -> Admit<Self::Guard> {
        match self.0.admit(head, now) {
            Admit::Now(Ok(first)) => {
                let mut first = Held::new(first, now);
                match self.1.admit(head, now) {
                    Admit::Now(Ok(second)) => Admit::Now(Ok((first.take(), second))),
                    second => first.pair(second),
                }
            }
            Admit::Now(Err(rejected)) => Admit::Now(Err(rejected)),
            Admit::Later(first) => {
                let (gate, head) = (self.1.clone(), head.to_request());
                Admit::Later(Box::pin(async move {
                    let first = Held::new(first.await?, now);
                    match first.pair(gate.admit(&RequestHead::from(&head), time::now())) {
                        Admit::Now(both) => both,
                        Admit::Later(both) => both.await,
                    }
                }))
            }
        }
    }

    fn outlook(&self, now: Instant) -> Outlook {
        match (self.0.outlook(now), self.1.outlook(now)) {
            (Outlook::Held, _) | (_, Outlook::Held) => Outlook::Held,
            (Outlook::Refuses { until: a }, Outlook::Refuses { until: b }) => Outlook::Refuses {
                // Both have to give way.
                until: a.zip(b).map(|(a, b)| a.max(b)),
            },
            (refuses @ Outlook::Refuses { .. }, _) | (_, refuses @ Outlook::Refuses { .. }) => {
                refuses
            }
            (Outlook::Probes, _) | (_, Outlook::Probes) => Outlook::Probes,
            (Outlook::Admits, Outlook::Admits) => Outlook::Admits,
        }
    }
}

impl<A: Settle, B: Settle> Settle for (A, B) {
    const DECORATES: bool = A::DECORATES || B::DECORATES;
    const FOLLOWS: bool = A::FOLLOWS || B::FOLLOWS;
    const AWAITS_DATA: bool = A::AWAITS_DATA || B::AWAITS_DATA;

    fn decorate(&mut self, headers: &mut HeaderMap) {
        self.1.decorate(headers);
        self.0.decorate(headers);
    }

    fn hear(&mut self, headers: &HeaderMap) {
        self.1.hear(headers);
        self.0.hear(headers);
    }

    fn first_data(&mut self, now: Instant) {
        if B::AWAITS_DATA {
            self.1.first_data(now);
        }
        if A::AWAITS_DATA {
            self.0.first_data(now);
        }
    }

    fn progress(&mut self, streamed: u64, now: Instant) -> Result<(), Rejected> {
        let (mut first, mut second) = (Ok(()), Ok(()));
        if B::FOLLOWS {
            second = self.1.progress(streamed, now);
        }
        if A::FOLLOWS {
            first = self.0.progress(streamed, now);
        }
        // Both hear it; of two refusals the one that admission would have met first counts.
        first.and(second)
    }

    #[inline]
    fn settle_untimed(&mut self, verdict: Verdict) -> bool {
        self.1.settle_untimed(verdict) && self.0.settle_untimed(verdict)
    }

    fn settle(&mut self, end: &End, now: Instant) {
        self.1.settle(end, now);
        self.0.settle(end, now);
    }

    fn finish(&mut self, end: &End, now: Instant) {
        self.1.finish(end, now);
        self.0.finish(end, now);
    }
}

/// The guard of a first gate while the second decides, which may refuse, panic or never answer.
struct Held<A: Settle> {
    guard: Option<A>,
    since: Instant,
}

impl<A: Settle> Held<A> {
    #[inline]
    fn new(guard: A, since: Instant) -> Self {
        let guard = Some(guard);
        Self { guard, since }
    }

    #[inline]
    fn take(&mut self) -> A {
        self.guard.take().expect("held until joined")
    }

    fn pair<B: Settle>(self, second: Admit<B>) -> Admit<(A, B)> {
        match second {
            Admit::Now(second) => Admit::Now(self.join(second)),
            Admit::Later(second) => Admit::Later(Box::pin(async { self.join(second.await) })),
        }
    }

    fn join<B>(mut self, second: Result<B, Rejected>) -> Result<(A, B), Rejected> {
        match second {
            Ok(second) => Ok((self.take(), second)),
            Err(mut rejected) => {
                if A::DECORATES
                    && let Some(guard) = &mut self.guard
                {
                    guard.decorate(rejected.headers_mut());
                }
                let now = time::now();
                self.settle(
                    Verdict::Refused(rejected.reason()),
                    now.saturating_duration_since(self.since),
                    now,
                );
                Err(rejected)
            }
        }
    }

    fn settle(&mut self, verdict: Verdict, age: Duration, now: Instant) {
        if let Some(mut guard) = self.guard.take() {
            let end = End {
                age,
                ..End::new(verdict)
            };
            guard.finish(&end, now);
        }
    }
}

impl<A: Settle> Drop for Held<A> {
    fn drop(&mut self) {
        // Of no age: nothing was sent, so that nobody has waited for the service.
        self.settle(Verdict::Canceled, Duration::ZERO, time::now());
    }
}
