//! What was leased and may be spent here.
//!
//! A lease that is asked for before the last one is used up leaves that one's rest as a spare, which ends when it
//! would have: `used` holds what is left of the lease in its lower half, the spare in its upper half, and in its highest
//! bit whether less was granted than was wanted. `at` is the end of the lease. While anything is left, `before` is the
//! end of the spare, or since when there is none; else when the next may be asked for: at once, unless the quota is
//! short.

use super::{Full, Next, Standing};

#[derive(Debug)]
pub(crate) struct Pool {
    /// What the quota holds: more can never be had at once.
    pub(super) holds: u64,
    /// A lease is low with a tenth of this.
    pub(super) batch: u32,
    pub(super) lasts: u64,
    /// From one question to the next.
    pub(super) at_least: u64,
}

/// Less was granted than was wanted.
const SHORT: u64 = 1 << 63;

/// Each half holds so many.
const MOST: u32 = u32::MAX >> 1;

#[derive(Clone, Copy)]
struct Left {
    lease: u32,
    spare: u32,
}

impl Pool {
    #[inline]
    fn left(next: &Next, now: u64) -> Left {
        Left {
            lease: if now < next.at { next.used as u32 } else { 0 },
            spare: if now < next.before {
                ((next.used & !SHORT) >> 32) as u32
            } else {
                0
            },
        }
    }

    /// When the next may be asked for.
    fn due(&self, next: &Next) -> u64 {
        match next.used {
            0 => next.before,
            used => {
                let again = if used & SHORT > 0 { self.at_least } else { 0 };
                next.at.saturating_sub(self.lasts) + again
            }
        }
    }

    #[inline]
    pub(super) fn take(&self, next: &Next, cost: u64, now: u64) -> Result<Next, Full> {
        if cost > self.holds {
            return Err(Full::Forever);
        }
        let left = Self::left(next, now);
        let (spare, lease) = (u64::from(left.spare), u64::from(left.lease));
        if cost > spare + lease {
            return Err(Full::For(self.due(next).saturating_sub(now)));
        }
        // The spare first, which ends first.
        let from_spare = cost.min(spare);
        let (spare, lease) = (spare - from_spare, lease - (cost - from_spare));
        let due = self.due(next);
        let left = spare << 32 | lease;
        Ok(match left {
            0 => Next {
                at: next.at,
                used: 0,
                before: due,
            },
            _ => Next {
                at: next.at,
                used: left | next.used & SHORT,
                before: if from_spare > 0 && spare == 0 {
                    now
                } else {
                    next.before
                },
            },
        })
    }

    /// Gives back what nobody has used to the lease that it is of, so that it ends when it would have: one that was there
    /// when it was taken, had no spare any more, and still has something left. Else it is lost.
    pub(super) fn give_back(next: &mut Next, cost: u64, taken_at: u64, now: u64) {
        let lease = u64::from(Self::left(next, now).lease);
        let has_spare = next.used & !SHORT > u64::from(u32::MAX);
        if lease > 0 && !has_spare && taken_at > next.before {
            let lease = lease.saturating_add(cost).min(MOST.into());
            next.used = lease | next.used & SHORT;
        }
    }

    /// Of `want`, so much was granted when it was asked for at `asked`, and there is no more for `wait`.
    pub(super) fn deposit(
        &self,
        next: &mut Next,
        (granted, want): (u64, u64),
        wait: u64,
        asked: u64,
        now: u64,
    ) {
        let left = Self::left(next, now);
        let rest = left.spare.saturating_add(left.lease).min(MOST);
        let until = match left {
            Left { spare: 0, .. } => next.at,
            // Of two rests the earlier end, so that nothing is spent late.
            _ => next.before.min(next.at),
        };
        let lease = u32::try_from(granted).unwrap_or(MOST).min(MOST);
        *next = match (lease, rest) {
            (0, 0) => Next {
                at: asked,
                used: 0,
                before: now.saturating_add(wait).max(asked + self.at_least),
            },
            // What is left is spent first, and asks no sooner than a lease would have that was short.
            (0, _) => Next {
                at: until,
                used: u64::from(rest) | SHORT,
                before: now,
            },
            _ => Next {
                at: asked.saturating_add(self.lasts),
                used: u64::from(rest) << 32
                    | u64::from(lease)
                    | if granted < want { SHORT } else { 0 },
                before: if rest > 0 { until } else { now },
            },
        };
    }

