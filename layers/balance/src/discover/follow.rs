use std::{
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use palisade_core::{BoxError, gate::Gate};
use tokio::{sync::watch, time::sleep};

use super::{
    Discovery, Empty, EmptyList, IntoEndpoint, Reconciler, Source, Target, backoff,
    report::Reporter,
};
use crate::{Endpoints, coin::Coin, endpoints::Shared};

/// Between two lists of a source that has much to say: what comes meanwhile is one list.
const BREATH: Duration = Duration::from_millis(50);

impl<S, G: Gate> Endpoints<S, G> {
    /// Brings the set to each list of `source` as long as the future is polled: spawn it.
    ///
    /// `make` gets each new target and makes its endpoint, or says with an `Err` why it cannot. What the target leaves
    /// open, such as a weight, is as it was made. The future ends when the last handle of the set is gone. When it is
    /// dropped, the set stays as it is, and the next follower of a source of that [name](Follower::named) takes over.
    ///
    /// See the module [`discover`](crate::discover) for what a list changes and what it leaves alone.
    pub fn follow<L, F, M>(&self, source: L, make: F) -> Follower
    where
        S: Send + Sync + 'static,
        L: Source + 'static,
        F: FnMut(&Target) -> M + Send + 'static,
        M: IntoEndpoint<S, G> + 'static,
    {
        let name = Arc::from(source.kind());
        let seen = Discovery {
            source: Arc::clone(&name),
            ..Discovery::default()
        };
        let (sender, seen) = watch::channel(seen);
        let settings = FollowSettings {
            name,
            empty: source.empty(),
            prepare: Vec::new(),
            sender,
        };
        let (set, layer) = (self.downgrade(), self.layer().clone());
        let start = move |settings: FollowSettings| -> Running {
            let reporter = Reporter::new(settings.sender, &layer, &settings.name);
            Box::pin(follow(Follow {
                reconciler: Reconciler::new(set.clone(), settings.name, make),
                set,
                source,
                empty: settings.empty,
                prepare: settings.prepare,
                reporter,
            }))
        };
        Follower {
            seen,
            state: State::Ready(settings, Box::new(start)),
        }
    }
}

/// The future of [`Endpoints::follow`].
#[must_use = "follows nothing unless it is polled"]
pub struct Follower {
    seen: watch::Receiver<Discovery>,
    state: State,
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;
type Prepare = Box<dyn FnMut(&mut Vec<Target>) + Send>;

enum State {
    Ready(
        FollowSettings,
        Box<dyn FnOnce(FollowSettings) -> Running + Send>,
    ),
    Running(Running),
    Over,
}

struct FollowSettings {
    name: Arc<str>,
    empty: Empty,
    prepare: Vec<Prepare>,
    sender: watch::Sender<Discovery>,
}

impl Follower {
    /// What the source is called, its kind unless said otherwise: in metrics, and so that another follower of the
    /// same name can take over when this one is dropped.
    pub fn named(mut self, source: impl Into<Arc<str>>) -> Self {
        if let State::Ready(settings, _) = &mut self.state {
            settings.name = source.into();
            let name = Arc::clone(&settings.name);
            settings.sender.send_modify(|seen| seen.source = name);
        }
        self
    }

    /// What an empty list means; what the source says of itself unless said otherwise.
    pub fn empty(mut self, empty: Empty) -> Self {
        if let State::Ready(settings, _) = &mut self.state {
            settings.empty = empty;
        }
        self
    }

    /// Changes each list before it is applied: keeps a subset, adds zones or weights. Those of several calls follow
    /// each other. A list is empty if it is so afterwards.
    ///
    /// ```
    /// use palisade_balance::{Endpoint, Endpoints, Subset, discover::{Fixed, Target}};
    ///
    /// # let endpoints = Endpoints::<String>::default();
    /// # let source = Fixed::new([]);
    /// # let make = |target: &Target| Endpoint::new(target.name.clone(), String::new());
    /// // This gateway is number 7 of 100, and uses 20 endpoints.
    /// let subset = Subset::new(7, 100, 20)?;
    /// let follower = endpoints
    ///     .follow(source, make)
    ///     .prepare(move |targets| subset.keep(targets, |target| &target.name));
    /// # drop(follower);
    /// # Ok::<(), palisade_balance::InvalidSubset>(())
    /// ```
    pub fn prepare(mut self, prepare: impl FnMut(&mut Vec<Target>) + Send + 'static) -> Self {
        if let State::Ready(settings, _) = &mut self.state {
            settings.prepare.push(Box::new(prepare));
        }
        self
    }

    /// Tells what comes of the source: to wait for the first list, to show the last error.
    pub fn watch(&self) -> watch::Receiver<Discovery> {
        self.seen.clone()
    }
}

impl Future for Follower {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let state = &mut self.get_mut().state;
        if let State::Ready(..) = state
            && let State::Ready(settings, start) = mem::replace(state, State::Over)
        {
            *state = State::Running(start(settings));
        }
        let State::Running(running) = state else {
            return Poll::Ready(());
        };
        let over = running.as_mut().poll(cx);
        if over.is_ready() {
            *state = State::Over;
        }
        over
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Follower")
            .field(&*self.seen.borrow())
            .finish()
    }
}

struct Follow<S, G, L, F> {
    set: Weak<Shared<S, G>>,
    source: L,
    reconciler: Reconciler<S, G, F>,
    empty: Empty,
    prepare: Vec<Prepare>,
    reporter: Reporter,
}

async fn follow<S, G, L, F, M>(mut it: Follow<S, G, L, F>)
where
    G: Gate,
    L: Source,
    F: FnMut(&Target) -> M,
    M: IntoEndpoint<S, G>,
{
    let mut coin = Coin::random();
    while let Some(list) = while_there(&it.set, it.source.next()).await {
        let pause = match list.and_then(|list| it.believe(list)) {
            Ok(list) => {
                let changes = it.reconciler.reconcile(&list);
                it.reporter.listed(list.len(), changes);
                BREATH
            }
            Err(error) => backoff::pause(it.reporter.failed(error), &mut coin),
        };
        if while_there(&it.set, sleep(pause)).await.is_none() {
            return;
        }
    }
}

impl<S, G: Gate, L, F> Follow<S, G, L, F> {
    fn believe(&mut self, mut list: Vec<Target>) -> Result<Vec<Target>, BoxError> {
        for prepare in &mut self.prepare {
            prepare(&mut list);
        }
        if list.is_empty() && self.empty == Empty::Doubted && !self.reconciler.is_empty() {
            return Err(EmptyList.into());
        }
        Ok(list)
    }
}

/// `None` as soon as the set is gone.
pub(super) async fn while_there<S, G, A: Future>(
    set: &Weak<Shared<S, G>>,
    work: A,
) -> Option<A::Output> {
    let mut work = pin!(work);
    loop {
        let changed = set.upgrade()?.changed();
        let mut changed = pin!(changed);
        let done = poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            changed.as_mut().poll(cx).map(|()| None)
        });
        if let Some(done) = done.await {
            return Some(done);
        }
    }
}
