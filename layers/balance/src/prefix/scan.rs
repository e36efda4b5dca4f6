//! Where the prompt is in a body, byte by byte: what comes out never depends on how the body was cut.

use crate::Affinity;

mod json;
#[cfg(test)]
mod tests;

use self::json::Json;

/// How much is read, and how much of it counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) read: usize,
    pub(super) prefix: usize,
}

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// JSON if they begin with a brace.
    Open,
    /// Compressed, so that nothing is to be found in there.
    Opaque,
    /// Messages of gRPC, the first of which has a head of five bytes.
    Grpc,
}

/// Reads the beginning of a body.
#[derive(Debug)]
pub(super) struct Scan {
    bounds: Bounds,
    left: usize,
    skip: usize,
    raw: Digest,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Unknown,
    Raw,
    Json(Json),
}

impl Scan {
    pub(super) fn new(bounds: Bounds, content: Content) -> Self {
        Self {
            bounds,
            left: bounds.read,
            skip: if content == Content::Grpc { 5 } else { 0 },
            raw: Digest::default(),
            shape: match content {
                Content::Open => Shape::Unknown,
                Content::Opaque | Content::Grpc => Shape::Raw,
            },
        }
    }

    /// Says whether enough is known. Not called again then.
    pub(super) fn read(&mut self, data: &[u8]) -> bool {
        let data = &data[..data.len().min(self.left)];
        self.left -= data.len();
        let mut rest = data;
        while let [byte, after @ ..] = rest {
            if self.byte(*byte) {
                return true;
            }
            rest = self.skim(after);
        }
        self.left == 0
    }

    /// What the beginning says. `None` if there is none.
    pub(super) fn affinity(&self) -> Option<Affinity> {
        let prompt = match &self.shape {
            Shape::Json(json) => json.digest.value(),
            Shape::Unknown | Shape::Raw => None,
        };
        prompt.or(self.raw.value()).map(Affinity)
    }

    /// Goes to the end of a text, where nothing of it counts: a long prompt is mostly that.
    fn skim<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        match &self.shape {
            Shape::Json(json) if json.skims() && self.raw.len >= self.bounds.prefix => {
                let end = memchr::memchr2(b'"', b'\\', data);
                &data[end.unwrap_or(data.len())..]
            }
            _ => data,
        }
    }

    fn byte(&mut self, byte: u8) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let full = self.raw.len >= self.bounds.prefix;
        if !full {
            self.raw.eat(byte);
        }
        match &mut self.shape {
            Shape::Json(json) => return json.byte(byte),
            Shape::Raw => return self.raw.len >= self.bounds.prefix,
            Shape::Unknown if byte.is_ascii_whitespace() => {}
            Shape::Unknown if byte == b'{' => {
                self.shape = Shape::Json(Json::new(self.bounds.prefix));
            }
            Shape::Unknown => self.shape = Shape::Raw,
        }
        false
    }
}

/// FNV-1a of 64 bits, by Fowler, Noll and Vo, with a last step that spreads it: the same in all gateways, and whatever
/// the pieces are that it is fed with.
#[derive(Clone, Copy, Debug)]
struct Digest {
    state: u64,
    len: usize,
}

impl Default for Digest {
    fn default() -> Self {
        Self {
            state: 0xCBF2_9CE4_8422_2325,
            len: 0,
        }
    }
}

impl Digest {
    fn eat(&mut self, byte: u8) {
        self.state = (self.state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        self.len += 1;
    }

    fn value(self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let mut value = self.state;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Some(value ^ (value >> 31))
    }
}
