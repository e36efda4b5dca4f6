//! The gate, the wait in front of it, and what became of a request that went through.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::HeaderMap;
use palisade_core::{
    classify::Verdict,
    deadline::Deadline,
    gate::{Admit, Gate},
    head::RequestHead,
    key::ExtractKey,
    reject::Rejected,
    settle::{End, Settle},
    time,
};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    handle::MirrorHandle,
    known::{At, nanos},
    ledger::Cost,
    queue::Ticket,
    shared::{Account, Config, Shared},
    told::Reading,
};

/// Keeps a client within the quotas of the service that it calls, as the service's answers tell of them.
///
/// Clones share what they know. A setter begins anew: set first, then clone and ask for handles. What the setters do
/// is said at those of [`QuotaMirrorLayer`](crate::QuotaMirrorLayer).
///
/// ```
/// use palisade_core::gate::gates;
/// use palisade_rate_limit::QuotaMirror;
///
/// let mirror = QuotaMirror::new();
/// let layer = gates((mirror.clone(), ()));
/// assert_eq!(mirror.handle().keys(), 0);
/// # let _ = layer;
/// ```
#[derive(Clone, Default)]
pub struct QuotaMirror {
    shared: Arc<Shared>,
}

impl QuotaMirror {
    /// One mirror for each host and port that requests go to.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps one mirror per key instead; requests without a key share one.
    #[must_use]
    pub fn key(self, key: impl ExtractKey) -> Self {
        self.renew(|config| config.key = Arc::new(key))
    }

    /// How many tokens of a language model a request takes.
    #[must_use]
    pub fn cost<F>(self, tokens: F) -> Self
    where
        F: Fn(&RequestHead<'_>) -> u64 + Send + Sync + 'static,
    {
        self.renew(|config| config.tokens = Some(Arc::new(tokens)))
    }

    /// The longest that a request waits; as it is, 1 s.
    #[must_use]
    pub fn wait_up_to(self, longest: Duration) -> Self {
        self.renew(|config| config.wait_up_to = longest)
    }

    /// How many requests of one key wait at most; as it is, 256.
    #[must_use]
    pub fn waiting(self, most: usize) -> Self {
        self.renew(|config| config.waiting = most)
    }

    /// Lets the first request after a reset go later by a random time up to this; as it is, zero.
    #[must_use]
    pub fn jitter(self, most: Duration) -> Self {
        self.renew(|config| config.jitter = most)
    }

    /// Keeps at most this many keys; as it is, 1000.
    #[must_use]
    pub fn capacity(self, keys: usize) -> Self {
        self.renew(|config| config.capacity = keys)
    }

    /// The `layer` in metrics; as it is, `quota_mirror`.
    #[must_use]
    pub fn named(self, name: impl AsRef<str>) -> Self {
        self.renew(|config| config.name = name.as_ref().into())
    }

    /// Looks at what is known, and forgets it, while requests go out.
    pub fn handle(&self) -> MirrorHandle {
        MirrorHandle::new(self.shared.clone())
    }

    fn renew(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.shared.config.clone();
        change(&mut config);
        Self {
            shared: Arc::new(Shared::new(config)),
        }
    }
}

impl Gate for QuotaMirror {
    type Guard = Sent;

