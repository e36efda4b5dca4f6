//! The mechanism of the budget.

use std::time::Duration;

use tokio::time::Instant;

/// One attempt, in the unit of the account.
pub(crate) const TOKEN: u64 = 1000;
/// How much of what came in may be saved up.
const WINDOW: Duration = Duration::from_secs(10);
/// What comes in per [`WINDOW`] without any request, so that quiet services can retry at all.
const FLOOR: u64 = 10 * TOKEN;

/// A balance that requests pay into and attempts beyond the first are paid from.
///
/// It starts at `reserve`, and up to `reserve` or the income of the last ten seconds can be saved.
#[derive(Debug)]
pub(crate) struct Account {
    balance: u64,
    reserve: u64,
    /// Up to when the floor has been paid in; unset before the first use.
    paid: Option<Instant>,
    income: Income,
}

impl Account {
    pub(crate) fn new(reserve: u64) -> Self {
        Self {
            balance: reserve,
            reserve,
            paid: None,
            income: Income::default(),
        }
    }

    pub(crate) fn deposit(&mut self, amount: u64, now: Instant) {
        self.income.add(amount, now);
        self.balance = self.balance.saturating_add(amount);
        self.pay_floor(now);
        let cap = self.income.per_window(now).saturating_add(FLOOR);
        self.balance = self.balance.min(cap.max(self.reserve));
    }

    /// Takes all of `amount` or nothing.
    pub(crate) fn withdraw(&mut self, amount: u64, now: Instant) -> bool {
        self.deposit(0, now);
        let Some(rest) = self.balance.checked_sub(amount) else {
            return false;
        };
        self.balance = rest;
        true
    }

    /// Puts back what was taken out; it is no income.
    pub(crate) fn give_back(&mut self, amount: u64, now: Instant) {
        self.balance = self.balance.saturating_add(amount);
        self.deposit(0, now);
    }

    pub(crate) fn balance(&mut self, now: Instant) -> u64 {
        self.deposit(0, now);
        self.balance
    }

    /// Whether a new account would be the same.
    pub(crate) fn is_idle(&mut self, now: Instant) -> bool {
        self.deposit(0, now);
        self.balance >= self.reserve && self.income.per_window(now) == 0
    }

    fn pay_floor(&mut self, now: Instant) {
        const NANOS: u64 = WINDOW.as_nanos() as u64 / FLOOR;

        let paid = *self.paid.get_or_insert(now);
        let elapsed = now.saturating_duration_since(paid).as_nanos();
        let units = u64::try_from(elapsed / u128::from(NANOS)).unwrap_or(u64::MAX);
        self.balance = self.balance.saturating_add(units);
        // What is less than a unit stays owed.
        let rest = Duration::from_nanos((elapsed % u128::from(NANOS)) as u64);
        self.paid = Some(paid.max(now - rest));
    }
}

/// What came in during the last [`WINDOW`]: all of this one, and of the one before as much as still overlaps.
#[derive(Debug, Default)]
struct Income {
    start: Option<Instant>,
    current: u64,
    previous: u64,
}

impl Income {
    fn add(&mut self, amount: u64, now: Instant) {
        self.roll(now);
        self.current = self.current.saturating_add(amount);
    }

    fn per_window(&self, now: Instant) -> u64 {
        let into = self
            .start
            .map_or(Duration::ZERO, |start| now.saturating_duration_since(start));
        let overlap = WINDOW.saturating_sub(into).as_millis();
        let previous = u128::from(self.previous) * overlap / WINDOW.as_millis();
        self.current
            .saturating_add(u64::try_from(previous).unwrap_or(u64::MAX))
    }

