//! Follows what tower's own balancer follows: a stream of services that come and go.

use std::{
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use ::tower::discover::{Change, Discover};
use palisade_core::{BoxError, gate::Gate};
use tokio::{sync::watch, time::sleep};

use super::{
    Changes, Discovery, IntoEndpoint, Ledger, backoff, follow::while_there,
    reconcile::Known as Listed, report::Reporter,
};
use crate::{Endpoint, Endpoints, coin::Coin, endpoints::Shared};

impl<S, G: Gate> Endpoints<S, G> {
    /// Applies each change of a [`Discover`] as long as the future is polled: spawn it.
    ///
    /// `make` gets each key and its service and makes the endpoint, or says with an `Err` why it cannot. A key that
    /// comes again replaces its endpoint, and the old one finishes what it has. An error of the stream changes
    /// nothing; it is asked again a while later. A service that fails while it becomes ready is not dropped, as
    /// tower's balancer does: the request goes elsewhere, and such an endpoint is ejected like any that fails.
    ///
    /// The future ends with the stream, and then the set stays as it is, or when the last handle of the set is gone.
    /// Another follower takes over the names that its stream says again.
    pub fn follow_discover<D, F, M>(&self, discover: D, make: F) -> DiscoverFollower
    where
        S: Send + Sync + 'static,
        D: Discover + Send + 'static,
        D::Key: Send,
        D::Service: Send,
        D::Error: Into<BoxError> + Send,
        F: FnMut(&D::Key, D::Service) -> M + Send + 'static,
        M: IntoEndpoint<S, G> + 'static,
    {
        let source: Arc<str> = Arc::from(SOURCE);
        let (sender, seen) = watch::channel(Discovery {
            source: Arc::clone(&source),
            ..Discovery::default()
        });
        let reporter = Reporter::new(sender, self.layer(), &source);
        let running = Box::pin(follow(Follow {
            set: self.downgrade(),
            discover: Box::pin(discover),
            make,
            known: Vec::new(),
            inherited: Ledger::new(),
            reporter,
        }));
        DiscoverFollower {
            seen,
            running: Some(running),
        }
    }
}

/// The future of [`Endpoints::follow_discover`].
#[must_use = "follows nothing unless it is polled"]
pub struct DiscoverFollower {
    seen: watch::Receiver<Discovery>,
    running: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl DiscoverFollower {
    /// Tells what comes of the stream; what changes at once counts as a list.
    pub fn watch(&self) -> watch::Receiver<Discovery> {
        self.seen.clone()
    }
}

impl Future for DiscoverFollower {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let running = &mut self.get_mut().running;
        let over = running
            .as_mut()
            .map_or(Poll::Ready(()), |running| running.as_mut().poll(cx));
        if over.is_ready() {
            *running = None;
        }
        over
    }
}

impl fmt::Debug for DiscoverFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DiscoverFollower")
            .field(&*self.seen.borrow())
            .finish()
    }
}

struct Follow<S, G, D: Discover, F> {
    set: Weak<Shared<S, G>>,
    discover: Pin<Box<D>>,
    make: F,
    known: Vec<Known<D::Key>>,
    /// What a follower before this one has brought and this one has not heard of yet.
    inherited: Ledger,
    reporter: Reporter,
}

struct Known<K> {
    key: K,
    name: Arc<str>,
    listed: Listed,
}

/// What has come at once: changes, and perhaps what ended them.
struct Batch<D: Discover> {
    changes: Vec<Change<D::Key, D::Service>>,
    stop: Option<Stop<D::Error>>,
}

enum Stop<E> {
    Failed(E),
    Ended,
}

const SOURCE: &str = "discover";
/// So many changes are applied at once, so that a stream that never ends does not keep the thread.
const BATCH: usize = 64;