    #[inline]
    fn admit(&self, head: &RequestHead<'_>, now: Instant) -> Admit<Sent> {
        let (shared, cost) = (&self.shared, self.shared.cost(head));
        let at = shared.at(now);
        let Some(account) = shared.account(head, at) else {
            return Admit::Now(Ok(Sent::unknown()));
        };
        let mut state = account.lock();
        if state.queue.len() == 0 && state.ledger.shut(cost, at).is_none() {
            let mark = state.ledger.take(cost, at);
            drop(state);
            return Admit::Now(Ok(Sent::new(shared.clone(), account, cost, mark, at)));
        }
        let own = head.extensions.get::<Deadline>();
        let longest = at.saturating_add(nanos(shared.config.wait_up_to));
        let until = own.map_or(longest, |deadline| longest.min(shared.at(deadline.0)));
        let hopes = state.ledger.hopes(cost, state.queue.ahead(None), at);
        let in_time = hopes.as_ref().map_or(at, |shut| shut.at) <= until && at < until;
        if !in_time || state.queue.len() >= shared.config.waiting {
            let shut = hopes.or_else(|| state.ledger.shut(cost, at));
            return Admit::Now(Err(shared.refuse(shut, at)));
        }
        let ticket = state.queue.join(cost);
        drop(state);
        let mut place = Place {
            shared: shared.clone(),
            account,
            cost,
            ticket: Some(ticket),
            since: at,
            until,
        };
        Admit::Later(Box::pin(async move {
            let mut sleep = pin!(sleep_until(place.shared.instant(until)));
            poll_fn(|cx| place.poll(sleep.as_mut(), cx)).await
        }))
    }
}

impl fmt::Debug for QuotaMirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuotaMirror")
            .field("config", &self.shared.config)
            .field("keys", &self.shared.keys())
            .finish_non_exhaustive()
    }
}

/// A request that waits. Dropped before its turn, it gives up its place.
struct Place {
    shared: Arc<Shared>,
    account: Arc<Account>,
    cost: Cost,
    /// `None` once it was served.
    ticket: Option<Ticket>,
    since: At,
    until: At,
}

