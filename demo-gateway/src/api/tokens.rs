//! How much a request asks of a model, before any model has seen it.
//!
//! Counted as `demo-backend` counts, and OpenAI's rule of thumb for English does: a token for four bytes of a text, in
//! conversations three more for each message and three for all. Nothing is kept of the texts.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// In a token.
const BYTES: usize = 4;

/// What the roles and the frame of a conversation take, after OpenAI's cookbook.
const PER_MESSAGE: u64 = 3;
const PER_CHAT: u64 = 3;

/// The tokens of a text of so many bytes.
pub(super) fn of_text(bytes: usize) -> u64 {
    bytes.div_ceil(BYTES) as u64
}

/// The messages of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Messages {
    pub(super) count: u64,
    bytes: usize,
}

impl Messages {
    pub(super) fn tokens(self) -> u64 {
        of_text(self.bytes) + PER_MESSAGE * self.count + PER_CHAT
    }
}

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = Measure { below: "content" }.deserialize(deserializer)?;
        let count = found
            .entries
            .ok_or_else(|| D::Error::custom("expected a list"))?;
        Ok(Self {
            count,
            bytes: found.bytes,
        })
    }
}

/// One text or many, in words or in numbers of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prompts {
    pub(super) count: u64,
    pub(super) tokens: u64,
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = Measure { below: "text" }.deserialize(deserializer)?;
        Ok(match found {
            // Numbers that stand by themselves are the tokens of one text.
            Found {
                texts: 0, numbers, ..
            } => Self {
                count: 1,
                tokens: numbers,
            },
            Found { texts, tokens, .. } => Self {
                count: texts,
                tokens,
            },
        })
    }
}

/// A number; `None` for what a backend will refuse in its own words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Number(pub(super) Option<u64>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = Measure { below: "" }.deserialize(deserializer)?;
        Ok(Self(found.number))
    }
}

/// What was found in some JSON.
#[derive(Default)]
struct Found {
    /// Of all texts together.
    bytes: usize,
    texts: u64,
    /// Of each text by itself.
    tokens: u64,
    number: Option<u64>,
    /// Of a list.
    entries: Option<u64>,
    /// Entries of it that are numbers.
    numbers: u64,
}

/// Measures any JSON. Of an object only what stands below a name, and of what stands there the texts.
#[derive(Clone, Copy)]
struct Measure {
    below: &'static str,
}

impl<'de> DeserializeSeed<'de> for Measure {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Measure {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Found, E> {
        Ok(Found {
            bytes: text.len(),
            texts: 1,
            tokens: of_text(text.len()),
            ..Found::default()
        })
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Found, E> {
        Ok(Found {
            number: Some(number),
            ..Found::default()
        })
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_unit<E: Error>(self) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Found, A::Error> {
        let (mut all, mut entries) = (Found::default(), 0);
        while let Some(entry) = list.next_element_seed(self)? {
            entries += 1;
            all.bytes += entry.bytes;
            all.numbers += u64::from(entry.number.is_some());
            if entry.entries.is_some() && entry.texts == 0 {
                all.texts += 1;
                all.tokens += entry.numbers;
            } else {
                all.texts += entry.texts;
                all.tokens += entry.tokens;
            }
        }
        all.entries = Some(entries);
        Ok(all)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut all = Found::default();
        while let Some(is_meant) = map.next_key_seed(Is(self.below))? {
            if !is_meant {
                let _skipped: IgnoredAny = map.next_value()?;
                continue;
            }
            let found = map.next_value_seed(Self { below: "text" })?;
            all.bytes += found.bytes;
            all.texts += found.texts;
            all.tokens += found.tokens;
        }
        Ok(all)
    }
}

/// Whether a name is this one.
struct Is(&'static str);

impl<'de> DeserializeSeed<'de> for Is {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Is {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_counted_as_the_backend_counts_it() {
        for (messages, tokens) in [
            ("[]", Some(3)),
            (r#"[{"role":"user","content":"12345"}]"#, Some(2 + 6)),
            (
                r#"[{"role":"system","content":"1234"},{"role":"user","content":"12345"}]"#,
                Some(3 + 9),
            ),
            (
                r#"[{"content":[{"type":"text","text":"12345678"},{"type":"image_url","image_url":{"url":"data:..."}}]}]"#,
                Some(2 + 6),
            ),
            // Bytes of what is meant, not of how it is written.
            ("[{\"content\":\"\\u00e4\\n\"}]", Some(1 + 6)),
            (r#"[{"content":null},{},7,null]"#, Some(3 * 4 + 3)),
            (r#""hi""#, None),
            ("{}", None),
        ] {
            let found: Result<Messages, _> = serde_json::from_str(messages);
            assert_eq!(found.ok().map(Messages::tokens), tokens, "{messages}");
        }
    }

    #[test]
    fn prompts_are_texts_or_tokens_one_or_many() {
        for (prompt, count, tokens) in [
            (r#""12345""#, 1, 2),
            (r#"["12345","1"]"#, 2, 3),
            ("[1,2,3]", 1, 3),
            ("[[1],[2,3]]", 2, 3),
            ("[]", 1, 0),
            ("7", 1, 0),
            (r#"{"text":"1234"}"#, 1, 1),
        ] {
            let found: Prompts = serde_json::from_str(prompt).unwrap();
            assert_eq!((found.count, found.tokens), (count, tokens), "{prompt}");
        }
    }

    #[test]
    fn what_is_no_number_is_left_to_the_backend() {
        for (text, number) in [
            ("7", Some(7)),
            ("-7", None),
            ("7.5", None),
            ("null", None),
            ("true", None),
            (r#""7""#, None),
            ("[7]", None),
            (r#"{"a":[7]}"#, None),
        ] {
            let found: Number = serde_json::from_str(text).unwrap();
            assert_eq!(found.0, number, "{text}");
        }
    }
}
