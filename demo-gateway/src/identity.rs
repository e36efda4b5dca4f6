//! Who is asking.

use std::{
    collections::HashMap,
    fmt::{self, Write},
    net::{IpAddr, SocketAddr},
};

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, Request, header::AUTHORIZATION};
use palisade::{
    head::RequestHead,
    key::{self, ClientAddress, Key, Network, PeerAddr},
};
use sha2::{Digest, Sha256};

use crate::{
    config::{Config, Tier, UserHeader},
    errors::ApiError,
};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const USER_ID: HeaderName = HeaderName::from_static("x-user-id");

/// The longest name of a user.
const LONGEST_NAME: usize = 256;

/// By what a caller is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ApiKey,
    User,
    Address,
}

impl Kind {
    /// As in identifiers and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::User => "user",
            Self::Address => "ip",
        }
    }
}

/// Who is asking. Holds no raw key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) kind: Kind,
    pub(crate) tier: Tier,
    pub(crate) address: IpAddr,
    /// `user:NAME` or `api_key:ID`; empty when only the address is known.
    subject: String,
}

impl Caller {
    /// What limits for callers of this tier count by, if this is one.
    pub(crate) fn subject_of(&self, tier: Tier) -> Option<Key<'_>> {
        let is_one = self.tier == tier && !self.subject.is_empty();
        is_one.then(|| self.subject.as_str().into())
    }
}

/// Tells who is asking.
pub(crate) struct Identities {
    address: ClientAddress,
    behind_proxies: bool,
    user_header: UserHeader,
    secret: Option<Vec<u8>>,
    /// By hash, so that looking one up takes as long for a wrong key as for a right one.
    tiers: HashMap<[u8; 32], Tier>,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").finish_non_exhaustive()
    }
}

impl Identities {
    /// Expects a configuration without mistakes; networks that are none are left out.
    pub(crate) fn new(config: &Config) -> Self {
        let identity = &config.identity;
        let trusted = identity.trusted_proxies.iter();
        let trusted: Vec<Network> = trusted.filter_map(|text| text.parse().ok()).collect();
        let mut identities = Self {
            behind_proxies: !trusted.is_empty(),
            address: key::client_address(trusted),
            user_header: identity.user_header,
            secret: identity.secret.as_ref().map(|secret| secret.clone().into()),
            tiers: HashMap::new(),
        };
        let tiers = identity.keys.iter();
        let tiers = tiers.map(|key| (identities.hash(key.key.as_bytes()), key.tier));
        identities.tiers = tiers.collect();
        identities
    }

    /// Who sent a request with these headers.
    pub(crate) fn find(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let address = self.address(peer, headers);
        let user = match headers.get(&USER_ID) {
            Some(value) if self.user_header != UserHeader::Off => Some(name(value.as_bytes())?),
            _ => None,
        };
        let caller = |kind, tier, subject| Caller {
            kind,
            tier,
            address,
            subject,
        };
        let Some(key) = api_key(headers) else {
            return Ok(match user {
                Some(user) if self.user_header == UserHeader::Believe => {
                    caller(Kind::User, Tier::Basic, format!("user:{user}"))
                }
                _ => caller(Kind::Address, Tier::Basic, String::new()),
            });
        };
        let hash = self.hash(key);
        let tier = match self.tiers.get(&hash) {
            Some(tier) => *tier,
            None if self.tiers.is_empty() => Tier::Basic,
            None => {
                return Err(ApiError::unauthorized(
                    "invalid_api_key",
                    "the key is not known",
                ));
            }
        };
        Ok(match user {
            Some(user) if self.user_header == UserHeader::WithKey => {
                caller(Kind::User, tier, format!("user:{user}"))
            }
            _ => caller(Kind::ApiKey, tier, format!("api_key:{}", public_id(&hash))),
        })
    }

    fn address(&self, peer: SocketAddr, headers: &HeaderMap) -> IpAddr {
        let direct = peer.ip().to_canonical();
        if !self.behind_proxies {
            return direct;
        }
        let mut request = Request::new(());
        *request.headers_mut() = headers.clone();
        request.extensions_mut().insert(PeerAddr(peer));
        self.address
            .find(&RequestHead::from(&request))
            .unwrap_or(direct)
    }

