//! What a request has in common with others that should go to the same backend.

use std::net::IpAddr;

use http::HeaderMap;
use palisade::{balance::Affinity, key::Key};

use crate::{app::App, config, identity::Caller};

/// What the head of a request says of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kin {
    /// It belongs to nothing, or nobody asks.
    Nothing,
    /// It belongs to a session, or to a user.
    Known(Affinity),
    /// The body will tell: by its key for a cache, or by how its prompt begins.
    KeyOrPrompt,
    /// By how its prompt begins.
    Prompt,
}

impl Kin {
    pub(crate) fn find(app: &App, caller: &Caller, headers: &HeaderMap) -> Self {
        // Most strategies have no use for it.
        if !app.backends.reads_affinity() {
            return Self::Nothing;
        }
        match app.config.affinity {
            config::Affinity::Session => match headers.get(&*app.config.session_header) {
                Some(session) => Self::Known(Affinity::of(session)),
                None => Self::KeyOrPrompt,
            },
            config::Affinity::Prompt => Self::Prompt,
            config::Affinity::User => Self::Known(of_caller(caller)),
            config::Affinity::Off => Self::Nothing,
        }
    }

    /// What it is when the body is there. `key` is the JSON of its `prompt_cache_key`.
    pub(crate) fn with_body(self, key: Option<&[u8]>, body: &[u8]) -> Option<Affinity> {
        match (self, key) {
            (Self::Nothing, _) => None,
            (Self::Known(affinity), _) => Some(affinity),
            (Self::KeyOrPrompt, Some(key)) => Some(Affinity::of(key)),
            (Self::KeyOrPrompt | Self::Prompt, _) => Affinity::of_prompt(body),
        }
    }
}

fn of_caller(caller: &Caller) -> Affinity {
    match (caller.subject(), caller.address) {
        (Some(Key::Bytes(subject)), _) => Affinity::of(subject),
        (_, IpAddr::V4(address)) => Affinity::of(address.octets()),
        (_, IpAddr::V6(address)) => Affinity::of(address.octets()),
    }
}
