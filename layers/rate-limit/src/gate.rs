//! The gate, and what one request took.

use std::{fmt, sync::Arc};

use http::HeaderMap;
use palisade_core::{
    classify::Verdict,
    gate::{Admit, Gate},
    head::RequestHead,
    key::ExtractKey,
    settle::{End, Settle},
    time,
};
use tokio::time::Instant;

use crate::{
    handle::Handle,
    headers::Headers,
    limits::{Config, Limits, Taken},
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

    /// Looks at the counts and resets them, while requests come in.
    pub fn handle(&self) -> Handle {
        Handle::new(self.limits.clone())
    }

    fn of(rules: impl IntoIterator<Item = Rule>) -> Result<Self, RuleError> {
        let config = Config {
            rules: rules.into_iter().collect(),
            headers: Headers::default(),
            name: "rate_limit".into(),
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
        let mut taken = Taken::default();
        if let Err(rejected) = self.limits.take(head, now, &mut taken) {
            return Admit::Now(Err(rejected));
        }
        let limits = self.limits.needed_by_guards().then(|| self.limits.clone());
        Admit::Now(Ok(Reservation { limits, taken }))
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = self.limits.limits.iter().map(|limit| &limit.rule);
        f.debug_list().entries(rules).finish()
    }
}

/// What one request took. One that was never worked on gives it back to windows; a bucket keeps it.
pub struct Reservation {
    /// `None` if there is nothing to say and nothing to give back.
    limits: Option<Arc<Limits>>,
    taken: Taken,
}

impl Settle for Reservation {
    const DECORATES: bool = true;

    fn decorate(&mut self, headers: &mut HeaderMap) {
        if let Some(limits) = &self.limits
            && limits.headers == Headers::Standard
        {
            limits.decorate(&self.taken, headers, time::now());
        }
    }

    #[inline]
    fn settle(&mut self, end: &End, _: Instant) {
        if matches!(end.verdict, Verdict::Refused(_) | Verdict::Unsent)
            && let Some(limits) = &self.limits
        {
            limits.give_back(&self.taken);
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").finish_non_exhaustive()
    }
}