    /// Whether the next lease should be asked for.
    pub(super) fn is_low(&self, next: &Next, now: u64) -> bool {
        let left = Self::left(next, now);
        let left = u64::from(left.spare) + u64::from(left.lease);
        left * 10 <= u64::from(self.batch) && self.due(next) <= now
    }

    pub(super) fn standing(&self, next: &Next, now: u64) -> Standing {
        let left = Self::left(next, now);
        let remaining = u64::from(left.spare) + u64::from(left.lease);
        let wait = self.due(next).saturating_sub(now);
        Standing {
            remaining,
            retry_after: if remaining == 0 { wait } else { 0 },
            reset_after: if remaining == 0 { wait } else { 0 },
        }
    }

    pub(super) fn is_idle(next: &Next, now: u64) -> bool {
        next.at <= now && (next.used > 0 || next.before <= now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POOL: Pool = Pool {
        holds: 1000,
        batch: 40,
        lasts: 500,
        at_least: 20,
    };

    #[test]
    fn a_lease_is_spent_until_it_ends_and_the_next_is_asked_for_at_once() {
        let mut next = Next::default();
        assert_eq!(POOL.take(&next, 1, 7), Err(Full::For(0)));
        POOL.deposit(&mut next, (40, 40), 0, 10, 11);
        for left in (0..40).rev() {
            next = POOL.take(&next, 1, 12).unwrap();
            assert_eq!(POOL.standing(&next, 12).remaining, left);
            assert_eq!(POOL.is_low(&next, 12), left <= 4);
        }
        assert_eq!(POOL.take(&next, 1, 12), Err(Full::For(0)));
        assert_eq!(POOL.take(&next, 1001, 12), Err(Full::Forever));

        POOL.deposit(&mut next, (40, 40), 0, 20, 21);
        assert!(POOL.take(&next, 40, 519).is_ok());
        assert_eq!(POOL.take(&next, 1, 520), Err(Full::For(0)), "over");
    }

    #[test]
    fn a_quota_that_is_short_is_not_asked_more_often_than_once_in_a_while() {
        let mut next = Next::default();
        POOL.deposit(&mut next, (5, 40), 0, 10, 11);
        next = POOL.take(&next, 5, 12).unwrap();
        assert_eq!(POOL.take(&next, 1, 12), Err(Full::For(18)));
        assert_eq!(POOL.take(&next, 1, 30), Err(Full::For(0)));
        POOL.deposit(&mut next, (0, 40), 300, 30, 31);
        assert_eq!(POOL.take(&next, 1, 40), Err(Full::For(291)));
        assert_eq!(POOL.standing(&next, 40).retry_after, 291);
    }

    #[test]
    fn the_rest_of_a_lease_ends_when_it_would_have() {
        let mut next = Next::default();
        POOL.deposit(&mut next, (40, 40), 0, 0, 0);
        next = POOL.take(&next, 32, 1).unwrap();
        POOL.deposit(&mut next, (32, 32), 0, 400, 400);
        assert_eq!(POOL.standing(&next, 499).remaining, 40);
        assert_eq!(POOL.standing(&next, 500).remaining, 32);
        assert_eq!(POOL.standing(&next, 900).remaining, 0);
        assert!(!Pool::is_idle(&next, 899) && Pool::is_idle(&next, 900));
        // The rest goes first.
        let spent = POOL.take(&next, 10, 450).unwrap();
        assert_eq!(POOL.standing(&spent, 500).remaining, 30);
    }

    #[test]
    fn what_is_given_back_ends_with_the_lease_that_it_is_of() {
        let mut next = Next::default();
        POOL.deposit(&mut next, (40, 40), 0, 10, 11);
        next = POOL.take(&next, 30, 12).unwrap();
        Pool::give_back(&mut next, 30, 12, 13);
        assert_eq!(POOL.standing(&next, 509).remaining, 40);
        // Of the lease before, which has nothing left.
        next = POOL.take(&next, 40, 400).unwrap();
        POOL.deposit(&mut next, (40, 40), 0, 399, 401);
        Pool::give_back(&mut next, 40, 400, 402);
        assert_eq!(POOL.standing(&next, 402).remaining, 40);
        // Nobody knows of which, as long as there are two.
        let mut two = next;
        POOL.deposit(&mut two, (10, 10), 0, 402, 402);
        two = POOL.take(&two, 1, 403).unwrap();
        Pool::give_back(&mut two, 1, 403, 404);
        assert_eq!(POOL.standing(&two, 404).remaining, 49);
        two = POOL.take(&two, 40, 405).unwrap();
        two = POOL.take(&two, 5, 406).unwrap();
        Pool::give_back(&mut two, 5, 406, 407);
        assert_eq!(POOL.standing(&two, 407).remaining, 9);
        // Nor does anything come back to a lease that has nothing left, or is over.
        next = POOL.take(&next, 40, 403).unwrap();
        Pool::give_back(&mut next, 40, 403, 404);
        assert_eq!(POOL.standing(&next, 404).remaining, 0);
        POOL.deposit(&mut next, (40, 40), 0, 410, 411);
        next = POOL.take(&next, 1, 412).unwrap();
        Pool::give_back(&mut next, 1, 412, 910);
        assert_eq!(POOL.standing(&next, 910).remaining, 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Pass(u64),
        Take(u64),
        /// One of what was taken.
        GiveBack(usize),
        Lease(u64, u64),
    }

    /// What was taken: when, and how much of which lease.
    type Taken = (u64, Vec<(usize, u64)>);

    proptest! {
        #[test]
        fn no_more_is_spent_than_was_granted_within_the_lease(
            steps in proptest::collection::vec(prop_oneof![
                (0..200_u64).prop_map(Step::Pass),
                (0..2_u64).prop_map(Step::Pass),
                (1..20_u64).prop_map(Step::Take),
                (1..20_u64).prop_map(Step::Take),
                (0..9_usize).prop_map(Step::GiveBack),
                (0..40_u64, 0..50_u64).prop_map(|(granted, wait)| Step::Lease(granted, wait)),
            ], 0..80),
        ) {
            let (mut next, mut now) = (Next::default(), 0);
            // What is left of each lease, and its end.
            let mut leases: Vec<(u64, u64)> = Vec::new();
            let mut taken: Vec<Taken> = Vec::new();
            for step in steps {
                match step {
                    Step::Pass(nanos) => now += nanos,
                    Step::Take(cost) => if let Ok(took) = POOL.take(&next, cost, now) {
                        next = took;
                        let (mut missing, mut parts) = (cost, Vec::new());
                        for (index, (left, until)) in leases.iter_mut().enumerate() {
                            let part = if now < *until { missing.min(*left) } else { 0 };
                            *left -= part;
                            missing -= part;
                            parts.push((index, part));
                        }
                        prop_assert_eq!(missing, 0);
                        taken.push((now, parts));
                    },
                    Step::GiveBack(one) if one < taken.len() => {
                        let (at, parts) = taken.swap_remove(one);
                        let cost = parts.iter().map(|part| part.1).sum();
                        Pool::give_back(&mut next, cost, at, now);
                        parts.iter().for_each(|&(index, part)| leases[index].0 += part);
                    }
                    Step::GiveBack(_) => {}
                    Step::Lease(granted, wait) => {
                        POOL.deposit(&mut next, (granted, 40), wait, now, now);
                        leases.push((granted, now + POOL.lasts));
                    }
                }
                // Now, and at each end of a lease to come.
                for at in leases.iter().map(|lease| lease.1).chain([now]).filter(|&at| at >= now) {
                    let live = leases.iter().filter(|lease| at < lease.1);
                    let live: u64 = live.map(|lease| lease.0).sum();
                    prop_assert!(POOL.standing(&next, at).remaining <= live);
                }
            }
        }
    }
}
