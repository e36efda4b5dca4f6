//! Answers that look like text: one word is one token.

use std::vec;

use crate::rng::Rng;

/// The rule of thumb of OpenAI's documentation for English.
pub(super) const BYTES_PER_TOKEN: usize = 4;

/// How many tokens a prompt has: one for four bytes.
pub(crate) fn prompt_tokens(prompt: &str) -> u32 {
    u32::try_from(prompt.len().div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX)
}

const WORDS: [&str; 64] = [
    "the", "a", "each", "one", "this", "that", "every", "another", "request", "answer", "token",
    "model", "queue", "stream", "prompt", "server", "client", "moment", "limit", "budget",
    "signal", "window", "result", "reader", "question", "number", "pattern", "system", "load",
    "harbour", "path", "layer", "waits", "returns", "begins", "ends", "holds", "carries",
    "follows", "keeps", "gives", "takes", "moves", "shows", "slowly", "again", "quickly", "often",
    "early", "later", "quietly", "well", "and", "before", "after", "with", "under", "for", "until",
    "over", "small", "steady", "clear", "open",
];

/// A text that is made, or read, token by token.
#[derive(Debug)]
pub(crate) enum Text {
    /// Made of common words in sentences of five to twelve.
    Made {
        rng: Rng,
        place: u32,
        sentence: u32,
        left: u32,
    },
    /// Given, in pieces of one word with the space behind it.
    Given(vec::IntoIter<String>),
}

impl Text {
    pub(crate) fn made(rng: Rng, tokens: u32) -> Self {
        Self::Made {
            rng,
            place: 0,
            sentence: 0,
            left: tokens,
        }
    }

    pub(crate) fn given(text: &str) -> Self {
        let pieces: Vec<String> = text.split_inclusive(' ').map(str::to_owned).collect();
        Self::Given(pieces.into_iter())
    }

    /// How many tokens are still to come.
    pub(crate) fn left(&self) -> u32 {
        match self {
            Self::Made { left, .. } => *left,
            Self::Given(pieces) => u32::try_from(pieces.len()).unwrap_or(u32::MAX),
        }
    }

    /// No more than this many tokens; whether that cut something off.
    pub(crate) fn cut(&mut self, tokens: u32) -> bool {
        if self.left() <= tokens {
            return false;
        }
        match self {
            Self::Made { left, .. } => *left = tokens,
            Self::Given(pieces) => {
                let kept: Vec<_> = pieces.by_ref().take(tokens as usize).collect();
                *pieces = kept.into_iter();
            }
        }
        true
    }

    /// Appends the next token, if there is one.
    pub(crate) fn next(&mut self, to: &mut String) -> bool {
        match self {
            Self::Given(pieces) => {
                let piece = pieces.next();
                to.push_str(piece.as_deref().unwrap_or_default());
                piece.is_some()
            }
            Self::Made { left: 0, .. } => false,
            Self::Made {
                rng,
                place,
                sentence,
                left,
            } => {
                let word = WORDS[rng.below(WORDS.len() as u32) as usize];
                if *place == *sentence {
                    // The very first word has no space before it.
                    if *sentence > 0 {
                        to.push(' ');
                    }
                    (*place, *sentence) = (0, 5 + rng.below(8));
                    let (first, rest) = word.split_at(1);
                    to.push_str(&first.to_ascii_uppercase());
                    to.push_str(rest);
                } else {
                    to.push(' ');
                    to.push_str(word);
                }
                *place += 1;
                *left -= 1;
                if *place == *sentence || *left == 0 {
                    to.push('.');
                }
                true
            }
        }
    }

    /// All that is left.
    pub(crate) fn all(mut self) -> String {
        let mut text = String::with_capacity(self.left().min(4096) as usize * 7);
        while self.next(&mut text) {}
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_text_has_sentences_and_as_many_words_as_asked_for() {
        let text = Text::made(Rng::of(1, 1), 40).all();
        assert_eq!(text.split(' ').count(), 40, "{text}");
        assert!(text.ends_with('.') && text.starts_with(|c: char| c.is_ascii_uppercase()));
        assert!(!text.contains("  ") && !text.contains(" ."), "{text}");
        assert_eq!(text, Text::made(Rng::of(1, 1), 40).all());
        assert_ne!(text, Text::made(Rng::of(1, 2), 40).all());
    }

    #[test]
    fn a_given_text_comes_back_whole_and_can_be_cut() {
        let given = "Guten Tag, \"Welt\"!\nNew  line";
        assert_eq!(Text::given(given).all(), given);
        let mut text = Text::given(given);
        assert_eq!(text.left(), 5);
        assert!(text.cut(2));
        assert!(!text.cut(2));
        assert_eq!(text.all(), "Guten Tag, ");
        assert_eq!(Text::given("").left(), 0);
    }

    #[test]
    fn a_cut_text_still_ends_and_no_tokens_are_no_text() {
        let mut text = Text::made(Rng::of(1, 1), 40);
        assert!(text.cut(3));
        assert_eq!(text.all().split(' ').count(), 3);
        assert_eq!(Text::made(Rng::of(1, 1), 0).all(), "");
        assert_eq!(prompt_tokens(""), 0);
        assert_eq!(prompt_tokens("12345"), 2);
    }
}