    fn roll(&mut self, now: Instant) {
        let start = *self.start.get_or_insert(now);
        let into = now.saturating_duration_since(start);
        if into < WINDOW {
            return;
        }
        let adjacent = into < 2 * WINDOW;
        self.previous = if adjacent { self.current } else { 0 };
        self.current = 0;
        self.start = Some(if adjacent { start + WINDOW } else { now });
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use palisade_core::time;
    use proptest::prelude::*;

    use super::*;

    const RESERVE: u64 = 100 * TOKEN;

    fn drain(account: &mut Account, now: Instant) -> u64 {
        let mut taken = 0;
        while account.withdraw(TOKEN, now) {
            taken += 1;
        }
        taken
    }

    #[test]
    fn it_starts_full_and_withdraws_all_or_nothing() {
        let (mut account, now) = (Account::new(3 * TOKEN), time::now());
        assert!(account.withdraw(2 * TOKEN, now));
        assert!(!account.withdraw(2 * TOKEN, now));
        assert_eq!(account.balance(now), TOKEN);
        assert!(account.withdraw(TOKEN, now));
        assert!(!account.withdraw(1, now));
    }

    #[test]
    fn without_requests_it_gets_ten_tokens_in_ten_seconds() {
        let (mut account, now) = (Account::new(RESERVE), time::now());
        assert_eq!(drain(&mut account, now), 100);
        let almost = now + Duration::from_secs(1) - Duration::from_nanos(1);
        assert!(!account.withdraw(TOKEN, almost));
        assert!(account.withdraw(TOKEN, now + Duration::from_secs(1)));
        assert_eq!(drain(&mut account, now + Duration::from_secs(11)), 10);
    }

    #[test]
    fn looking_often_does_not_lose_the_floor() {
        let (mut account, start) = (Account::new(0), time::now());
        for micros in (0..=1_000_000).step_by(333) {
            account.balance(start + Duration::from_micros(micros));
        }
        assert_eq!(account.balance(start + Duration::from_secs(1)), TOKEN);
    }

    #[test]
    fn a_quiet_service_saves_no_more_than_its_reserve() {
        let (mut account, now) = (Account::new(RESERVE), time::now());
        assert_eq!(
            account.balance(now + Duration::from_secs(1_000_000)),
            RESERVE
        );
        let mut small = Account::new(0);
        small.balance(now);
        assert_eq!(small.balance(now + Duration::from_secs(1000)), FLOOR);
    }

    #[test]
    fn a_busy_service_saves_the_income_of_ten_seconds() {
        let (mut account, mut now) = (Account::new(RESERVE), time::now());
        // 10,000 requests per second at a fifth of a token.
        for _ in 0..600 {
            now += Duration::from_millis(100);
            account.deposit(1000 * TOKEN / 5, now);
        }
        let saved = account.balance(now) / TOKEN;
        assert!((19_500..=20_510).contains(&saved), "{saved}");
        // A minute later the traffic is gone, and what it had saved.
        assert_eq!(account.balance(now + Duration::from_secs(60)), RESERVE);
    }

    #[test]
    fn a_clock_that_goes_back_pays_nothing_twice() {
        let (mut account, now) = (Account::new(0), time::now() + Duration::from_secs(60));
        account.balance(now);
        assert_eq!(account.balance(now + Duration::from_secs(1)), TOKEN);
        assert_eq!(account.balance(now), TOKEN);
        assert_eq!(account.balance(now + Duration::from_secs(1)), TOKEN);
    }

    proptest! {
        /// Against a list of everything that ever came in.
        #[test]
        fn what_goes_out_has_come_in(
            steps in proptest::collection::vec((0_u64..3000, 0_u64..5000, 0_u64..4), 1..300),
        ) {
            let (mut account, start) = (Account::new(RESERVE), time::now());
            account.balance(start);
            let (mut now, mut came, mut went) = (start, RESERVE, 0);
            for (millis, deposit, withdrawals) in steps {
                now += Duration::from_millis(millis);
                account.deposit(deposit, now);
                came += deposit;
                for _ in 0..withdrawals {
                    went += if account.withdraw(TOKEN, now) { TOKEN } else { 0 };
                }
                let floor = (now - start).as_millis() as u64 * FLOOR / WINDOW.as_millis() as u64;
                prop_assert!(went <= came + floor);
                prop_assert!(account.balance(now) <= came + floor - went);
            }
        }
    }
}
