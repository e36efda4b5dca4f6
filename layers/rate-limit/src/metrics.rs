//! What a rule reports to the `metrics` facade.
//!
//! Handles are registered with the first decision, by when the program has installed its recorder, and kept: no
//! decision after it looks up a name.

use std::sync::Arc;

use palisade_core::reject::Reason;

#[cfg(feature = "metrics")]
use self::on::Handles;
use crate::rule::OnStoreError;

/// Reports the decisions of one rule.
#[derive(Debug)]
#[cfg_attr(not(feature = "metrics"), derive(Default))]
pub(crate) struct Metrics {
    #[cfg(feature = "metrics")]
    layer: Arc<str>,
    #[cfg(feature = "metrics")]
    rule: Arc<str>,
    #[cfg(feature = "metrics")]
    handles: std::sync::OnceLock<Handles>,
}

#[cfg(not(feature = "metrics"))]
impl Metrics {
    pub(crate) fn new(_: &Arc<str>, _: &Arc<str>) -> Self {
        Self::default()
    }

    #[inline]
    pub(crate) fn admitted(&self, _: usize) {}

    #[inline]
    pub(crate) fn refused(&self, _: Reason) {}

    pub(crate) fn shadowed(&self) {}

    pub(crate) fn fell_back(&self, _: OnStoreError) {}

    pub(crate) fn leased(&self, _: u64) {}
}

#[cfg(feature = "metrics")]
impl Metrics {
    pub(crate) fn new(layer: &Arc<str>, rule: &Arc<str>) -> Self {
        Self {
            layer: layer.clone(),
            rule: rule.clone(),
            handles: std::sync::OnceLock::new(),
        }
    }

    /// A request was let through and took from the rule, which now holds this many keys.
    pub(crate) fn admitted(&self, keys: usize) {
        let handles = self.handles();
        handles.admitted.increment(1);
        handles.keys.set(keys as f64);
    }

    /// A request was refused, and the rule had the longest wait.
    pub(crate) fn refused(&self, reason: Reason) {
        let handles = self.handles();
        match reason {
            Reason::QuotaExhausted => handles.quota_exhausted.increment(1),
            Reason::CostExceedsQuota => handles.cost_exceeds_quota.increment(1),
            Reason::StoreUnavailable => handles.store_unavailable.increment(1),
            _ => handles.rate_limited.increment(1),
        }
    }

    /// A request was let through that the rule had no room for.
    pub(crate) fn shadowed(&self) {
        self.handles().shadowed.increment(1);
    }

    /// A request was decided without the store.
    pub(crate) fn fell_back(&self, policy: OnStoreError) {
        let handles = self.handles();
        match policy {
            OnStoreError::LocalShare => handles.local_share.increment(1),
            OnStoreError::Allow => handles.allowed.increment(1),
            OnStoreError::Deny => handles.denied.increment(1),
        }
    }

    /// A lease was asked for and got so many.
    pub(crate) fn leased(&self, granted: u64) {
        let handles = self.handles();
        handles.leases.increment(1);
        handles.leased.increment(granted);
    }

    fn handles(&self) -> &Handles {
        self.handles
            .get_or_init(|| Handles::register(&self.layer, &self.rule))
    }
}

#[cfg(feature = "metrics")]
mod on {
    use std::{fmt, sync::Arc};

    use metrics::{Counter, Gauge, Label, counter, describe_counter, describe_gauge, gauge};
    use palisade_core::reject::Reason;

    use crate::rule::OnStoreError;

    const ADMITTED: &str = "palisade_rate_limit_admitted_total";
    const REFUSED: &str = "palisade_rate_limit_refused_total";
    const SHADOWED: &str = "palisade_rate_limit_shadowed_total";
    const FALLBACK: &str = "palisade_rate_limit_fallback_total";
    const LEASES: &str = "palisade_rate_limit_leases_total";
    const LEASED: &str = "palisade_rate_limit_leased_total";
    const KEYS: &str = "palisade_rate_limit_keys";

    pub(super) struct Handles {
        pub(super) admitted: Counter,
        pub(super) rate_limited: Counter,
        pub(super) quota_exhausted: Counter,
        pub(super) cost_exceeds_quota: Counter,
        pub(super) store_unavailable: Counter,
        pub(super) shadowed: Counter,
        pub(super) local_share: Counter,
        pub(super) allowed: Counter,
        pub(super) denied: Counter,
        pub(super) leases: Counter,
        pub(super) leased: Counter,
        pub(super) keys: Gauge,
    }

    impl Handles {
        pub(super) fn register(layer: &Arc<str>, rule: &Arc<str>) -> Self {
            describe();
            let labels = || {
                let layer = Label::new("layer", layer.clone());
                vec![layer, Label::new("rule", rule.clone())]
            };
            let refused = |reason: Reason| {
                let mut labels = labels();
                labels.push(Label::new("reason", reason.name()));
                counter!(REFUSED, labels)
            };
            let fallback = |policy: OnStoreError| {
                let mut labels = labels();
                labels.push(Label::new("policy", policy.name()));
                counter!(FALLBACK, labels)
            };
            Self {
                admitted: counter!(ADMITTED, labels()),
                rate_limited: refused(Reason::RateLimited),
                quota_exhausted: refused(Reason::QuotaExhausted),
                cost_exceeds_quota: refused(Reason::CostExceedsQuota),
                store_unavailable: refused(Reason::StoreUnavailable),
                shadowed: counter!(SHADOWED, labels()),
                local_share: fallback(OnStoreError::LocalShare),
                allowed: fallback(OnStoreError::Allow),
                denied: fallback(OnStoreError::Deny),
                leases: counter!(LEASES, labels()),
                leased: counter!(LEASED, labels()),
                keys: gauge!(KEYS, labels()),
            }
        }
    }

    fn describe() {
        describe_counter!(
            ADMITTED,
            "Requests that were let through and took from the rule."
        );
        describe_counter!(
            REFUSED,
            "Requests that were refused for this rule, and why."
        );
        describe_counter!(
            SHADOWED,
            "Requests let through that the rule had no room for, in shadow mode."
        );
        describe_counter!(FALLBACK, "Requests decided without the store, and how.");
        describe_counter!(LEASES, "Times that a lease was asked for.");
        describe_counter!(LEASED, "What was got by leases.");
        describe_gauge!(KEYS, "Keys of the rule that are in memory.");
    }

    impl fmt::Debug for Handles {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Handles").finish_non_exhaustive()
        }
    }
}
