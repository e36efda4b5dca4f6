//! Changing one value in JSON and leaving every other byte as it is.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use serde_json::value::RawValue;

/// Where a value stands in the text that it was read from.
pub(crate) fn place(body: &Bytes, raw: &RawValue) -> Range<usize> {
    let start = raw.get().as_ptr() as usize - body.as_ptr() as usize;
    start..start + raw.get().len()
}

/// The text with another in that place.
pub(crate) fn splice(body: &[u8], at: Range<usize>, text: &str) -> Bytes {
    let mut edited = BytesMut::with_capacity(body.len() + text.len());
    edited.extend_from_slice(&body[..at.start]);
    edited.extend_from_slice(text.as_bytes());
    edited.extend_from_slice(&body[at.end..]);
    edited.freeze()
}
