//! Whose trace a request belongs to, in the words of W3C Trace Context.

use std::{fmt, str};

use http::{HeaderMap, HeaderName, HeaderValue};

const PARENT: HeaderName = HeaderName::from_static("traceparent");
const STATE: HeaderName = HeaderName::from_static("tracestate");

/// `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
const LENGTH: usize = 55;

/// Versions to come may add to it; nobody needs more than this.
const LONGEST_PARENT: usize = 256;

/// As long as everybody has to pass on, and all that we do.
const LONGEST_STATE: usize = 512;
const MOST_MEMBERS: usize = 32;
const LONGEST_PART: usize = 256;

/// The flags that have a meaning: sampled, and a trace id that is random.
const KNOWN_FLAGS: u8 = 0b11;
const SAMPLED: u8 = 0b01;

/// Names a trace, or a span in it: shown as lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id<const N: usize>([u8; N]);

/// Names a trace.
pub type TraceId = Id<16>;

/// Names a span of a trace.
pub type SpanId = Id<8>;

impl<const N: usize> Id<N> {
    /// `None` for zeros, which name nothing.
    pub fn new(bytes: [u8; N]) -> Option<Self> {
        (bytes != [0; N]).then_some(Self(bytes))
    }

    /// Its bytes, the highest first.
    pub fn to_bytes(self) -> [u8; N] {
        self.0
    }

    fn parse(digits: &[u8]) -> Option<Self> {
        let mut bytes = [0; N];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = self::byte(pair)?;
        }
        Self::new(bytes)
    }
}

impl<const N: usize> fmt::Display for Id<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<const N: usize> fmt::Debug for Id<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The place of a request in a trace: what `traceparent` and `tracestate` say. Shown as the former.
///
/// ```
/// use http::HeaderMap;
/// use palisade_trace::TraceContext;
///
/// let mut headers = HeaderMap::new();
/// headers.insert("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse()?);
/// let context = TraceContext::read(&headers).expect("well formed");
/// assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert!(context.is_sampled());
/// # Ok::<(), http::header::InvalidHeaderValue>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: TraceId,
    span_id: SpanId,
    flags: u8,
    state: Option<Box<str>>,
}

impl TraceContext {
    /// A place that somebody else knows of. Of the flags those that are unknown are taken off.
    pub fn new(trace_id: TraceId, span_id: SpanId, flags: u8) -> Self {
        Self {
            trace_id,
            span_id,
            flags: flags & KNOWN_FLAGS,
            state: None,
        }
    }

    /// What vendors say besides; nothing if it is not well formed: more than 512 bytes or 32 members, or one that is
    /// no `key=value` or comes twice.
    #[must_use]
    pub fn state(mut self, state: &str) -> Self {
        self.state = is_state(state).then(|| state.into());
        self
    }

    /// What the headers of a request say, if that is well formed; with a state that is not, without it.
    ///
    /// Several `traceparent` are none, and so are upper-case digits, zeros and a length that the version does not allow.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(PARENT).iter();
        let parent = parents.next().filter(|_| parents.next().is_none())?;
        let context = Self::parse(parent.as_bytes())?;
        let mut states = headers.get_all(STATE).iter();
        let Some(first) = states.next() else {
            return Some(context);
        };
        let mut state = first.to_str().unwrap_or("=").to_owned();
        for more in states {
            if state.len() > LONGEST_STATE {
                return Some(context);
            }
            state.push(',');
            state.push_str(more.to_str().unwrap_or("="));
        }
        Some(context.state(&state))
    }

    /// Says so in the headers of a request, instead of what they said.
    pub fn write(&self, headers: &mut HeaderMap) {
        let mut text = [0; LENGTH];
        self.print(&mut text);
        let parent = HeaderValue::from_bytes(&text).expect("digits and dashes");
        headers.insert(PARENT, parent);
        let state = self.state.as_deref().map(HeaderValue::from_str);
        match state {
            Some(Ok(state)) => headers.insert(STATE, state),
            _ => headers.remove(STATE),
        };
    }

    /// The trace.
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// The span that sent the request.
    pub fn span_id(&self) -> SpanId {
        self.span_id
    }

    /// The flags, as far as they have a meaning.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the sender keeps what it knows of the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// What vendors say besides.
    pub fn vendors(&self) -> Option<&str> {
        self.state.as_deref()
    }

    fn parse(text: &[u8]) -> Option<Self> {
        if !(LENGTH..=LONGEST_PARENT).contains(&text.len()) {
            return None;
        }
        let version = byte(&text[..2])?;
        let rest = &text[LENGTH..];
        let fits = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        if !fits || [2, 35, 52].iter().any(|&at| text[at] != b'-') {
            return None;
        }
        let (trace_id, span_id) = (Id::parse(&text[3..35])?, Id::parse(&text[36..52])?);
        Some(Self::new(trace_id, span_id, byte(&text[53..LENGTH])?))
    }

    fn print(&self, text: &mut [u8; LENGTH]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";

        text.fill(b'-');
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            for byte in bytes {
                text[at] = DIGITS[usize::from(byte >> 4)];
                text[at + 1] = DIGITS[usize::from(byte & 15)];
                at += 2;
            }
            at += 1;
        };
        put(&[0]);
        put(&self.trace_id.0);
        put(&self.span_id.0);
        put(&[self.flags]);
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; LENGTH];
        self.print(&mut text);
        f.write_str(str::from_utf8(&text).expect("digits and dashes"))
    }
}

/// Two lower-case digits.
fn byte(pair: &[u8]) -> Option<u8> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    Some(digit(pair[0])? << 4 | digit(pair[1])?)
}

fn is_state(state: &str) -> bool {
    if state.len() > LONGEST_STATE {
        return false;
    }
    let members = || {
        state
            .split(',')
            .map(|member| member.trim_matches([' ', '\t']))
    };
    // Empty ones are allowed, and count.
    members().count() <= MOST_MEMBERS
        && members().any(|member| !member.is_empty())
        && members().enumerate().all(|(at, member)| {
            let Some((key, value)) = member.split_once('=') else {
                return member.is_empty();
            };
            let before = members().take(at).filter_map(|other| other.split_once('='));
            is_key(key) && is_value(value) && before.into_iter().all(|(other, _)| other != key)
        })
}

fn is_key(key: &str) -> bool {
    let first = key.bytes().next();
    key.len() <= LONGEST_PART
        && first.is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit())
        && key.bytes().all(|byte| {
            let other = matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@');
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || other
        })
        && key.bytes().filter(|&byte| byte == b'@').count() <= 1
}

fn is_value(value: &str) -> bool {
    let printable = |byte| matches!(byte, b' '..=b'~') && byte != b'=';
    (1..=LONGEST_PART).contains(&value.len())
        && value.bytes().all(printable)
        && !value.ends_with(' ')
}

#[cfg(test)]
mod tests;
