//! What all clones of a store do together: from what was asked to scripts, and from replies to answers.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::future::join_all;
use hmac::{Hmac, KeyInit, Mac};
use palisade_core::{key::Key, time::now};
use redis::Value;
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, time::Instant};

use super::{
    batch::Batch,
    config::{RedisConfig, RedisConfigError},
    held::Held,
    link::Link,
    metrics::Metrics,
    node::{Miss, Timing},
    script::{self, Script},
    slots,
    tally::Tally,
    wire::{self, Replies},
};
use crate::{
    central::{Answer, Answers, Ask, Change, Course, Ends, Grant, Job, Plan, Subject},
    error::StoreError,
};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) link: Link,
    pub(super) tally: Arc<Tally>,
    pub(super) held: Held,
    pub(super) batch: Batch,
    pub(super) prefix: Arc<str>,
    pub(super) deadline: Duration,
    pub(super) lease_for: Duration,
    hash: Hash,
    /// What is left to the upkeep from here, for as long as there is a store.
    jobs: mpsc::WeakSender<Job>,
    #[cfg(feature = "testing")]
    pub(super) clock: std::sync::atomic::AtomicU64,
}

enum Hash {
    Plain(Sha256),
    Keyed(Hmac<Sha256>),
}

impl Shared {
    pub(super) fn new(
        config: RedisConfig,
        jobs: mpsc::WeakSender<Job>,
    ) -> Result<Self, RedisConfigError> {
        let deadline = config.deadline;
        let tally = Arc::new(Tally::new(Metrics::new(&config.name)));
        let timing = Timing {
            connect: (deadline * 10).max(Duration::from_millis(100)),
            deadline,
            heartbeat: config.heartbeat,
        };
        let hash = Hash::new(config.secret.as_deref());
        let (prefix, lease_for) = (config.prefix.clone(), config.lease_for);
        let link = Link::new(config, timing, tally.clone())?;
        Ok(Self {
            link,
            tally,
            held: Held::default(),
            batch: Batch::new(),
            prefix,
            deadline,
            lease_for,
            hash,
            jobs,
            #[cfg(feature = "testing")]
            clock: Default::default(),
        })
    }

    pub(super) fn subject(&self, key: &Key<'_>) -> Subject {
        let mut kind = [0];
        let (v4, v6);
        let bytes: &[u8] = match key {
            Key::Bytes(bytes) => {
                kind = *b"b";
                bytes
            }
            Key::Address(std::net::IpAddr::V4(address)) => {
                v4 = address.octets();
                &v4
            }
            Key::Address(std::net::IpAddr::V6(address)) => {
                v6 = address.octets();
                &v6
            }
        };
        self.hash.subject(kind, bytes)
    }

    pub(super) async fn take(self: Arc<Self>, asks: Vec<Ask>) -> Result<Answers, StoreError> {
        let mut places = Places::new(&self, &asks);
        let answers = self.decide(&asks, true).await;
        match &answers {
            Ok(answers) if answers.rules.iter().all(|answer| answer.full.is_none()) => {
                places.hold();
            }
            Ok(_) | Err(StoreError::Down) => places.clear(),
            // It is not known whether they were taken.
            Err(_) => {}
        }
        answers
    }

    pub(super) async fn peek(self: Arc<Self>, asks: Vec<Ask>) -> Result<Answers, StoreError> {
        self.decide(&asks, false).await
    }

    pub(super) async fn lease(&self, ask: Ask, want: u64) -> Result<Grant, StoreError> {
        let mut plans = wire::head(true, self.tally.replicas.load(Relaxed), self.now());
        wire::push_ask(&mut plans, &ask, true, want.max(ask.cost).max(1));
        let until = now() + self.deadline;
        let numbers = self.ask(&[self.key(&ask)], &plans, true, until).await?;
        let mut replies = Replies::new(numbers).ok_or_else(strange)?;
        let answer = replies.answer(&ask).ok_or_else(strange)?;
        let granted = replies.granted().ok_or_else(strange)?;
        Ok(Grant {
            granted: if answer.full.is_none() { granted } else { 0 },
            answer,
        })
    }

