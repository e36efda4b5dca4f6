//! How endpoints are chosen, as it is configured.

use std::{str::FromStr, sync::LazyLock};

use palisade::balance::Strategy;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What requests have in common that should go to the same backend. Read by the strategy `consistent_hash` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    /// The header `session_header`, or else `prompt_cache_key` in the body, or else as [`Prompt`](Self::Prompt).
    #[default]
    Session,
    /// How the prompt begins: where a model has read it already, its first token comes sooner.
    Prompt,
    /// The user or the key, or else the address.
    User,
    /// Nothing.
    Off,
}

impl Affinity {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Session, Self::Prompt, Self::User, Self::Off];

    /// The name in files and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Prompt => "prompt",
            Self::User => "user",
            Self::Off => "off",
        }
    }
}

/// The names of all strategies, as the layer has them.
pub(crate) fn strategies() -> &'static [&'static str] {
    static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| Strategy::ALL.map(Strategy::name).into());
    &NAMES
}

pub(super) fn serialize<S: Serializer>(
    strategy: &Strategy,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(strategy.name())
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Strategy, D::Error> {
    let name = String::deserialize(deserializer)?;
    Strategy::from_str(&name).map_err(|_| de::Error::unknown_variant(&name, strategies()))
}
