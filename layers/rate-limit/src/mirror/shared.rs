//! What clones of a mirror share.

use std::{
    borrow::Cow,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{header::HOST, uri::Authority};
use palisade_core::{
    head::RequestHead,
    key::{ExtractKey, Key},
    reject::{Reason, Rejected},
    time,
};
use tokio::time::Instant;

use super::{
    known::{At, SECOND, nanos},
    ledger::{Cost, Ledger, Shut},
    metrics::Metrics,
    queue::Queue,
    table::Table,
};
use crate::{error::RateLimited, quota::Quota};

/// What a refusal names when nobody knows: the queue is full, and the next answer decides about those in it.
const GUESS: At = SECOND;

type Tokens = dyn Fn(&RequestHead<'_>) -> u64 + Send + Sync;

#[derive(Clone)]
pub(super) struct Config {
    pub(super) key: Arc<dyn ExtractKey>,
    pub(super) tokens: Option<Arc<Tokens>>,
    pub(super) wait_up_to: Duration,
    pub(super) waiting: usize,
    pub(super) jitter: Duration,
    pub(super) capacity: usize,
    pub(super) name: Arc<str>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            key: Arc::new(authority),
            tokens: None,
            wait_up_to: Duration::from_secs(1),
            waiting: 256,
            jitter: Duration::ZERO,
            capacity: 1000,
            name: "quota_mirror".into(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("wait_up_to", &self.wait_up_to)
            .field("waiting", &self.waiting)
            .field("jitter", &self.jitter)
            .field("capacity", &self.capacity)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) metrics: Metrics,
    table: RwLock<Table<Account>>,
    hasher: RandomState,
    random: AtomicU64,
    origin: Instant,
    /// The policy of refusals that only `Retry-After` is the reason of.
    retry_after: Arc<str>,
}

/// What is known of one key, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Account(Mutex<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) ledger: Ledger,
    pub(super) queue: Queue,
}

impl Account {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing of users runs while it is held, and each step leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new(Config::default())
    }
}

impl Shared {
    pub(super) fn new(config: Config) -> Self {
        let hasher = RandomState::new();
        Self {
            metrics: Metrics::new(&config.name),
            table: RwLock::new(Table::new(config.capacity)),
            random: AtomicU64::new(hasher.hash_one("jitter")),
            hasher,
            origin: time::now(),
            retry_after: "retry-after".into(),
            config,
        }
    }

    pub(super) fn cost(&self, head: &RequestHead<'_>) -> Cost {
        let tokens = self.config.tokens.as_ref();
        Cost {
            requests: 1,
            tokens: tokens.map_or(1, |tokens| tokens(head).min(Quota::MOST)),
        }
    }

    /// `None` if there is no seat for the key.
    pub(super) fn account(&self, head: &RequestHead<'_>, now: At) -> Option<Arc<Account>> {
        let hash = self.hash(self.config.key.key(head).as_ref());
        if let Some(account) = self.find(hash) {
            return Some(account);
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let idle = |account: &Account| account.lock().ledger.is_idle(now);
        let account = table.get_or_insert(hash, idle).cloned();
        self.metrics.keys(table.len());
        account
    }

    pub(super) fn known(&self, key: Option<&Key<'_>>) -> Option<Arc<Account>> {
        self.find(self.hash(key))
    }

    pub(super) fn keys(&self) -> usize {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.len()
    }

    /// Two allocations.
    pub(super) fn refuse(&self, shut: Option<Shut<'_>>, now: At) -> Rejected {
        let rule = shut.as_ref().and_then(|shut| shut.policy);
        let rule = rule.unwrap_or(&self.retry_after).clone();
        let wait = shut.map_or(GUESS, |shut| shut.at - now);
        let retry_after = Duration::from_nanos(wait.unsigned_abs());
        self.metrics.refused();
        let error = RateLimited {
            rule: rule.clone(),
            cost: 1,
            limit: 0,
            remaining: 0,
            retry_after,
        };
        Rejected::new(Reason::RateLimited, error)
            .retry_after(retry_after)
            .violates(rule)
    }

    /// A random time up to the most. SplitMix64 (Steele, Lea, Flood, 2014), so that threads need no lock.
    pub(super) fn jitter(&self) -> At {
        let most = nanos(self.config.jitter);
        if most == 0 {
            return 0;
        }
        let step = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        let mixed = (step ^ (step >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let random = i128::from(mixed ^ (mixed >> 31));
        ((random * i128::from(most)) >> 64) as At
    }

    pub(super) fn at(&self, instant: Instant) -> At {
        match instant.checked_duration_since(self.origin) {
            Some(since) => At::try_from(since.as_nanos()).unwrap_or(At::MAX),
            None => 0,
        }
    }

    pub(super) fn instant(&self, at: At) -> Instant {
        self.origin + Duration::from_nanos(at.unsigned_abs())
    }

    fn find(&self, hash: u64) -> Option<Arc<Account>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.get(hash).cloned()
    }

    fn hash(&self, key: Option<&Key<'_>>) -> u64 {
        self.hasher.hash_one(key)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// The host and port that a request goes to, in lower case: of its URI, or of `Host` where that names none.
fn authority<'a>(head: &RequestHead<'a>) -> Option<Key<'a>> {
    let authority = match head.uri.authority().map(Authority::as_str) {
        Some(authority) => authority,
        None => head.headers.get(HOST)?.to_str().ok()?,
    };
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let bytes = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase().into_bytes())
    } else {
        Cow::Borrowed(host.as_bytes())
    };
    Some(Key::Bytes(bytes))
}
