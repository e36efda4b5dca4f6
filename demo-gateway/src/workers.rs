//! Threads that each serve connections of their own, with connections to backends of their own: so that no request
//! moves from one thread to another, which would cost more than all of the layers.

use std::{
    cell::Cell,
    io,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

thread_local!(static NUMBER: Cell<usize> = const { Cell::new(0) });

/// The number of this thread among the workers, from 1; 0 on any other thread.
pub(crate) fn number() -> usize {
    NUMBER.get()
}

/// How many workers there are where nobody said.
pub(crate) fn usual() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Threads with a runtime each. Dropped, they end with all that they had.
pub(crate) struct Workers(Vec<Worker>);

struct Worker {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
    /// Dropped, it ends the thread.
    run: oneshot::Sender<()>,
    /// Closed when nothing is left of what the thread had.
    gone: oneshot::Receiver<()>,
}

/// A connection's place on a worker.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Workers {
    pub(crate) fn start(many: usize) -> io::Result<Self> {
        (1..=many)
            .map(Worker::start)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Ends them, and waits until nothing is left of what they had: streams of HTTP/2 and parts of a batch have tasks of
    /// their own, which outlive the connection by a little.
    pub(crate) async fn close(self) {
        let workers = self.0.into_iter().map(|it| (it.run, it.gone));
        let (runs, gone): (Vec<_>, Vec<_>) = workers.unzip();
        drop(runs);
        for gone in gone {
            // It is never sent, only dropped.
            let _gone = gone.await;
        }
    }

    /// The worker with the fewest connections.
    pub(crate) fn choose(&self) -> Option<(&Handle, Place)> {
        let fewest = self
            .0
            .iter()
            .min_by_key(|worker| worker.connections.load(Relaxed))?;
        fewest.connections.fetch_add(1, Relaxed);
        Some((&fewest.runtime, Place(fewest.connections.clone())))
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (run, stopped) = oneshot::channel();
        let (alive, gone) = oneshot::channel();
        let serve = move || {
            let _alive: oneshot::Sender<()> = alive;
            NUMBER.set(number);
            // It ends when the other side is dropped, which is no error here.
            let _stopped = runtime.block_on(stopped);
            // Drops all tasks, without a wait for a name that is being looked up.
            runtime.shutdown_background();
        };
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(serve)?;
        Ok(Self {
            runtime: handle,
            connections: Arc::default(),
            run,
            gone,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_go_where_the_fewest_are_and_stay_on_their_thread() {
        let workers = Workers::start(2).unwrap();
        let (first, place) = workers.choose().unwrap();
        let one = first.spawn(async { number() }).await.unwrap();
        let (second, _other) = workers.choose().unwrap();
        let other = second.spawn(async { number() }).await.unwrap();
        assert_eq!((one + other, one * other), (3, 2), "one on each");
        drop(place);
        let (again, _place) = workers.choose().unwrap();
        assert_eq!(again.spawn(async { number() }).await.unwrap(), one);
        assert_eq!(number(), 0);
    }

    #[tokio::test]
    async fn nothing_is_left_of_what_workers_had_once_they_are_closed() {
        struct Slow(Arc<AtomicUsize>);

        impl Drop for Slow {
            fn drop(&mut self) {
                thread::yield_now();
                self.0.fetch_add(1, Relaxed);
            }
        }

        let workers = Workers::start(2).unwrap();
        let ended = Arc::new(AtomicUsize::new(0));
        for _ in 0..1000 {
            let (runtime, _place) = workers.choose().unwrap();
            let slow = Slow(ended.clone());
            runtime.spawn(async move {
                let _slow = slow;
                std::future::pending::<()>().await;
            });
        }
        workers.close().await;
        assert_eq!(ended.load(Relaxed), 1000);
    }

    #[tokio::test]
    async fn a_worker_that_is_dropped_ends_what_it_had() {
        let workers = Workers::start(1).unwrap();
        let (held, ended) = oneshot::channel::<()>();
        let (runtime, place) = workers.choose().unwrap();
        runtime.spawn(async move {
            let _both = (held, place);
            std::future::pending::<()>().await;
        });
        drop(workers);
        assert!(ended.await.is_err());
    }
}
