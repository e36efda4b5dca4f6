//! Which quota of a rule counts a key.

use std::{collections::HashMap, fmt};

use palisade_core::key::Key;

use crate::rule::{Rule, TierRule};

/// Finds the tier of a key: 0 is that of everybody else, then come tiers, then exceptions.
pub(super) struct Tiers {
    tiers: Vec<TierRule>,
    exceptions: HashMap<Key<'static>, u8>,
}

impl Tiers {
    /// Expects a checked rule, with fewer tiers than a byte counts.
    pub(super) fn new(rule: &Rule) -> Self {
        let after = rule.tiers.len() as u8 + 1;
        let exceptions = rule.exceptions.iter().zip(after..);
        Self {
            tiers: rule.tiers.clone(),
            exceptions: exceptions
                .map(|((key, _), tier)| (key.clone(), tier))
                .collect(),
        }
    }

    #[inline]
    pub(super) fn of(&self, key: &Key<'_>) -> u8 {
        if self.tiers.is_empty() && self.exceptions.is_empty() {
            return 0;
        }
        self.find(key)
    }

    fn find(&self, key: &Key<'_>) -> u8 {
        // A map of keys that live forever is also one of keys that do not.
        let exceptions: &HashMap<Key<'_>, u8> = &self.exceptions;
        if let Some(tier) = exceptions.get(key) {
            return *tier;
        }
        let tier = self.tiers.iter().position(|tier| (tier.has)(key));
        tier.map_or(0, |tier| tier as u8 + 1)
    }
}

impl fmt::Debug for Tiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tiers")
            .field("tiers", &self.tiers.len())
            .field("exceptions", &self.exceptions.len())
            .finish()
    }
}
