//! What a rule counts to, by tier.

use std::sync::{Arc, atomic::AtomicU64};

use crate::{
    central::Course,
    meter::Meter,
    quota::{Quota, QuotaError},
    rule::{Rule, Strategy},
};

/// The quotas of one rule and what counts them. Replaced as a whole when they are changed while requests come in.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// The first is that of everybody else.
    tiers: Box<[Tier]>,
}

/// The quota of some keys.
#[derive(Debug)]
pub(crate) struct Tier {
    /// None for everybody else and for exceptions.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) quota: Quota,
    pub(crate) meter: Meter,
}

/// The limit that an adaptive rule follows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Following<'a> {
    pub(crate) course: &'a Course,
    pub(crate) limit: &'a Arc<AtomicU64>,
}

impl Numbers {
    pub(crate) fn new(tiers: impl IntoIterator<Item = Tier>) -> Self {
        let tiers = tiers.into_iter().collect();
        Self { tiers }
    }

    /// Those of a rule; one that is adaptive follows a limit.
    pub(crate) fn of(rule: &Rule, following: Option<Following<'_>>) -> Result<Self, QuotaError> {
        let everybody = (None, rule.quota);
        let tiers = rule.tiers.iter();
        let tiers = tiers.map(|tier| (Some(tier.name.clone()), tier.quota));
        let exceptions = rule.exceptions.iter().map(|(_, quota)| (None, *quota));
        let all = std::iter::once(everybody).chain(tiers).chain(exceptions);
        let tiers = all.map(|(name, quota)| Tier::new(name, quota, rule.strategy, following));
        let tiers = tiers.collect::<Result<_, _>>()?;
        Ok(Self { tiers })
    }

    /// The same tiers with other quotas, in their order.
    pub(crate) fn with(
        &self,
        strategy: Strategy,
        following: Option<Following<'_>>,
        quotas: impl Iterator<Item = Quota>,
    ) -> Result<Self, QuotaError> {
        let tiers = self.tiers.iter().zip(quotas);
        let tiers =
            tiers.map(|(tier, quota)| Tier::new(tier.name.clone(), quota, strategy, following));
        let tiers = tiers.collect::<Result<_, _>>()?;
        Ok(Self { tiers })
    }

    /// Whether a store with a clock of microseconds can count by them.
    pub(crate) fn check_shared(&self) -> Result<(), QuotaError> {
        let odd = |tier: &Tier| !tier.quota.nanos().is_multiple_of(1000);
        if self.tiers.iter().any(odd) {
            return Err(QuotaError::OddWindow);
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn tier(&self, index: u8) -> &Tier {
        // Of a payer that was found under numbers with more tiers there is none: everybody else's.
        self.tiers.get(usize::from(index)).unwrap_or(&self.tiers[0])
    }

    #[inline]
    pub(crate) fn meter(&self, index: u8) -> &Meter {
        &self.tier(index).meter
    }

    pub(crate) fn tiers(&self) -> &[Tier] {
        &self.tiers
    }
}

impl Tier {
    fn new(
        name: Option<Arc<str>>,
        quota: Quota,
        strategy: Strategy,
        following: Option<Following<'_>>,
    ) -> Result<Self, QuotaError> {
        let meter = match following {
            Some(Following { course, limit }) => Meter::adaptive(&quota, course, limit.clone())?,
            None => Meter::new(strategy, &quota)?,
        };
        Ok(Self { name, quota, meter })
    }
}
