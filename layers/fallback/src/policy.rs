//! What a layer and its services share.

use std::sync::Arc;

use http::{HeaderName, Response};
use palisade_core::{classify::Judge, head::ResponseHead};

use crate::{
    Failure, ServedBy,
    alternative::{Alternative, Entry, Kind},
    failure::unserved,
    handle::{Stats, count},
    metrics::Metrics,
};

pub(crate) const MARK: HeaderName = HeaderName::from_static("x-fallback");

pub(crate) type Condition = dyn Fn(&Failure<'_>) -> bool + Send + Sync;
pub(crate) type Holds = dyn Fn(&ResponseHead<'_>) -> bool + Send + Sync;

pub(crate) struct Policy<B> {
    pub(crate) alternatives: Vec<Alternative<B>>,
    pub(crate) condition: Option<Arc<Condition>>,
    pub(crate) hold_back: Option<Arc<Holds>>,
    pub(crate) replay_up_to: usize,
    pub(crate) mark: Option<HeaderName>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) metrics: Metrics,
}

impl<B> Policy<B> {
    /// Its counts begin anew: they are by alternative.
    pub(crate) fn add(&mut self, name: &str, kind: Kind<B>) {
        self.alternatives.push(Alternative::new(name, kind));
        self.stats = Arc::new(Stats::new(self.alternatives.len()));
        self.metrics = Metrics::new(self.metrics.layer());
    }

    /// A request has come.
    pub(crate) fn arrive(&self) {
        count(&self.stats.requests);
        let names = self.alternatives.iter();
        self.metrics.register(names.map(|each| &each.entry.name));
    }

    /// Whether an alternative may want the head of the request.
    pub(crate) fn keeps_head(&self) -> bool {
        let mut alternatives = self.alternatives.iter();
        alternatives.any(|each| each.applies.is_some() || !matches!(each.kind, Kind::Value(_)))
    }

    /// Whether an alternative may want the body of the request.
    pub(crate) fn keeps_body(&self) -> bool {
        let mut kinds = self.alternatives.iter().map(|each| &each.kind);
        kinds.any(|kind| matches!(kind, Kind::Service { .. }))
    }

    /// Whether this is something to ask an alternative after, be there one or not.
    pub(crate) fn wants(&self, failure: &Failure<'_>) -> bool {
        let condition = self.condition.as_ref();
        condition.map_or_else(|| unserved(failure), |condition| condition(failure))
    }

    /// Whether an answer of which nothing is known yet is held back until its first data.
    pub(crate) fn holds_back<J: Judge>(&self, head: &ResponseHead<'_>) -> bool {
        let hold_back = self.hold_back.as_ref();
        J::READS_DATA && head.is_event_stream() || hold_back.is_some_and(|holds| holds(head))
    }

    pub(crate) fn entry(&self, at: usize) -> &Entry {
        &self.alternatives[at].entry
    }

    /// Says who has served.
    pub(crate) fn served<T>(&self, at: usize, response: &mut Response<T>) {
        let entry = self.entry(at);
        count(&self.stats.alternatives[at].served);
        self.metrics.served(at);
        if let Some(name) = &self.mark {
            let headers = response.headers_mut();
            headers.insert(name, entry.mark.clone());
        }
        let by = ServedBy(entry.name.clone());
        response.extensions_mut().insert(by);
    }

    pub(crate) fn shadowed(&self, at: usize) {
        count(&self.stats.alternatives[at].shadowed);
        self.metrics.shadowed(at);
    }

    pub(crate) fn exhausted(&self) {
        count(&self.stats.exhausted);
        self.metrics.exhausted();
    }
}

// By hand: derived, it would ask for `B: Clone`.
impl<B> Clone for Policy<B> {
    fn clone(&self) -> Self {
        Self {
            alternatives: self.alternatives.clone(),
            condition: self.condition.clone(),
            hold_back: self.hold_back.clone(),
            replay_up_to: self.replay_up_to,
            mark: self.mark.clone(),
            stats: self.stats.clone(),
            metrics: self.metrics.clone(),
        }
    }
}
