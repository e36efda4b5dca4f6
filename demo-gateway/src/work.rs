//! How much work a request is expected to be, in tokens.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use palisade::{cost::Cost, rate_limit::Tokens};

use crate::exchange::Operation;

/// What an answer is expected to have before there was one, as the rate limit expects.
const UNKNOWN: f64 = 256.0;

/// How much one answer counts among those before it.
const SHARE: f64 = 1.0 / 16.0;

/// How long answers usually are, so that a request that allows for a long one is not taken for the work of it.
#[derive(Debug)]
pub(crate) struct Lengths([AtomicU64; Operation::ALL.len()]);

impl Default for Lengths {
    fn default() -> Self {
        Self(Operation::ALL.map(|_| AtomicU64::new(UNKNOWN.to_bits())))
    }
}

impl Lengths {
    /// An answer has ended well.
    pub(crate) fn learn(&self, operation: Operation, completion: u64) {
        let usual = &self.0[operation as usize];
        // Of two at the same time one may be lost.
        let before = f64::from_bits(usual.load(Relaxed));
        let after = before + SHARE * (completion as f64 - before);
        usual.store(after.to_bits(), Relaxed);
    }

    /// The tokens of the prompt, and as many as an answer usually has or the request allows, if that is less.
    pub(crate) fn cost(&self, operation: Operation, tokens: &Tokens) -> Option<Cost> {
        let usual = f64::from_bits(self.0[operation as usize].load(Relaxed));
        let most = tokens.max_completion.map_or(f64::INFINITY, |it| it as f64);
        Cost::new(tokens.prompt as f64 + usual.min(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_costs_its_prompt_and_a_usual_answer_but_no_more_than_it_allows() {
        let lengths = Lengths::default();
        let cost = |operation, tokens: Tokens| lengths.cost(operation, &tokens).map(Cost::get);
        let prompt = || Tokens::new("m", 100);
        assert_eq!(cost(Operation::Chat, prompt()), Some(356.0));
        assert_eq!(
            cost(Operation::Chat, prompt().max_completion(50)),
            Some(150.0)
        );
        for _ in 0..200 {
            lengths.learn(Operation::Chat, 20);
        }
        let learned = cost(Operation::Chat, prompt().max_completion(4000)).unwrap();
        assert!((119.0..121.0).contains(&learned), "{learned}");
        // Each kind of request has answers of its own.
        assert_eq!(cost(Operation::Completion, prompt()), Some(356.0));
        assert_eq!(
            cost(Operation::Embeddings, prompt().max_completion(0)),
            Some(100.0)
        );
        let nothing = Tokens::new("m", 0).max_completion(0);
        assert_eq!(cost(Operation::Embeddings, nothing), None);
    }
}
