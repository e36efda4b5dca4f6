//! The gate, and what one request took.

use std::{fmt, mem, sync::Arc, time::Duration};

use http::HeaderMap;
use palisade_core::{
    classify::Verdict,
    gate::{Admit, Gate},
    head::RequestHead,
    key::ExtractKey,
    reject::Rejected,
    settle::{End, Settle},
    spare::Spare,
    time,
};
use tokio::time::Instant;

#[cfg(any(test, feature = "redis"))]
use crate::central::Central;
use crate::{
    handle::Handle,
    headers::Headers,
    limits::{Config, Limits, Order},
    meter::Meter,
    quota::Quota,
    rule::{Rule, RuleError},
};

/// Refuses requests for which a rule has no room.
///
/// Clones share their counts. A setter begins new ones: set first, then clone and ask for handles.
///
/// ```
/// use palisade_core::{gate::gates, key};
/// use palisade_rate_limit::{Quota, RateLimit};
///
/// let limit = RateLimit::new(Quota::per_second(50)).key(key::peer());
/// let layer = gates((limit.clone(), ()));
/// assert_eq!(limit.handle().snapshot().rules[0].keys, 0);
/// # let _ = layer;
/// ```
#[derive(Clone)]
pub struct RateLimit {
    limits: Arc<Limits>,
}

impl RateLimit {
    /// One quota for all requests, as a token bucket, in a rule named `default`.
    pub fn new(quota: Quota) -> Self {
        let rule = Rule::new("default", Meter::within_reach(quota));
        Self::of([rule]).expect("one rule with a quota within reach")
    }

    /// Several quotas, all of which a request needs room in; it takes from all of them or from none.
    ///
    /// # Errors
    ///
    /// If a name is no name or is there twice, there are more than [`Rule::MOST`], or a quota cannot be kept.
    pub fn rules(rules: impl IntoIterator<Item = Rule>) -> Result<Self, RuleError> {
        Self::of(rules)
    }

    /// Counts each key apart, for every rule that does not say whose it is. Requests without a key share one quota.
    #[must_use]
    pub fn key(self, key: impl ExtractKey) -> Self {
        let key: Arc<dyn ExtractKey> = Arc::new(key);
        self.renew(|config| {
            for rule in &mut config.rules {
                rule.key.get_or_insert_with(|| key.clone());
            }
        })
    }

    /// Tells callers how they stand; as it is, in [`Headers::Standard`].
    #[must_use]
    pub fn headers(self, headers: Headers) -> Self {
        self.renew(|config| config.headers = headers)
    }

    /// The `layer` in metrics; as it is, `rate_limit`.
    #[must_use]
    pub fn named(self, name: impl AsRef<str>) -> Self {
        self.renew(|config| config.name = name.as_ref().into())
    }

    /// Lets requests that are over their quota wait, for at most this long and no longer than their
    /// [`Deadline`](palisade_core::deadline::Deadline), and at most `requests` at a time. They move on in the order
    /// they came; who would wait longer is refused at once, and who leaves has taken nothing.
    #[must_use]
    pub fn wait_up_to(self, longest: Duration, requests: usize) -> Self {
        self.renew(|config| config.pacing = Some((longest, requests)))
    }

    /// Counts in a store that other processes share, except for rules that are [local](Rule::local).
    ///
    /// # Errors
    ///
    /// If a window is not a whole number of microseconds.
    #[cfg(feature = "redis")]
    pub fn store(self, store: &crate::redis::RedisStore) -> Result<Self, RuleError> {
        self.central(Arc::new(store.clone()))
    }

    #[cfg(any(test, feature = "redis"))]
    pub(crate) fn central(self, central: Arc<dyn Central>) -> Result<Self, RuleError> {
        let mut config = self.limits.config();
        config.central = Some(central);
        let limits = Arc::new(Limits::new(config, time::now())?);
        Ok(Self { limits })
    }

    /// Looks at the counts and resets them, while requests come in.
    pub fn handle(&self) -> Handle {
        Handle::new(self.limits.clone())
    }