    /// The places in flight among these end within the time that one lasts, whatever becomes of them.
    pub(super) fn let_go(&self, changes: &[Change]) {
        for change in changes {
            if let Plan::InFlight { .. } = change.plan {
                let key = wire::key(&self.prefix, change.subject, &change.rule, &change.plan);
                self.held.remove(&key, change.ticket);
            }
        }
    }

    pub(super) async fn settle(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let keys: Vec<_> = changes
            .iter()
            .map(|change| wire::key(&self.prefix, change.subject, &change.rule, &change.plan))
            .collect();
        let until = now() + self.deadline;
        let groups = self.groups(&keys).into_iter().map(|group| {
            let mut plans = Vec::with_capacity(64 * group.len());
            wire::push_now(&mut plans, self.now());
            for &at in &group {
                wire::push_change(&mut plans, &changes[at]);
            }
            let keys: Vec<_> = group.iter().map(|&at| keys[at].clone()).collect();
            async move { self.run(&script::SETTLE, &keys, &plans, until).await }
        });
        for done in join_all(groups).await {
            done?;
        }
        Ok(())
    }

    pub(super) async fn reset(&self, asks: Vec<Ask>) -> Result<Vec<bool>, StoreError> {
        let keys: Vec<_> = asks.iter().map(|ask| self.key(ask)).collect();
        for (ask, key) in asks.iter().zip(&keys) {
            if let Plan::InFlight { .. } = ask.plan {
                self.held.forget(key);
            }
        }
        let until = now() + self.deadline;
        let groups = self.groups(&keys).into_iter().map(|group| {
            let keys: Vec<_> = group.iter().map(|&at| keys[at].clone()).collect();
            async move {
                let value = self.run(&script::RESET, &keys, &[], until).await?;
                let were = wire::integers(value).ok_or_else(strange)?;
                Ok::<_, StoreError>((group, were))
            }
        });
        let mut was = vec![false; asks.len()];
        for done in join_all(groups).await {
            let (group, were) = done?;
            for (at, number) in group.into_iter().zip(were) {
                was[at] = number > 0;
            }
        }
        Ok(was)
    }

    pub(super) async fn adapt(
        &self,
        rule: &str,
        ends: Ends,
        course: &Course,
    ) -> Result<u64, StoreError> {
        let key = format!("{}:adaptive:{rule}", self.prefix).into_bytes();
        let numbers = wire::course(ends, course, self.now());
        let until = now() + self.deadline;
        let value = self.run(&script::ADAPT, &[key], &numbers, until).await?;
        wire::integer(&value).ok_or_else(strange)
    }

    /// Leaves something to the upkeep.
    pub(super) fn leave(&self, job: Job) {
        let left = self.jobs.upgrade().map(|jobs| jobs.try_send(job));
        if !matches!(left, Some(Ok(()))) {
            self.tally.lost_a_job();
        }
    }

    async fn decide(self: &Arc<Self>, asks: &[Ask], takes: bool) -> Result<Answers, StoreError> {
        let keys: Vec<_> = asks.iter().map(|ask| self.key(ask)).collect();
        let until = now() + self.deadline;
        let groups = self.groups(&keys);
        let rules = match groups.len() {
            0 => Vec::new(),
            1 => self.decide_together(asks, &keys, takes, until).await?,
            _ => self.decide_apart(asks, &keys, groups, takes, until).await?,
        };
        Ok(Answers { rules })
    }

    /// Keys that a server has together.
    async fn decide_together(
        &self,
        asks: &[Ask],
        keys: &[Vec<u8>],
        takes: bool,
        until: Instant,
    ) -> Result<Vec<Answer>, StoreError> {
        let mut plans = match takes {
            // A head of its own, or one for several.
            true => Vec::with_capacity(asks.len() * wire::ASK),
            false => wire::head(false, 1, self.now()),
        };
        for (at, ask) in asks.iter().enumerate() {
            wire::push_ask(&mut plans, ask, at + 1 == asks.len(), 0);
        }
        let numbers = match takes {
            true => {
                let width = asks.iter().map(|ask| wire::width(&ask.plan)).sum();
                self.take_once(keys, plans, width, until).await?
            }
            false => self.ask(keys, &plans, takes, until).await?,
        };
        let mut replies = Replies::new(numbers).ok_or_else(strange)?;
        asks.iter()
            .map(|ask| replies.answer(ask).ok_or_else(strange))
            .collect()
    }

