use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use crate::{alternative::Entry, error::NoSuchAlternative};

/// Looks at a fallback and steers it from outside. Taken from a layer that has all of its alternatives.
///
/// ```
/// use http::Response;
/// use palisade_fallback::{FallbackLayer, Mode};
///
/// let layer = FallbackLayer::<()>::new().value("closed", Response::new("closed"));
/// let handle = layer.handle();
/// // A drill: nobody asks the service.
/// handle.force("closed")?;
/// assert_eq!(handle.snapshot().mode, Mode::Forced("closed".into()));
/// handle.auto();
/// assert!(handle.force("open").is_err());
/// # Ok::<(), palisade_fallback::NoSuchAlternative>(())
/// ```
#[derive(Clone)]
pub struct Handle {
    entries: Vec<Arc<Entry>>,
    stats: Arc<Stats>,
}

/// Who is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// The service, and alternatives when it fails.
    #[default]
    Auto,
    /// The service only. Who would have been asked first after a failure is counted; bodies are kept and streams held
    /// back as if somebody was.
    Shadow,
    /// An alternative and, when it fails, those after it. The service is asked only if none of them can be.
    Forced(Arc<str>),
}

/// What a fallback has done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Who is asked now.
    pub mode: Mode,
    /// Requests that have come in.
    pub requests: u64,
    /// In their order.
    pub alternatives: Vec<AlternativeSnapshot>,
    /// Failures that were passed on because no alternative was left that could be asked.
    pub exhausted: u64,
}

/// What an alternative has done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AlternativeSnapshot {
    /// Its name.
    pub name: Arc<str>,
    /// Answers that it has given.
    pub served: u64,
    /// Requests that would have gone to it first, in shadow mode.
    pub shadowed: u64,
}

impl Handle {
    pub(crate) fn new(entries: Vec<Arc<Entry>>, stats: Arc<Stats>) -> Self {
        Self { entries, stats }
    }

    /// The counts of now. They are read one after the other, while requests go on.
    pub fn snapshot(&self) -> Snapshot {
        let named = self.entries.iter().zip(&self.stats.alternatives);
        let alternatives = named.map(|(entry, counts)| AlternativeSnapshot {
            name: entry.name.clone(),
            served: counts.served.load(Relaxed),
            shadowed: counts.shadowed.load(Relaxed),
        });
        Snapshot {
            mode: self.mode(),
            requests: self.stats.requests.load(Relaxed),
            alternatives: alternatives.collect(),
            exhausted: self.stats.exhausted.load(Relaxed),
        }
    }

    /// Sends requests that come from now on to this alternative, as if the service could not be reached.
    ///
    /// # Errors
    ///
    /// If there is none of that name; then nothing has changed.
    pub fn force(&self, name: &str) -> Result<(), NoSuchAlternative> {
        let at = self.entries.iter().position(|entry| *entry.name == *name);
        let at = at.ok_or_else(|| NoSuchAlternative(name.into()))?;
        self.stats.steer(Steer::Forced(at));
        Ok(())
    }

    /// Only counts who would have been asked, for requests that come from now on.
    pub fn shadow(&self) {
        self.stats.steer(Steer::Shadow);
    }

    /// Asks the service first again, for requests that come from now on.
    pub fn auto(&self) {
        self.stats.steer(Steer::Auto);
    }

    fn mode(&self) -> Mode {
        match self.stats.steered() {
            Steer::Auto => Mode::Auto,
            Steer::Shadow => Mode::Shadow,
            Steer::Forced(at) => Mode::Forced(self.entries[at].name.clone()),
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.snapshot()).finish()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) requests: AtomicU64,
    pub(crate) exhausted: AtomicU64,
    pub(crate) alternatives: Vec<Counts>,
    /// A [`Steer`] as a number.
    steer: AtomicUsize,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) served: AtomicU64,
    pub(crate) shadowed: AtomicU64,
}

/// Who is asked, by the place of the alternative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Steer {
    Auto,
    Shadow,
    Forced(usize),
}

impl Stats {
    /// For this many alternatives.
    pub(crate) fn new(alternatives: usize) -> Self {
        Self {
            alternatives: (0..alternatives).map(|_| Counts::default()).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn steered(&self) -> Steer {
        match self.steer.load(Relaxed) {
            0 => Steer::Auto,
            1 => Steer::Shadow,
            forced => Steer::Forced(forced - 2),
        }
    }

    pub(crate) fn steer(&self, steer: Steer) {
        let number = match steer {
            Steer::Auto => 0,
            Steer::Shadow => 1,
            Steer::Forced(at) => at + 2,
        };
        self.steer.store(number, Relaxed);
    }
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
