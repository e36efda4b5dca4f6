//! What a request asks of a language model.

use std::sync::Arc;

/// What a request asks of a language model: for who has read its body to put into its extensions.
///
/// Rules that count tokens or money take it from there, before the model is asked. A request without it takes 1 when it
/// comes, and what it has used when it has ended: too late to refuse it, so that each key can be over its quota by what
/// it has in flight.
///
/// ```
/// use palisade_rate_limit::Tokens;
///
/// let mut request = http::Request::new("Why is the sky blue?");
/// let tokens = Tokens::new("gpt-4o", 7).max_completion(500);
/// assert_eq!((tokens.prompt, tokens.max_completion), (7, Some(500)));
/// request.extensions_mut().insert(tokens);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// The most tokens that the answer may have, if the request says so: `max_tokens`, times `n`.
    pub max_completion: Option<u64>,
    /// The model, by the name that prices know.
    pub model: Arc<str>,
}

impl Tokens {
    /// So many tokens for this model to read.
    pub fn new(model: impl Into<Arc<str>>, prompt: u64) -> Self {
        Self {
            prompt,
            max_completion: None,
            model: model.into(),
        }
    }

    /// The most tokens that the answer may have.
    #[must_use]
    pub fn max_completion(mut self, tokens: u64) -> Self {
        self.max_completion = Some(tokens);
        self
    }
}
