//! What makes the answers look like those of an LLM server: mechanisms that are told the time.

mod lengths;
mod load;
mod prefix;
mod sharing;
mod vectors;
mod words;

pub use lengths::{InvalidLengths, Lengths};
pub(crate) use load::Pace;
pub(crate) use prefix::PrefixCache;
pub(crate) use sharing::Sharing;
pub(crate) use vectors::embed;
pub(crate) use words::{Text, prompt_tokens};