    fn hash(&self, key: &[u8]) -> [u8; 32] {
        match &self.secret {
            None => Sha256::digest(key).into(),
            Some(secret) => {
                let mac = Hmac::<Sha256>::new_from_slice(secret);
                let mac = mac.expect("HMAC takes keys of any length");
                mac.chain_update(key).finalize().into_bytes().into()
            }
        }
    }

    /// The public id of a key, as `/rate-limits/api_key:ID` takes it.
    pub(crate) fn public_id(&self, key: &str) -> String {
        public_id(&self.hash(key.as_bytes()))
    }
}

/// Somebody whose limits can be looked up: `user:NAME`, `api_key:ID`, `ip:ADDRESS` or `global`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identifier {
    Global,
    Caller(String),
    Address(IpAddr),
}

impl Identifier {
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        let wrong = || {
            let forms = "`user:NAME`, `api_key:ID`, `ip:ADDRESS` and `global`";
            ApiError::bad_request(format!("`{text}` is no identifier: there are {forms}"))
                .param("identifier")
        };
        if text == "global" {
            return Ok(Self::Global);
        }
        let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
        match kind {
            "user" => Ok(Self::Caller(format!("user:{}", name(rest.as_bytes())?))),
            // Nothing else, so that a raw key is not taken for one, nor told in the log of `/admin`.
            "api_key" if rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                Ok(Self::Caller(text.to_ascii_lowercase()))
            }
            "ip" => {
                let address = rest.trim_matches(['[', ']']).parse();
                address.map(Self::Address).map_err(|_| wrong())
            }
            _ => Err(wrong()),
        }
    }

    pub(crate) fn key(&self) -> Key<'_> {
        match self {
            Self::Global => "global".into(),
            Self::Caller(subject) => subject.as_str().into(),
            Self::Address(address) => (*address).into(),
        }
    }
}

fn api_key(headers: &HeaderMap) -> Option<&[u8]> {
    let key = headers.get(&API_KEY).map(|value| value.as_bytes());
    key.filter(|key| !key.is_empty())
        .or_else(|| key::bearer_token(headers.get(AUTHORIZATION)?.as_bytes()))
}

/// A name that can be shown and looked up again.
fn name(bytes: &[u8]) -> Result<&str, ApiError> {
    let wrong = |detail: &'static str| Err(ApiError::bad_request(detail).param("x-user-id"));
    match std::str::from_utf8(bytes) {
        Err(_) => wrong("the user id is not UTF-8"),
        Ok("") => wrong("the user id is empty"),
        Ok(name) if name.len() > LONGEST_NAME => wrong("the user id is longer than 256 bytes"),
        Ok(name) if name.chars().any(char::is_control) => {
            wrong("the user id has control characters")
        }
        Ok(name) => Ok(name),
    }
}

