//! What one request costs in one rule, from its reservation to its end.

use palisade_core::{
    classify::{Usage, Verdict},
    settle::End,
};

use super::{Tokens, Unit};

/// Tokens that a reservation grows by while an answer streams. Some seconds of a stream, so that a store is not asked for
/// each token, and little enough to refuse what comes after it.
pub(crate) const STEP: u64 = 64;

/// What one request costs in one rule.
#[derive(Debug)]
pub(crate) struct Account {
    unit: Unit,
    /// `None`: it pays when it has ended.
    tokens: Option<Tokens>,
    /// Tokens of the completion that were reserved, or asked for since.
    asked: u64,
    /// In the unit.
    reserved: u64,
}

impl Account {
    /// For a request that says what it asks for, if it does, and is expected to get a `completion` of so many tokens.
    pub(crate) fn new(unit: &Unit, tokens: Option<&Tokens>, completion: u64) -> Self {
        let reserved = match tokens {
            Some(tokens) => unit.amount(&tokens.model, tokens.prompt, completion),
            None => 1,
        };
        Self {
            unit: unit.clone(),
            tokens: tokens.cloned(),
            asked: completion,
            // Never nothing: a key that is in debt is refused also what is free.
            reserved: reserved.max(1),
        }
    }

    /// What is taken when the request comes, and has been taken since.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved
    }

    /// How much more to take now that so many pieces have come: a step ahead. So use stays below what is reserved and a
    /// step, also if a step was reserved to begin with and each taking is only heard of with the next data.
    ///
    /// Says each step once, whether or not it was [taken](Self::grown). Up to what the request allows there is nothing
    /// to add to it; a service that goes beyond is followed.
    pub(crate) fn progress(&mut self, streamed: u64) -> Option<u64> {
        let tokens = self.tokens.as_ref()?;
        let most = tokens.max_completion.filter(|&most| streamed <= most);
        let most = most.unwrap_or(u64::MAX);
        let ahead = streamed.saturating_add(STEP).min(most);
        let missing = ahead
            .checked_sub(self.asked)
            .filter(|&missing| missing > 0)?;
        let steps = missing.next_multiple_of(STEP);
        let next = self.asked.saturating_add(steps).min(most);
        let amount = |completion| {
            let amount = self.unit.amount(&tokens.model, tokens.prompt, completion);
            amount.max(1)
        };
        let more = amount(next) - amount(self.asked);
        self.asked = next;
        (more > 0).then_some(more)
    }

    /// So much more has been taken.
    pub(crate) fn grown(&mut self, more: u64) {
        self.reserved = self.reserved.saturating_add(more);
    }

    /// What the request has cost, however it ended; instead of what was [reserved](Self::reserved).
    ///
    /// | verdict | of known use | when nothing is known |
    /// |---|---|---|
    /// | `Success` | as told, or else as counted | the reservation stands |
    /// | `Canceled` | the larger of told and counted | the prompt; nothing if it was never sent |
    /// | `Failure`, `TimedOut`, `CallerFault`, `Refused` | the larger of told and counted | nothing |
    /// | `Overload`, `Unsent` | nothing | nothing |
    ///
    /// Counted is the prompt and a token for each piece: the service has read the prompt before it writes one. What an
    /// answer that broke off had told could be of an earlier moment than its last piece. Who leaves pays for the prompt,
    /// since the service reads it all the same; an answer that failed or came too late is not to be paid by who got
    /// nothing of it. A request that was never sent has an age of zero.
    ///
    /// Of requests as the unit, each is one, but those that never reached the service.
    pub(crate) fn actual(&self, end: &End) -> u64 {
        let used = self.used(end);
        match (end.verdict, used) {
            (Verdict::Unsent, _) => 0,
            (Verdict::Refused(_), None) => 0,
            _ if matches!(self.unit, Unit::Requests) => 1,
            (Verdict::Overload { .. }, _) => 0,
            (_, Some(used)) => self.amount(used),
            (Verdict::Success, None) => self.reserved,
            (Verdict::Canceled, None) if !end.age.is_zero() => self.amount(Usage {
                prompt: self.prompt(),
                completion: 0,
            }),
            (_, None) => 0,
        }
    }

    /// How long the answer was, if it came to its own end: what can be learned from.
    pub(crate) fn completion(&self, end: &End) -> Option<u64> {
        let used = self.used(end).filter(|_| end.verdict == Verdict::Success)?;
        Some(used.completion)
    }

    /// The model by its name, if the request says.
    pub(crate) fn model(&self) -> Option<&str> {
        self.tokens.as_ref().map(|tokens| &*tokens.model)
    }

    fn used(&self, end: &End) -> Option<Usage> {
        let counted = Usage {
            prompt: self.prompt(),
            completion: end.streamed,
        };
        let Some(mut used) = end.usage else {
            return (end.streamed > 0).then_some(counted);
        };
        // Some tell of the completion only.
        if used.prompt == 0 {
            used.prompt = counted.prompt;
        }
        if end.verdict != Verdict::Success {
            used.completion = used.completion.max(counted.completion);
        }
        Some(used)
    }

    fn prompt(&self) -> u64 {
        self.tokens.as_ref().map_or(0, |tokens| tokens.prompt)
    }

    fn amount(&self, used: Usage) -> u64 {
        // A model that nobody named costs what unknown ones do.
        let model = self.model().unwrap_or_default();
        self.unit.amount(model, used.prompt, used.completion)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use palisade_core::{reject::Reason, testing::CountingAllocator};
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::cost::{Estimate, Learner, Price, Prices};

    const PROMPT: u64 = 100;

    fn tokens() -> Tokens {
        Tokens::new("m", PROMPT)
    }

    fn money() -> Unit {
        let price = |prompt, completion| Price::per_million(prompt, completion).unwrap();
        let prices = Prices::of([("m", price(1.5, 6.0)), ("dear", price(30.0, 60.0))]);
        Unit::Money(Arc::new(prices.unwrap()))
    }

    fn told(prompt: u64, completion: u64) -> Option<Usage> {
        Some(Usage { prompt, completion })
    }

    fn end(verdict: Verdict, usage: Option<Usage>, streamed: u64) -> End {
        End {
            verdict,
            usage,
            streamed,
            age: Duration::from_millis(1),
        }
    }

    const REFUSED: Verdict = Verdict::Refused(Reason::RateLimited);
    const OVERLOAD: Verdict = Verdict::Overload { retry_after: None };

    #[test]
    fn the_table_of_verdicts_holds() {
        use Verdict::{CallerFault, Canceled, Failure, Success, TimedOut, Unsent};

        let account = Account::new(&Unit::Tokens, Some(&tokens()), 256);
        assert_eq!(account.reserved(), 356);
        // The verdict, then nothing known; told; counted; told less than counted; told more than counted.
        for (verdict, actual) in [
            (Success, [356, 130, 107, 130, 130]),
            (Canceled, [100, 130, 107, 150, 130]),
            (Failure, [0, 130, 107, 150, 130]),
            (TimedOut, [0, 130, 107, 150, 130]),
            (CallerFault, [0, 130, 107, 150, 130]),
            (REFUSED, [0, 130, 107, 150, 130]),
            (OVERLOAD, [0; 5]),
            (Unsent, [0; 5]),
        ] {
            let known = [
                (None, 0),
                (told(100, 30), 0),
                (None, 7),
                (told(100, 30), 50),
                (told(100, 30), 20),
            ];
            let found =
                known.map(|(usage, streamed)| account.actual(&end(verdict, usage, streamed)));
            assert_eq!(found, actual, "{verdict:?}");
        }
    }

    #[test]
    fn a_request_that_was_never_sent_pays_no_prompt() {
        let account = Account::new(&Unit::Tokens, Some(&tokens()), 256);
        assert_eq!(account.actual(&End::new(Verdict::Canceled)), 0);
    }

    #[test]
    fn a_prompt_that_is_not_told_is_the_one_that_was_asked() {
        let account = Account::new(&Unit::Tokens, Some(&tokens()), 256);
        assert_eq!(account.actual(&end(Verdict::Success, told(0, 30), 0)), 130);
    }

    #[test]
    fn a_request_that_does_not_say_takes_one_and_pays_when_it_has_ended() {
        for (unit, used) in [(Unit::Tokens, 130), (money(), 30 * 100 + 60 * 30)] {
            let mut account = Account::new(&unit, None, 256);
            assert_eq!(account.reserved(), 1);
            assert_eq!(account.progress(10_000), None);
            assert_eq!(
                account.actual(&end(Verdict::Success, told(100, 30), 30)),
                used
            );
            assert_eq!(account.actual(&end(Verdict::Success, None, 0)), 1);
            assert_eq!(account.actual(&end(Verdict::Canceled, None, 0)), 0);
        }
    }

    #[test]
    fn of_requests_each_is_one_but_those_that_never_reached_the_service() {
        let mut account = Account::new(&Unit::Requests, Some(&tokens()), 256);
        assert_eq!((account.reserved(), account.progress(10_000)), (1, None));
        for (verdict, streamed, one) in [
            (Verdict::Success, 0, 1),
            (Verdict::Failure, 0, 1),
            (OVERLOAD, 0, 1),
            (Verdict::TimedOut, 0, 1),
            (Verdict::CallerFault, 0, 1),
            (Verdict::Canceled, 0, 1),
            (REFUSED, 0, 0),
            (REFUSED, 1, 1),
            (Verdict::Unsent, 0, 0),
        ] {
            assert_eq!(
                account.actual(&end(verdict, None, streamed)),
                one,
                "{verdict:?}"
            );
        }
    }

    #[test]
    fn what_is_free_still_asks_its_rule() {
        let free = Prices::all(Price::per_million(0.0, 0.0).unwrap());
        let mut account = Account::new(&Unit::Money(Arc::new(free)), Some(&tokens()), 256);
        assert_eq!((account.reserved(), account.progress(10_000)), (1, None));
        assert_eq!(account.actual(&end(Verdict::Success, told(100, 30), 0)), 0);
        let mut nothing = Account::new(&Unit::Tokens, Some(&Tokens::new("m", 0)), 0);
        assert_eq!(nothing.reserved(), 1);
        let more = nothing.progress(1).unwrap();
        nothing.grown(more);
        assert_eq!(nothing.reserved(), 128);
    }

    #[test]
    fn a_reservation_grows_by_steps_when_it_is_a_step_from_its_end() {
        let mut account = Account::new(&Unit::Tokens, Some(&tokens()), 256);
        assert_eq!(account.progress(192), None);
        assert_eq!(account.progress(193), Some(64));
        assert_eq!(account.progress(193), None);
        assert_eq!(account.progress(256), None);
        assert_eq!(account.progress(257), Some(64));
        assert_eq!(account.progress(1000), Some(11 * 64));
        assert_eq!(account.reserved(), 356);
        account.grown(13 * 64);
        assert_eq!(account.reserved(), 356 + 13 * 64);
    }

    #[test]
    fn what_the_request_allows_is_reserved_once_and_what_goes_beyond_is_followed() {
        let tokens = tokens().max_completion(100);
        let mut account = Account::new(&Unit::Tokens, Some(&tokens), 100);
        assert_eq!(account.progress(100), None);
        assert_eq!(account.progress(101), Some(128));
        let mut account = Account::new(&Unit::Tokens, Some(&tokens), 50);
        assert_eq!(account.progress(1), Some(50));
        assert_eq!(account.progress(100), None);
    }

    #[test]
    fn only_answers_that_came_to_their_end_are_learned_from() {
        let account = Account::new(&Unit::Tokens, Some(&tokens()), 256);
        assert_eq!(account.model(), Some("m"));
        for (verdict, usage, streamed, completion) in [
            (Verdict::Success, told(100, 30), 20, Some(30)),
            (Verdict::Success, None, 20, Some(20)),
            (Verdict::Success, None, 0, None),
            (Verdict::Canceled, told(100, 30), 20, None),
            (Verdict::Failure, None, 20, None),
        ] {
            assert_eq!(
                account.completion(&end(verdict, usage, streamed)),
                completion
            );
        }
    }

    #[test]
    fn keeping_an_account_and_learning_from_it_allocate_nothing() {
        let (unit, learner) = (money(), Learner::default());
        let tokens = Tokens::new("m", PROMPT).max_completion(1000);
        learner.learn(1, "m", 5);
        let before = CountingAllocator::count();
        for _ in 0..1000 {
            let completion = Estimate::Learned.completion(&tokens, 1, &learner);
            let mut account = Account::new(&unit, Some(&tokens), completion);
            let more = account.progress(500).unwrap_or(0);
            account.grown(more);
            let end = end(Verdict::Success, told(PROMPT, 600), 590);
            assert_eq!(account.actual(&end), 3750);
            let completion = account.completion(&end).unwrap();
            learner.learn(1, account.model().unwrap(), completion);
        }
        assert_eq!(CountingAllocator::count() - before, 0);
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Come {
            money: bool,
            prompt: u64,
            completion: u64,
            most: Option<u64>,
        },
        Stream {
            which: usize,
            pieces: u64,
            taken: bool,
        },
        End {
            which: usize,
            verdict: Verdict,
            told: Option<u64>,
        },
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        use Verdict::{CallerFault, Canceled, Failure, Success, TimedOut, Unsent};

        prop::sample::select(vec![
            Success,
            Failure,
            OVERLOAD,
            CallerFault,
            TimedOut,
            Unsent,
            REFUSED,
            Canceled,
        ])
    }

    fn event() -> impl Strategy<Value = Event> {
        let most = prop::option::of(0u64..3000);
        prop_oneof![
            2 => (any::<bool>(), 0u64..5000, 0u64..3000, most).prop_map(
                |(money, prompt, completion, most)| Event::Come { money, prompt, completion, most }
            ),
            6 => (any::<usize>(), 1u64..200, any::<bool>()).prop_map(
                |(which, pieces, taken)| Event::Stream { which, pieces, taken }
            ),
            2 => (any::<usize>(), verdict(), prop::option::of(0u64..5000)).prop_map(
                |(which, verdict, told)| Event::End { which, verdict, told }
            ),
        ]
    }

    /// The table of `actual`, written the dumb way: tokens used, or `None` where the reservation stands.
    fn owed(verdict: Verdict, prompt: u64, told: Option<u64>, streamed: u64) -> Option<(u64, u64)> {
        match (verdict, told, streamed) {
            (Verdict::Unsent | Verdict::Overload { .. }, ..) => Some((0, 0)),
            (Verdict::Success, Some(told), _) => Some((prompt, told)),
            (_, Some(told), streamed) => Some((prompt, told.max(streamed))),
            (Verdict::Success, None, 0) => None,
            (Verdict::Canceled, None, 0) => Some((prompt, 0)),
            (_, None, 0) => Some((0, 0)),
            (_, None, streamed) => Some((prompt, streamed)),
        }
    }

    proptest! {
        #[test]
        fn what_is_settled_is_what_was_used_however_requests_overlap(events in vec(event(), 1..100)) {
            let mut under_way: Vec<(Account, u64, u64)> = vec![];
            // What the quotas of tokens and of money hold, and what they should.
            let (mut held, mut used) = ([0i128; 2], [0i128; 2]);
            for event in events {
                match event {
                    Event::Come { money: in_money, prompt, completion, most } => {
                        let unit = if in_money { money() } else { Unit::Tokens };
                        let tokens = Tokens { max_completion: most, ..Tokens::new("m", prompt) };
                        let account = Account::new(&unit, Some(&tokens), completion);
                        held[usize::from(in_money)] += i128::from(account.reserved());
                        under_way.push((account, prompt, 0));
                    }
                    Event::Stream { which, pieces, taken } if !under_way.is_empty() => {
                        let which = which % under_way.len();
                        let (account, _, streamed) = &mut under_way[which];
                        *streamed += pieces;
                        if let Some(more) = account.progress(*streamed)
                            && taken
                        {
                            held[usize::from(matches!(account.unit, Unit::Money(_)))] += i128::from(more);
                            account.grown(more);
                        }
                    }
                    Event::End { which, verdict, told: completion } if !under_way.is_empty() => {
                        let (account, prompt, streamed) = under_way.swap_remove(which % under_way.len());
                        let usage = completion.map(|completion| Usage { prompt, completion });
                        let actual = account.actual(&end(verdict, usage, streamed));
                        let unit = usize::from(matches!(account.unit, Unit::Money(_)));
                        held[unit] += i128::from(actual) - i128::from(account.reserved());
                        used[unit] += match owed(verdict, prompt, completion, streamed) {
                            Some((prompt, completion)) if unit == 0 => i128::from(prompt + completion),
                            Some((prompt, completion)) => i128::from((15 * prompt + 60 * completion).div_ceil(10)),
                            None => i128::from(account.reserved()),
                        };
                    }
                    Event::Stream { .. } | Event::End { .. } => {}
                }
            }
            for (account, ..) in &under_way {
                let unit = usize::from(matches!(account.unit, Unit::Money(_)));
                used[unit] += i128::from(account.reserved());
            }
            prop_assert_eq!(held, used);
        }

        #[test]
        fn use_never_runs_a_step_ahead_of_what_is_reserved_even_if_that_is_heard_of_late(
            completion in 0u64..300, frames in vec(1u64..STEP, 1..200), late in any::<bool>(),
        ) {
            let completion = if late { completion + STEP } else { completion };
            let mut account = Account::new(&Unit::Tokens, Some(&tokens()), completion);
            let (mut streamed, mut on_its_way, mut asks) = (0, 0, 0);
            for pieces in frames {
                streamed += pieces;
                let reserved = account.reserved() - PROMPT;
                prop_assert!(streamed < reserved + STEP, "{streamed} {reserved}");
                account.grown(on_its_way);
                on_its_way = account.progress(streamed).unwrap_or(0);
                asks += u64::from(on_its_way > 0);
                prop_assert!(on_its_way.is_multiple_of(STEP));
                if !late {
                    account.grown(std::mem::take(&mut on_its_way));
                    prop_assert!(streamed + PROMPT + STEP <= account.reserved());
                    let needed = (PROMPT + completion).max(PROMPT + streamed + 2 * STEP - 1);
                    prop_assert!(account.reserved() <= needed);
                }
            }
            // One ask for each step at most.
            prop_assert!(asks <= streamed.div_ceil(STEP) + 1);
        }

        #[test]
        fn growing_costs_what_reserving_it_all_at_once_would(
            prompt in 0u64..5000, completion in 0u64..2000, frames in vec(1u64..300, 1..50), in_money in any::<bool>(),
        ) {
            let unit = if in_money { money() } else { Unit::Tokens };
            let tokens = Tokens::new("m", prompt);
            let mut account = Account::new(&unit, Some(&tokens), completion);
            let mut streamed = 0;
            for pieces in frames {
                streamed += pieces;
                if let Some(more) = account.progress(streamed) {
                    account.grown(more);
                }
            }
            let at_once = Account::new(&unit, Some(&tokens), account.asked);
            prop_assert_eq!(account.reserved(), at_once.reserved());
        }
    }
}