async fn follow<S, G, D, F, M>(mut it: Follow<S, G, D, F>)
where
    G: Gate,
    D: Discover,
    D::Error: Into<BoxError>,
    F: FnMut(&D::Key, D::Service) -> M,
    M: IntoEndpoint<S, G>,
{
    let mut coin = Coin::random();
    while let Some(batch) = while_there(&it.set, next::<D>(it.discover.as_mut())).await {
        let Some(endpoints) = it.set.upgrade().map(Endpoints) else {
            return;
        };
        if !batch.changes.is_empty() {
            let changes = it.apply(&endpoints, batch.changes);
            it.reporter.listed(it.known.len(), changes);
        }
        drop(endpoints);
        match batch.stop {
            None => tokio::task::yield_now().await,
            Some(Stop::Ended) => return,
            Some(Stop::Failed(error)) => {
                let pause = backoff::pause(it.reporter.failed(error.into()), &mut coin);
                if while_there(&it.set, sleep(pause)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// All that is there, and at least one.
async fn next<D: Discover>(mut discover: Pin<&mut D>) -> Batch<D> {
    let mut batch = Batch {
        changes: Vec::new(),
        stop: None,
    };
    poll_fn(|cx| {
        while batch.changes.len() < BATCH {
            match discover.as_mut().poll_discover(cx) {
                Poll::Pending if batch.changes.is_empty() => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Some(Ok(change))) => batch.changes.push(change),
                Poll::Ready(Some(Err(error))) => {
                    batch.stop = Some(Stop::Failed(error));
                    break;
                }
                Poll::Ready(None) => {
                    batch.stop = Some(Stop::Ended);
                    break;
                }
            }
        }
        Poll::Ready(())
    })
    .await;
    batch
}

impl<S, G, D: Discover, F> Follow<S, G, D, F> {
    fn apply<M>(
        &mut self,
        endpoints: &Endpoints<S, G>,
        all: Vec<Change<D::Key, D::Service>>,
    ) -> Changes
    where
        G: Gate,
        F: FnMut(&D::Key, D::Service) -> M,
        M: IntoEndpoint<S, G>,
    {
        let mut changes = Changes::default();
        self.inherited.extend(endpoints.0.take_left(SOURCE));
        for change in all {
            match change {
                Change::Insert(key, service) => {
                    match (self.make)(&key, service).into_endpoint() {
                        Ok(endpoint) => self.insert(endpoints, key, endpoint, &mut changes),
                        Err(error) => {
                            // Without a name: the key need not have one.
                            changes.failed.push((Arc::from(""), error.into()));
                        }
                    }
                }
                Change::Remove(key) => {
                    if let Some(at) = self.known.iter().position(|known| known.key == key) {
                        let known = self.known.swap_remove(at);
                        if endpoints.remove_listed(known.listed.id) {
                            changes.removed.push(known.name);
                        }
                    }
                }
            }
        }
        changes
    }

    fn insert(
        &mut self,
        endpoints: &Endpoints<S, G>,
        key: D::Key,
        endpoint: Endpoint<S, G>,
        changes: &mut Changes,
    ) where
        G: Gate,
    {
        let (name, made) = (endpoint.name().clone(), endpoint.settings());
        let before = self.known.iter().position(|known| known.key == key);
        let old = before.map(|at| self.known.swap_remove(at));
        let ours = old.as_ref().map(|old| old.listed.id);
        let inherited = self.inherited.remove(&name).map(|known| known.id);
        let id = endpoints.insert_over(endpoint, |held| {
            held.is_none() || held == ours || held == inherited
        });
        // Under the same name it has made way already.
        let went = old.is_some_and(|old| {
            (id.is_some() && old.name == name) || endpoints.remove_listed(old.listed.id)
        });
        let Some(id) = id else {
            changes.taken.push(name);
            return;
        };
        if went {
            changes.replaced.push(name.clone());
        } else {
            changes.added.push(name.clone());
        }
        self.known.push(Known {
            key,
            name: name.clone(),
            listed: Listed::inserted(id, &name, made),
        });
    }
}

impl<S, G, D: Discover, F> Drop for Follow<S, G, D, F> {
    fn drop(&mut self) {
        if let Some(set) = self.set.upgrade() {
            let mut left = mem::take(&mut self.inherited);
            let known = self.known.drain(..);
            left.extend(known.map(|known| (known.name, known.listed)));
            set.leave(&Arc::from(SOURCE), left);
        }
    }
}