    /// Keys that servers of a cluster have apart: where some took and others did not, they give it back.
    async fn decide_apart(
        self: &Arc<Self>,
        asks: &[Ask],
        keys: &[Vec<u8>],
        groups: Vec<Vec<usize>>,
        takes: bool,
        until: Instant,
    ) -> Result<Vec<Answer>, StoreError> {
        let decisions = groups.into_iter().map(|group| async move {
            let asks: Vec<_> = group.iter().map(|&at| asks[at].clone()).collect();
            let keys: Vec<_> = group.iter().map(|&at| keys[at].clone()).collect();
            let answers = self.decide_together(&asks, &keys, takes, until).await;
            (group, answers)
        });
        let (mut rules, mut taken, mut error) = (vec![None; asks.len()], Vec::new(), None);
        let mut passes = true;
        for (group, answers) in join_all(decisions).await {
            let answers = match answers {
                Ok(answers) => answers,
                Err(what) => {
                    // That of a server which may have taken says more.
                    if !matches!((&error, &what), (Some(_), StoreError::Down)) {
                        error = Some(what);
                    }
                    continue;
                }
            };
            if answers.iter().all(|answer| answer.full.is_none()) {
                taken.extend(&group);
            } else {
                passes = false;
            }
            for (at, answer) in group.into_iter().zip(answers) {
                rules[at] = Some(answer);
            }
        }
        if takes && !taken.is_empty() && (error.is_some() || !passes) {
            let give_back = |&at: &usize| {
                let answer: &mut Answer = rules[at].as_mut()?;
                // What is on its way back counts as there.
                let remaining = &mut answer.standing.remaining;
                *remaining = remaining.saturating_add(asks[at].cost);
                answer.standing.retry_after = 0;
                Some(give_back(&asks[at], answer.at))
            };
            let changes: Vec<_> = taken.iter().filter_map(give_back).collect();
            let shared = self.clone();
            self.leave(Box::pin(async move {
                // What is lost stands as it was taken.
                let _ = shared.settle(changes).await;
            }));
        }
        match error {
            Some(error) => Err(error),
            None => rules.into_iter().collect::<Option<_>>().ok_or_else(strange),
        }
    }

    /// One decision of one server, with others if there are many.
    async fn take_once(
        &self,
        keys: &[Vec<u8>],
        plans: Vec<u8>,
        width: usize,
        until: Instant,
    ) -> Result<Vec<u64>, StoreError> {
        // A cluster decides by slot, so that no two subjects go together.
        if self.link.is_cluster() {
            return self.take_alone(keys, &plans, until).await;
        }
        let (_under_way, goes_with_others) = self.batch.begin();
        if goes_with_others && self.tally.is_up() {
            let began = now();
            if let Some(reply) = self.batch.decide(keys, &plans, width, until).await {
                return self.heard(reply, began, true);
            }
        }
        self.take_alone(keys, &plans, until).await
    }

    async fn take_alone(
        &self,
        keys: &[Vec<u8>],
        plans: &[u8],
        until: Instant,
    ) -> Result<Vec<u64>, StoreError> {
        let mut whole = wire::head(true, 1, self.now());
        whole.extend_from_slice(plans);
        self.ask(keys, &whole, true, until).await
    }

    /// One script of one server.
    async fn ask(
        &self,
        keys: &[Vec<u8>],
        plans: &[u8],
        takes: bool,
        until: Instant,
    ) -> Result<Vec<u64>, StoreError> {
        let began = now();
        let reply = self.link.run(&script::TAKE, keys, &[plans], until).await;
        let reply = reply.map(|value| wire::integers(value).unwrap_or_default());
        self.heard(reply, began, takes)
    }

    fn heard(
        &self,
        reply: Result<Vec<u64>, Miss>,
        began: Instant,
        takes: bool,
    ) -> Result<Vec<u64>, StoreError> {
        self.tally.asked();
        match &reply {
            Ok(_) => self.tally.answered(now().saturating_duration_since(began)),
            Err(miss) if takes && miss.is_unclear() => self.tally.may_have_charged(),
            Err(_) => {}
        }
        reply.map_err(Miss::into)
    }

