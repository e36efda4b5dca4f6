//! Attempts beyond the first, as a share of requests.

mod account;
mod keyed;
mod shared;

use std::{fmt, sync::Arc};

use palisade_core::{cost::Cost, head::RequestHead, key::ExtractKey, time};

use self::{account::TOKEN, keyed::Keyed, shared::Shared};

/// How many attempts beyond the first a destination is given, as a share of requests.
///
/// One per destination, shared by clones: whatever sends more than the caller did, retries and hedges alike, takes from
/// the same budget. Each request pays its share in and each further attempt takes one out, so that under a total
/// outage a server gets `1 + share` times its load and not a multiple of it. It starts with a reserve of 100; up to
/// that, or the income of ten seconds, is saved. A floor of ten in ten seconds keeps quiet services going. What was taken
/// for an attempt whose caller leaves before it is made is given back.
///
/// ```
/// use palisade_retry::Budget;
///
/// let budget = Budget::percent(20).reserve(1);
/// assert!(budget.withdraw(1));
/// assert!(!budget.withdraw(1));
/// for _ in 0..10 {
///     budget.deposit();
/// }
/// assert!(budget.withdraw(2));
/// assert_eq!(budget.left(), Some(0));
/// ```
#[derive(Clone)]
pub struct Budget(Kind);

#[derive(Clone)]
enum Kind {
    Unlimited,
    One(Arc<Shared>),
    PerKey(Arc<Keyed>),
}

/// What a budget was made with.
#[derive(Clone, Copy, Debug)]
struct Terms {
    /// What one ordinary request pays in, in thousandths of an attempt.
    share: u64,
    reserve: u32,
    /// The cost of an ordinary request; all are without.
    ordinary: Option<Cost>,
}

impl Terms {
    /// The size of a request: thousandths of an ordinary one.
    fn size(&self, head: &RequestHead<'_>) -> u64 {
        /// A million ordinary requests: nothing that is added up overflows.
        const MOST: f64 = 1e6 * TOKEN as f64;

        let Some(ordinary) = self.ordinary else {
            return TOKEN;
        };
        let Some(cost) = head.extensions.get::<Cost>() else {
            return TOKEN;
        };
        let size = cost.get() / ordinary.get() * TOKEN as f64;
        size.clamp(1.0, MOST) as u64
    }
}

impl Budget {
    /// Each request pays for this many hundredths of an attempt.
    pub fn percent(percent: u32) -> Self {
        Self::new(Terms {
            share: u64::from(percent) * TOKEN / 100,
            reserve: 100,
            ordinary: None,
        })
    }

    /// As much as anybody wants: for tests, and where something further in has a budget.
    pub fn unlimited() -> Self {
        Self(Kind::Unlimited)
    }

    /// A budget of its own that starts with this many attempts, and always can save them.
    #[must_use]
    pub fn reserve(self, attempts: u32) -> Self {
        self.with(|terms| terms.reserve = attempts)
    }

    /// A budget of its own in which requests count by their [`Cost`]: tokens, or money.
    ///
    /// One of twice the cost of an `ordinary` request pays in twice as much, and its attempts take out twice as much. One
    /// that does not say what it costs is ordinary. Reserve, floor and what is [left](Self::left) are in attempts of
    /// ordinary requests.
    ///
    /// ```
    /// use http::Request;
    /// use palisade_core::{cost::Cost, head::RequestHead};
    /// use palisade_retry::Budget;
    ///
    /// let tokens = |tokens| Cost::new(tokens).expect("above zero");
    /// let budget = Budget::percent(20).reserve(10).weighted(tokens(1_000.0));
    /// let mut long = Request::new(());
    /// long.extensions_mut().insert(tokens(6_000.0));
    /// let long = RequestHead::from(&long);
    /// assert!(budget.withdraw_for(&long, 1));
    /// assert!(!budget.withdraw_for(&long, 1));
    /// assert_eq!(budget.left(), Some(4));
    /// ```
    #[must_use]
    pub fn weighted(self, ordinary: Cost) -> Self {
        self.with(|terms| terms.ordinary = Some(ordinary))
    }

    /// A budget like this one for each destination, where one layer sends to several: by host, by model, by a function
    /// of the head. What has no key shares one more.
    ///
    /// Up to 1024 of them; [`keys`](Self::keys) changes that. When there is no more room, those that nobody has used for
    /// a while and that are full again are forgotten, which gives nobody anything; if there are none, new keys use the
    /// one of requests without a key.
    ///
    /// ```
    /// use http::Request;
    /// use palisade_core::{head::RequestHead, key};
    /// use palisade_retry::Budget;
    ///
    /// let budget = Budget::percent(20).reserve(1).per(key::header("x-model"));
    /// let to = |model| Request::builder().header("x-model", model).body(());
    /// let (small, large) = (to("small")?, to("large")?);
    /// assert!(budget.withdraw_for(&RequestHead::from(&small), 1));
    /// assert!(!budget.withdraw_for(&RequestHead::from(&small), 1));
    /// assert!(budget.withdraw_for(&RequestHead::from(&large), 1));
    /// # Ok::<(), http::Error>(())
    /// ```
    #[must_use]
    pub fn per(self, key: impl ExtractKey) -> Self {
        const KEYS: usize = 1024;
        match self.terms() {
            Some(terms) => Self(Kind::PerKey(Arc::new(Keyed::new(
                terms,
                Arc::new(key),
                KEYS,
            )))),
            None => self,
        }
    }

