use std::{error::Error, fmt, hint::black_box, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};

const FAULTS: HeaderName = HeaderName::from_static("x-chaos");
const SECRET: HeaderName = HeaderName::from_static("x-chaos-secret");

/// Fewer bytes than these are guessed.
const SHORTEST: usize = 16;

/// What a request has to know to ask for faults.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Fails if it has fewer than 16 bytes.
    pub fn new(secret: impl AsRef<[u8]>) -> Result<Self, ShortSecret> {
        let secret = secret.as_ref();
        match secret.len() {
            SHORTEST.. => Ok(Self(secret.into())),
            _ => Err(ShortSecret),
        }
    }

    /// In the same time for all of its length, so that it cannot be found byte by byte.
    fn is(&self, given: &[u8]) -> bool {
        if given.len() != self.0.len() {
            return false;
        }
        let pairs = self.0.iter().zip(given);
        pairs.fold(0, |all, (a, b)| black_box(all | (a ^ b))) == 0
    }

    /// The faults that a request may and does ask for. Takes both headers away: nothing further in has use for them.
    pub(crate) fn take(&self, headers: &mut HeaderMap) -> Option<Demand> {
        let faults = headers.get_all(FAULTS).iter().cloned().collect();
        let (_, given) = (headers.remove(FAULTS), headers.remove(SECRET));
        self.is(given?.as_bytes()).then_some(Demand(faults))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Names of faults, between commas, in as many lines as there are.
pub(crate) struct Demand(Vec<HeaderValue>);

impl Demand {
    pub(crate) fn names(&self, fault: &str) -> bool {
        let lines = self.0.iter().map(HeaderValue::as_bytes);
        let mut names = lines.flat_map(|line| line.split(|&byte| byte == b','));
        names.any(|name| name.trim_ascii() == fault.as_bytes())
    }
}

/// A secret of fewer than 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortSecret;

impl fmt::Display for ShortSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the secret has fewer than {SHORTEST} bytes")
    }
}

impl Error for ShortSecret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_secret_is_none() {
        assert_eq!(Secret::new("").unwrap_err(), ShortSecret);
        assert_eq!(Secret::new("fifteen letters").unwrap_err(), ShortSecret);
        assert!(Secret::new("sixteen letters!").is_ok());
    }

    #[test]
    fn only_all_of_it_is_the_secret() {
        let secret = Secret::new("sixteen letters!").unwrap();
        assert!(secret.is(b"sixteen letters!"));
        for other in [
            "",
            "sixteen letters",
            "sixteen letters?",
            "sixteen letters!!",
        ] {
            assert!(!secret.is(other.as_bytes()), "{other}");
        }
        assert_eq!(format!("{secret:?}"), "Secret");
    }

    #[test]
    fn names_are_whole() {
        let demand = Demand(vec![HeaderValue::from_static("slow, reset,x")]);
        assert!(demand.names("slow") && demand.names("reset") && demand.names("x"));
        assert!(!demand.names("slo") && !demand.names("set") && !demand.names("slow, reset"));
    }
}
