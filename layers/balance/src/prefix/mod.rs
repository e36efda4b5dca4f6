//! What a request has in common with others, found in its head or at the beginning of its body.

mod body;
mod key;
mod prompt;
mod scan;

pub use self::{
    body::PromptBody,
    key::{AffinityLayer, KeyAffinity},
    prompt::{PromptAffinity, PromptAffinityLayer, PromptFuture},
};