    /// Keeps budgets of so many keys at a time; without [`per`](Self::per), it changes nothing.
    #[must_use]
    pub fn keys(self, most: usize) -> Self {
        match &self.0 {
            Kind::PerKey(keyed) => Self(Kind::PerKey(Arc::new(keyed.like(keyed.terms(), most)))),
            _ => self,
        }
    }

    fn new(terms: Terms) -> Self {
        Self(Kind::One(Arc::new(Shared::new(terms))))
    }

    fn terms(&self) -> Option<Terms> {
        match &self.0 {
            Kind::Unlimited => None,
            Kind::One(shared) => Some(shared.terms),
            Kind::PerKey(keyed) => Some(keyed.terms()),
        }
    }

    fn with(self, change: impl FnOnce(&mut Terms)) -> Self {
        let Some(mut terms) = self.terms() else {
            return self;
        };
        change(&mut terms);
        match &self.0 {
            Kind::PerKey(keyed) => Self(Kind::PerKey(Arc::new(keyed.like(terms, keyed.most())))),
            _ => Self::new(terms),
        }
    }

    /// Pays in for an ordinary request.
    pub fn deposit(&self) {
        if let Some(shared) = self.common() {
            shared.pay(TOKEN, time::now);
        }
    }

    /// Takes out this many attempts of an ordinary request in one step, unless there are fewer.
    pub fn withdraw(&self, attempts: u32) -> bool {
        let size = u64::from(attempts) * TOKEN;
        self.common()
            .is_none_or(|shared| shared.take(size, time::now).is_ok())
    }

    /// Pays in for this request.
    pub fn deposit_for(&self, head: &RequestHead<'_>) {
        self.pay_for(head);
    }

    /// Takes out this many attempts of this request in one step, unless there are fewer.
    pub fn withdraw_for(&self, head: &RequestHead<'_>, attempts: u32) -> bool {
        let mut purse = self.purse(head);
        let taken = purse.take(attempts).is_ok();
        purse.spend();
        taken
    }

    /// How many attempts of ordinary requests there are for now, of several budgets in the emptiest; `None` without a
    /// limit.
    pub fn left(&self) -> Option<u32> {
        let left = match &self.0 {
            Kind::Unlimited => return None,
            Kind::One(shared) => shared.balance(time::now),
            Kind::PerKey(keyed) => keyed.least(),
        };
        Some((left / TOKEN).try_into().unwrap_or(u32::MAX))
    }

    /// Pays in for a request: what is there then, in attempts, if it was looked up.
    #[inline]
    pub(crate) fn pay_for(&self, head: &RequestHead<'_>) -> Option<f64> {
        match &self.0 {
            Kind::Unlimited => None,
            Kind::One(shared) => {
                let left = shared.pay(shared.terms.size(head), time::now)?;
                Some(in_attempts(left))
            }
            Kind::PerKey(keyed) => {
                let shared = keyed.of(head);
                shared.pay(shared.terms.size(head), time::now);
                None
            }
        }
    }

    /// What attempts of this request are paid from.
    pub(crate) fn purse(&self, head: &RequestHead<'_>) -> Purse {
        let (shared, only) = match &self.0 {
            Kind::Unlimited => (None, false),
            Kind::One(shared) => (Some(shared.clone()), true),
            Kind::PerKey(keyed) => (Some(keyed.of(head)), false),
        };
        let size = shared.as_ref().map_or(0, |shared| shared.terms.size(head));
        Purse {
            shared,
            only,
            size,
            held: 0,
        }
    }

    fn common(&self) -> Option<&Shared> {
        match &self.0 {
            Kind::Unlimited => None,
            Kind::One(shared) => Some(shared),
            Kind::PerKey(keyed) => Some(keyed.common()),
        }
    }
}

impl Default for Budget {
    /// A fifth: [`Budget::percent(20)`](Budget::percent).
    fn default() -> Self {
        Self::percent(20)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("terms", &self.terms())
            .field("left", &self.left())
            .finish_non_exhaustive()
    }
}

/// What the attempts of one request are paid from. Dropped, it gives back what was taken for one that has not begun.
#[derive(Default)]
pub(crate) struct Purse {
    shared: Option<Arc<Shared>>,
    /// Whether it is the only one of its budget.
    only: bool,
    size: u64,
    /// Taken out, and not spent yet.
    held: u64,
}

impl Purse {
    /// Pays in for the request: how many attempts are left, if that was looked up.
    pub(crate) fn pay(&self) -> Option<f64> {
        let left = self.shared.as_ref()?.pay(self.size, time::now)?;
        self.only.then(|| in_attempts(left))
    }

    /// Takes out so many attempts of the request, or nothing if there are fewer. Either way with how many are left of
    /// the budget, when it has one balance and not many.
    pub(crate) fn take(&mut self, attempts: u32) -> Result<Option<f64>, Option<f64>> {
        let Some(shared) = &self.shared else {
            return Ok(None);
        };
        let told = |left| self.only.then(|| in_attempts(left));
        let amount = self.size.saturating_mul(attempts.into());
        let left = shared.take(amount, time::now).map_err(told)?;
        self.held = self.held.saturating_add(amount);
        Ok(told(left))
    }

    /// The attempt that was paid for begins.
    pub(crate) fn spend(&mut self) {
        self.held = 0;
    }
}

impl Drop for Purse {
    fn drop(&mut self) {
        if self.held > 0
            && let Some(shared) = &self.shared
        {
            shared.give_back(self.held, time::now);
        }
    }
}

fn in_attempts(balance: u64) -> f64 {
    balance as f64 / TOKEN as f64
}

#[cfg(all(test, loom))]
mod interleavings;
#[cfg(not(loom))]
#[cfg(test)]
mod tests;