    fn of(rules: impl IntoIterator<Item = Rule>) -> Result<Self, RuleError> {
        let config = Config {
            rules: rules.into_iter().collect(),
            headers: Headers::default(),
            name: "rate_limit".into(),
            pacing: None,
            central: None,
        };
        let limits = Arc::new(Limits::new(config, time::now())?);
        Ok(Self { limits })
    }

    fn renew(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.limits.config();
        change(&mut config);
        let limits = Limits::new(config, time::now()).expect("names and quotas are as before");
        Self {
            limits: Arc::new(limits),
        }
    }
}

impl Gate for RateLimit {
    type Guard = Reservation;

    #[inline]
    fn admit(&self, head: &RequestHead<'_>, now: Instant) -> Admit<Reservation> {
        self.limits.admit(head, now)
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = self.limits.limits.iter().map(|limit| &limit.rule);
        f.debug_list().entries(rules).finish()
    }
}

/// What one request took, until it has ended. Dropped without a verdict, it keeps all but places in flight.
pub struct Reservation {
    /// `None` if there is nothing to say and nothing to give back.
    kept: Option<Kept>,
    /// Not before all rules have said yes: dropped until then, it gives all back.
    decided: bool,
}

/// What is to be said of an order, or given back.
struct Kept {
    limits: Arc<Limits>,
    order: Spare<Order>,
}

impl Kept {
    fn new(limits: Arc<Limits>, order: Order) -> Self {
        let mut spare = Spare::<Order>::new();
        *spare.get() = order;
        let order = spare;
        Self { limits, order }
    }
}

impl Reservation {
    /// Of which nobody has to hear any more.
    #[inline]
    pub(crate) fn done() -> Self {
        Self {
            kept: None,
            decided: true,
        }
    }

    #[inline]
    pub(crate) fn new(limits: Arc<Limits>, order: Order) -> Self {
        Self {
            kept: Some(Kept::new(limits, order)),
            decided: true,
        }
    }

    /// Holds what was taken so far while the rest is asked for.
    pub(crate) fn held(limits: Arc<Limits>, order: Order) -> Self {
        Self {
            kept: Some(Kept::new(limits, order)),
            decided: false,
        }
    }

    pub(crate) fn decided(mut self) -> Self {
        self.decided = true;
        self
    }

    /// `None` if nobody has to hear of it.
    #[inline]
    pub(crate) fn order(&mut self) -> Option<&mut Order> {
        self.kept.as_mut().map(|kept| kept.order.get())
    }

    /// Gives back what is held, and keeps what is known of the request.
    pub(crate) fn give_back(mut self) -> Order {
        let Some(Kept { limits, mut order }) = self.kept.take() else {
            return Order::default();
        };
        limits.cancel_here(&order);
        mem::take(order.get())
    }
}

impl Settle for Reservation {
    const DECORATES: bool = true;
    const FOLLOWS: bool = true;
    const AWAITS_DATA: bool = false;

    fn decorate(&mut self, headers: &mut HeaderMap) {
        if let Some(Kept { limits, order }) = &self.kept
            && limits.headers == Headers::Standard
        {
            limits.write(order, None, headers, time::now());
        }
    }

    #[inline]
    fn progress(&mut self, streamed: u64, now: Instant) -> Result<(), Rejected> {
        match &mut self.kept {
            Some(Kept { limits, order }) => limits.progress(order.get(), streamed, now),
            None => Ok(()),
        }
    }

    #[inline]
    fn settle_untimed(&mut self, _: Verdict) -> bool {
        let kept = self.kept.as_ref();
        kept.is_none_or(|kept| !kept.limits.settles())
    }

    #[inline]
    fn settle(&mut self, end: &End, now: Instant) {
        if let Some(Kept { limits, order }) = &mut self.kept {
            limits.settle(order.get(), end, now);
        }
    }
}

impl Drop for Reservation {
    #[inline]
    fn drop(&mut self) {
        if let Some(Kept { limits, order }) = &self.kept {
            if self.decided {
                limits.end(order);
            } else {
                limits.cancel(order);
            }
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").finish_non_exhaustive()
    }
}