impl Place {
    fn poll(
        &mut self,
        mut sleep: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Sent, Rejected>> {
        loop {
            let now = self.shared.at(time::now());
            let turn = match self.turn(now, cx) {
                Ok(turn) => turn,
                Err(served) => return Poll::Ready(served),
            };
            let turn = self.shared.instant(turn);
            if sleep.deadline() != turn {
                sleep.as_mut().reset(turn);
            }
            ready!(sleep.as_mut().poll(cx));
        }
    }

    /// When to look again, or what has become of it.
    fn turn(&mut self, now: At, cx: &Context<'_>) -> Result<At, Result<Sent, Rejected>> {
        let ticket = self.ticket.expect("polled after completion");
        let mut state = self.account.lock();
        state.queue.wait(ticket, cx.waker());
        let first = state.queue.is_first(ticket);
        let shut = state.ledger.shut(self.cost, now);
        if first && shut.is_none() {
            let mark = state.ledger.take(self.cost, now);
            drop(state);
            let (shared, account) = (self.shared.clone(), self.account.clone());
            let sent = Sent::new(shared, account, self.cost, mark, now);
            self.leave();
            self.shared.metrics.waited(now - self.since);
            return Err(Ok(sent));
        }
        let ahead = state.queue.ahead(Some(ticket));
        let hopes = state.ledger.hopes(self.cost, ahead, now);
        if now >= self.until || hopes.as_ref().is_some_and(|hopes| hopes.at > self.until) {
            let refused = self.shared.refuse(hopes.or(shut), now);
            drop(state);
            self.leave();
            return Err(Err(refused));
        }
        let opens = shut.filter(|_| first).map_or(self.until, |shut| shut.at);
        Ok(opens.min(self.until))
    }

    fn leave(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let next = self.account.lock().queue.leave(ticket);
            // Outside of the lock: who is woken may look at once.
            next.into_iter().for_each(std::task::Waker::wake);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A request that was sent: it counts against what remains until its answer has told what does.
pub struct Sent {
    /// `None` of a key that there was no seat for.
    account: Option<(Arc<Shared>, Arc<Account>)>,
    cost: Cost,
    /// What requests had taken with it.
    mark: Cost,
    at: At,
    answer: Answer,
    verdict: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// None yet.
    Awaited,
    /// Its head is there, and has told of no quota.
    Silent,
    Told,
    /// All that it had to say was heard.
    Over,
}

impl Sent {
    fn new(shared: Arc<Shared>, account: Arc<Account>, cost: Cost, mark: Cost, at: At) -> Self {
        Self {
            account: Some((shared, account)),
            cost,
            mark,
            at,
            answer: Answer::Awaited,
            verdict: None,
        }
    }

    fn unknown() -> Self {
        Self {
            account: None,
            cost: Cost::default(),
            mark: Cost::default(),
            at: 0,
            answer: Answer::Over,
            verdict: None,
        }
    }

    fn conclude(&mut self, verdict: Verdict) {
        let Some((shared, account)) = &self.account else {
            return;
        };
        let answer = std::mem::replace(&mut self.answer, Answer::Over);
        if answer == Answer::Over {
            return;
        }
        let now = shared.at(time::now());
        let mut state = account.lock();
        let ledger = &mut state.ledger;
        if answer == Answer::Awaited {
            ledger.landed();
        }
        match (answer, verdict) {
            (Answer::Awaited | Answer::Silent, Verdict::Refused(_) | Verdict::Unsent) => {
                ledger.give_back(self.cost, self.mark, self.at);
            }
            (Answer::Silent, Verdict::Success | Verdict::CallerFault) => ledger.silence(self.at),
            _ => {}
        }
        if let Verdict::Overload {
            retry_after: Some(delay),
        } = verdict
        {
            ledger.hold(None, nanos(delay), now, shared.jitter());
            shared.metrics.held();
        } else if matches!(verdict, Verdict::Success | Verdict::CallerFault) {
            ledger.unhold(self.at);
        }
        let first = state.queue.first();
        drop(state);
        first.into_iter().for_each(std::task::Waker::wake);
    }
}

impl Settle for Sent {
    const DECORATES: bool = true;

    /// Reads, and changes nothing.
    fn decorate(&mut self, headers: &mut HeaderMap) {
        let Some((shared, account)) = &self.account else {
            return;
        };
        let reading = Reading::of(headers);
        let told = reading.quotas().next().is_some();
        // Others have a `Retry-After` of their own: work that is still going on, a body that was too large.
        let is_bad = self
            .verdict
            .is_some_and(|verdict| !matches!(verdict, Verdict::Success | Verdict::CallerFault));
        let hold = reading.retry_after.filter(|delay| *delay > 0 && is_bad);
        // A refusal of a layer further in comes by here as well, without any.
        let answered = !headers.is_empty() && !is_bad;
        let now = shared.at(time::now());
        let jitter = shared.jitter();
        let mut state = account.lock();
        let ledger = &mut state.ledger;
        ledger.landed();
        ledger.learn(&reading, self.mark, self.at, now, jitter);
        match hold {
            Some(delay) => {
                ledger.hold(Some(&reading), delay, now, jitter);
                shared.metrics.held();
            }
            None if answered => ledger.unhold(self.at),
            None => {}
        }
        shared.metrics.learned(|| ledger.share_left(now));
        let first = state.queue.first();
        drop(state);
        first.into_iter().for_each(std::task::Waker::wake);
        self.answer = if told { Answer::Told } else { Answer::Silent };
        if hold.is_some() {
            // The verdict would say the same again, by our clock instead of the service's.
            self.answer = Answer::Over;
        } else if let Some(verdict) = self.verdict {
            self.conclude(verdict);
        }
    }

    fn settle(&mut self, end: &End, _: Instant) {
        self.verdict = Some(end.verdict);
        if self.answer != Answer::Awaited {
            self.conclude(end.verdict);
        }
    }

    fn finish(&mut self, end: &End, _: Instant) {
        self.conclude(end.verdict);
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        // Told of the head and never decorated: whoever holds it reads no headers.
        self.conclude(self.verdict.unwrap_or(Verdict::Canceled));
    }
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sent")
            .field("answer", &self.answer)
            .finish_non_exhaustive()
    }
}
