//! What one request takes, and from where.

use std::{cell::RefCell, pin::Pin, sync::Arc, thread::LocalKey};

use palisade_core::spare::{Reuse, Shelf};

use super::{Limit, growth::Growing};
use crate::{
    central::{Answer, Plan, Subject},
    cost::Account,
    rule::Rule,
    store::Payer,
};

/// What a request takes from one rule.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Share {
    pub(crate) payer: Payer,
    /// Zero: the rule does not apply.
    pub(crate) cost: u64,
}

/// What one request takes from each rule, by place, and when. Rules are bits.
#[derive(Debug, Default)]
pub(crate) struct Order {
    pub(crate) shares: [Share; Rule::MOST],
    /// From what this process counts.
    pub(crate) here: u8,
    /// From what this process has leased.
    pub(crate) pools: u8,
    /// From the store.
    pub(crate) away: u8,
    /// Without room, and let through.
    pub(crate) passed: u8,
    /// Without room, and counted as such.
    pub(crate) refused: u8,
    /// Leases that were used up.
    pub(crate) dry: u8,
    /// Decided without the store that counts them.
    pub(crate) fallen: u8,
    /// Taken in this process.
    pub(crate) taken: u8,
    /// Taken in the store, as far as is known.
    pub(crate) taken_away: u8,
    pub(crate) at: u64,
    pub(crate) epoch: u64,
    extra: Option<Box<Extra>>,
}

/// What only some requests need.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    pub(crate) subjects: [Subject; Rule::MOST],
    /// Who pays in the store, also if there is no seat here.
    pub(crate) payers: [Option<Payer>; Rule::MOST],
    /// What the store was asked by: quotas may have been changed since.
    pub(crate) plans: [Option<Plan>; Rule::MOST],
    pub(crate) answers: [Option<Answer>; Rule::MOST],
    pub(crate) accounts: [Option<Account>; Rule::MOST],
    /// Of keys alone, for what is learned about them.
    pub(crate) keys: [u64; Rule::MOST],
    /// What was taken since, and when last, for what grows.
    pub(crate) grown: [(u64, u64); Rule::MOST],
    pub(crate) growing: [Option<Arc<Growing>>; Rule::MOST],
    /// Names a place in flight in the store.
    pub(crate) ticket: u64,
}

/// Too large to be handed around with the request that it is of.
impl Reuse for Order {
    fn shelf() -> &'static LocalKey<Shelf<Self>> {
        thread_local!(static SHELF: Shelf<Order> = const { RefCell::new(Vec::new()) });
        &SHELF
    }

    fn clear(mut self: Pin<&mut Self>) {
        *self = Self::default();
    }
}

impl Order {
    /// Of one rule, if it applies.
    pub(super) fn of(limit: &Limit, share: Share, at: u64) -> Self {
        let mut order = Self {
            at,
            ..Self::default()
        };
        if share.cost > 0 {
            order.add(limit, share);
        }
        order
    }

    /// Of one rule, which had room.
    pub(super) fn taken_here(limit: &Limit, share: Share, at: u64, epoch: u64) -> Self {
        let mut order = Self::of(limit, share, at);
        (order.taken, order.epoch) = (limit.bit(), epoch);
        order
    }

    #[inline]
    pub(super) fn add(&mut self, limit: &Limit, share: Share) {
        self.shares[limit.index] = share;
        self.here |= limit.bit();
    }

    /// The rules that apply.
    pub(crate) fn applying<'a>(
        &'a self,
        limits: &'a [Limit],
    ) -> impl Iterator<Item = (&'a Limit, &'a Share)> {
        let shares = limits.iter().zip(&self.shares);
        shares.filter(|(_, share)| share.cost > 0)
    }

    /// The rules that were taken from.
    pub(crate) fn taken<'a>(
        &'a self,
        limits: &'a [Limit],
    ) -> impl Iterator<Item = (&'a Limit, &'a Share)> {
        let taken = self.taken | self.taken_away;
        self.applying(limits)
            .filter(move |(limit, _)| taken & limit.bit() != 0)
    }

    /// Forgets what was found, and keeps what is known of the request.
    pub(super) fn begin_again(&mut self) {
        (self.passed, self.dry, self.taken, self.taken_away) = (0, 0, 0, 0);
        if let Some(extra) = &mut self.extra {
            (extra.answers, extra.plans) = Default::default();
            for (share, payer) in self.shares.iter_mut().zip(extra.payers) {
                share.payer = payer.unwrap_or(share.payer);
            }
        }
    }

    pub(crate) fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    pub(crate) fn get_extra(&mut self) -> Option<&mut Extra> {
        self.extra.as_deref_mut()
    }

    /// How much was taken since the request came, and when last.
    pub(crate) fn grown(&self, index: usize) -> (u64, u64) {
        let extra = self.extra.as_ref().map(|extra| extra.grown[index]);
        extra
            .filter(|(grown, _)| *grown > 0)
            .unwrap_or((0, self.at))
    }

    pub(crate) fn subject(&self, index: usize) -> Subject {
        let extra = self.extra.as_ref();
        extra.map_or(Subject::SHARED, |extra| extra.subjects[index])
    }

    pub(crate) fn ticket(&self) -> u64 {
        self.extra.as_ref().map_or(0, |extra| extra.ticket)
    }

    pub(crate) fn plan(&self, index: usize) -> Option<Plan> {
        self.extra.as_ref().and_then(|extra| extra.plans[index])
    }

    pub(crate) fn answer(&self, index: usize) -> Option<Answer> {
        self.extra.as_ref().and_then(|extra| extra.answers[index])
    }
}