/// The first 64 bits of a hash in hexadecimal.
fn public_id(hash: &[u8; 32]) -> String {
    let mut text = String::with_capacity(16);
    for byte in &hash[..8] {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// Whether two secrets are equal, found out without telling how much of them is.
pub(crate) fn same_secret(a: &[u8], b: &[u8]) -> bool {
    Sha256::digest(a) == Sha256::digest(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ApiKey;

    const PEER: &str = "192.0.2.7:999";

    fn find(config: &Config, pairs: &[(&str, &str)]) -> Result<Caller, ApiError> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().unwrap();
            headers.insert(
                name,
                http::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        Identities::new(config).find(PEER.parse().unwrap(), &headers)
    }

    fn told(config: &Config, pairs: &[(&str, &str)]) -> String {
        match find(config, pairs) {
            Ok(caller) if caller.kind == Kind::Address => format!("ip:{}", caller.address),
            Ok(caller) => format!("{} {:?}", caller.subject, caller.tier),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn a_key_comes_before_a_user_and_a_user_before_the_address() {
        let config = Config::default();
        let all = [("x-api-key", "k"), ("x-user-id", "alice")];
        // The first 64 bits of SHA-256 of "k".
        assert_eq!(told(&config, &all), "api_key:8254c329a92850f6 Basic");
        let bearer = [("authorization", "Bearer k"), ("x-user-id", "alice")];
        assert_eq!(told(&config, &bearer), told(&config, &all));
        assert_eq!(told(&config, &[("x-user-id", "alice")]), "user:alice Basic");
        assert_eq!(told(&config, &[]), "ip:192.0.2.7");
        assert_eq!(
            told(&config, &[("authorization", "Basic eA==")]),
            "ip:192.0.2.7"
        );
    }

    #[test]
    fn with_a_key_table_a_key_that_is_not_in_it_is_refused() {
        let mut config = Config::default();
        config.identity.keys = vec![ApiKey {
            key: "sk-1".into(),
            tier: Tier::Premium,
        }];
        assert!(told(&config, &[("x-api-key", "sk-1")]).ends_with("Premium"));
        let error = told(&config, &[("x-api-key", "sk-2")]);
        assert!(error.contains("401") && !error.contains("sk-2"), "{error}");
        assert_eq!(told(&config, &[]), "ip:192.0.2.7");
    }

    #[test]
    fn a_user_header_is_believed_as_far_as_it_is_set() {
        let mut config = Config::default();
        config.identity.keys = vec![ApiKey {
            key: "sk-1".into(),
            tier: Tier::Premium,
        }];
        let (alone, beside): (&[_], &[_]) = (
            &[("x-user-id", "alice")],
            &[("x-user-id", "alice"), ("x-api-key", "sk-1")],
        );
        config.identity.user_header = UserHeader::WithKey;
        assert_eq!(told(&config, alone), "ip:192.0.2.7");
        assert_eq!(told(&config, beside), "user:alice Premium");
        config.identity.user_header = UserHeader::Off;
        assert_eq!(told(&config, alone), "ip:192.0.2.7");
        assert!(told(&config, beside).starts_with("api_key:"));
    }

    #[test]
    fn a_secret_changes_public_ids() {
        let mut config = Config::default();
        let plain = Identities::new(&config).public_id("k");
        config.identity.secret = Some("pepper".into());
        let keyed = Identities::new(&config).public_id("k");
        assert_ne!(plain, keyed);
        assert!(told(&config, &[("x-api-key", "k")]).contains(&keyed));
    }

    #[test]
    fn an_id_with_control_characters_is_a_bad_request() {
        let config = Config::default();
        for id in ["a\tb", "", "a\u{85}b"] {
            assert!(
                told(&config, &[("x-user-id", id)]).contains("400"),
                "{id:?}"
            );
        }
        assert_eq!(told(&config, &[("x-user-id", "zoë")]), "user:zoë Basic");
    }

    #[test]
    fn a_forwarded_address_counts_only_from_a_trusted_proxy() {
        let mut config = Config::default();
        let forwarded = [("x-forwarded-for", "6.6.6.6, 198.51.100.1")];
        assert_eq!(told(&config, &forwarded), "ip:192.0.2.7");
        config.identity.trusted_proxies = vec!["192.0.2.0/24".into()];
        assert_eq!(told(&config, &forwarded), "ip:198.51.100.1");
    }

    #[test]
    fn identifiers_are_read_as_they_are_written() {
        let key = |text| {
            Identifier::parse(text)
                .map(|id| format!("{:?}", id.key()))
                .unwrap()
        };
        assert_eq!(key("ip:::1"), key("ip:[::1]"));
        assert_eq!(
            key("api_key:0123456789ABCDEF"),
            key("api_key:0123456789abcdef")
        );
        for wrong in [
            "alice",
            "user:",
            "ip:here",
            "api_key:raw-key",
            "api_key:0123456789abcdef0123456789abcdef",
            "tenant:a",
            "user:a\nb",
        ] {
            assert!(Identifier::parse(wrong).is_err(), "{wrong}");
        }
    }
}
