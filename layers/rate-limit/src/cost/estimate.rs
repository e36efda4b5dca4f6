//! How much of an answer is reserved before there is one.

use super::{Learner, Tokens};

/// How much of an answer is reserved before there is one.
///
/// Corrected when the answer has ended, and while it streams: in steps of 64 tokens, so that no stream is ever more than
/// a step beyond what was reserved for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Estimate {
    /// The most that the request allows: what is in flight is never more than what is reserved. A request that does not
    /// say is estimated as [learned](Self::Learned).
    #[default]
    Most,
    /// What 95 of 100 answers to this key by this model stay below, and no more than the request allows: more requests
    /// pass at once, and answers that are not streamed can end in debt.
    Learned,
}

impl Estimate {
    /// Tokens of a completion to reserve for a request of this key.
    pub(crate) fn completion(self, tokens: &Tokens, key: u64, learner: &Learner) -> u64 {
        match (self, tokens.max_completion) {
            (Self::Most, Some(most)) => most,
            (Self::Most | Self::Learned, most) => {
                learner.expect(key, &tokens.model, most.unwrap_or(u64::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_is_reserved_or_what_was_learned_and_never_more_than_is_allowed() {
        let learner = Learner::default();
        for _ in 0..20 {
            learner.learn(1, "m", 100);
        }
        let unsaid = Tokens::new("m", 5);
        for (estimate, tokens, reserved) in [
            (Estimate::Most, unsaid.clone().max_completion(4000), 4000),
            (Estimate::Most, unsaid.clone().max_completion(50), 50),
            (Estimate::Most, unsaid.clone(), 111),
            (Estimate::Learned, unsaid.clone().max_completion(4000), 111),
            (Estimate::Learned, unsaid.clone().max_completion(50), 50),
            (Estimate::Learned, unsaid, 111),
            (Estimate::Learned, Tokens::new("unknown", 5), 256),
        ] {
            assert_eq!(
                estimate.completion(&tokens, 1, &learner),
                reserved,
                "{estimate:?} {tokens:?}"
            );
        }
    }
}