    async fn run(
        &self,
        script: &Script,
        keys: &[Vec<u8>],
        argument: &[u8],
        until: Instant,
    ) -> Result<Value, StoreError> {
        let reply = self.link.run(script, keys, &[argument], until).await;
        reply.map_err(Miss::into)
    }

    fn key(&self, ask: &Ask) -> Vec<u8> {
        wire::key(&self.prefix, ask.subject, &ask.rule, &ask.plan)
    }

    /// Which keys one script can have, by their places.
    fn groups(&self, keys: &[Vec<u8>]) -> Vec<Vec<usize>> {
        if keys.is_empty() {
            return Vec::new();
        }
        if !self.link.is_cluster() {
            return vec![(0..keys.len()).collect()];
        }
        let mut groups: Vec<(u16, Vec<usize>)> = Vec::with_capacity(1);
        for (at, key) in keys.iter().enumerate() {
            let slot = slots::of(key);
            match groups.iter_mut().find(|(other, _)| *other == slot) {
                Some((_, group)) => group.push(at),
                None => groups.push((slot, vec![at])),
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }

    /// The time that a test has set, in microseconds.
    pub(super) fn now(&self) -> Option<u64> {
        #[cfg(feature = "testing")]
        match self.clock.load(Relaxed) {
            0 => {}
            now => return Some(now),
        }
        None
    }
}

impl Hash {
    /// What distinguishes these from other hashes under the same secret.
    const TAG: &[u8] = b"palisade rate limit subject\0";

    fn new(secret: Option<&[u8]>) -> Self {
        match secret.map(Hmac::<Sha256>::new_from_slice) {
            Some(Ok(hmac)) => Self::Keyed(hmac.chain_update(Self::TAG)),
            // An HMAC takes keys of any length.
            Some(Err(_)) | None => Self::Plain(Sha256::new().chain_update(Self::TAG)),
        }
    }

    fn subject(&self, kind: [u8; 1], bytes: &[u8]) -> Subject {
        let whole: [u8; 32] = match self {
            Self::Plain(sha) => sha
                .clone()
                .chain_update(kind)
                .chain_update(bytes)
                .finalize()
                .into(),
            Self::Keyed(hmac) => {
                let hmac = hmac.clone().chain_update(kind).chain_update(bytes);
                hmac.finalize().into_bytes().into()
            }
        };
        let mut subject = [0; 16];
        subject.copy_from_slice(&whole[..16]);
        Subject(subject)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Keyed(_) => "Keyed",
        })
    }
}

/// Places in flight that a request asks for: freed unless it has heard that it has them, or that it has not.
struct Places {
    shared: Arc<Shared>,
    changes: Vec<Change>,
}

impl Places {
    fn new(shared: &Arc<Shared>, asks: &[Ask]) -> Self {
        let are_places = |ask: &&Ask| matches!(ask.plan, Plan::InFlight { .. });
        let changes = asks.iter().filter(are_places).map(|ask| give_back(ask, 0));
        Self {
            shared: shared.clone(),
            changes: changes.collect(),
        }
    }

    /// The request has them.
    fn hold(&mut self) {
        for change in self.changes.drain(..) {
            let Change { rule, plan, .. } = &change;
            let key = wire::key(&self.shared.prefix, change.subject, rule, plan);
            self.shared.held.insert(key, change.ticket, change.reserved);
        }
    }

    /// It has none.
    fn clear(&mut self) {
        self.changes.clear();
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let (shared, changes) = (self.shared.clone(), std::mem::take(&mut self.changes));
        self.shared.leave(Box::pin(async move {
            // They end by themselves, if nobody renews them.
            let _ = shared.settle(changes).await;
        }));
    }
}

fn give_back(ask: &Ask, at: u64) -> Change {
    Change {
        rule: ask.rule.clone(),
        subject: ask.subject,
        plan: ask.plan,
        ticket: ask.ticket,
        at,
        reserved: ask.cost,
        used: 0,
        drain: false,
    }
}

fn strange() -> StoreError {
    StoreError::Failed("a reply that no script gives".into())
}
