//! Who is asking.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    fmt::{self, Write},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, Request, header::AUTHORIZATION};
use palisade::{
    head::RequestHead,
    key::{self, ClientAddress, ForwardedBy, Key, Network, PeerAddr},
};
use sha2::{Digest, Sha256};

use crate::{
    config::{self, BASIC, Config, Forwarded, Secret, UserHeader},
    errors::ApiError,
};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const USER_ID: HeaderName = HeaderName::from_static("x-user-id");

/// The longest name of a user.
const LONGEST_NAME: usize = 256;

/// Between what limits count by and the tier that it is in. No name has it in itself.
const TIER: char = '\u{1f}';

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
    pub(crate) tier: Arc<str>,
    pub(crate) address: IpAddr,
    /// `user:NAME` or `api_key:ID`, and the tier if it is not `basic`; empty when only the address is known.
    subject: String,
    /// `api_key:ID` of the key that speaks for a user, in the same form.
    key: Option<String>,
}

impl Caller {
    /// `user:NAME`, `api_key:ID` or `ip:ADDRESS`, as anybody may read it.
    pub(crate) fn shown(&self) -> Cow<'_, str> {
        match self.subject.split(TIER).next() {
            Some(name) if !name.is_empty() => name.into(),
            _ => format!("ip:{}", self.address).into(),
        }
    }

    /// `api_key:ID` of whoever shows a key, also one that speaks for a user.
    pub(crate) fn shown_key(&self) -> Option<Cow<'_, str>> {
        match &self.key {
            Some(key) => key.split(TIER).next().map(Cow::from),
            None => (self.kind == Kind::ApiKey).then(|| self.shown()),
        }
    }

    /// What limits for callers count by, if it is known by more than an address.
    pub(crate) fn subject(&self) -> Option<Key<'_>> {
        (!self.subject.is_empty()).then(|| self.subject.as_str().into())
    }

    /// What limits for keys count by, if there is one.
    pub(crate) fn key(&self) -> Option<Key<'_>> {
        match &self.key {
            Some(key) => Some(key.as_str().into()),
            None if self.kind == Kind::ApiKey => self.subject(),
            None => None,
        }
    }
}

/// Whether what a limit counts by is in this tier.
pub(crate) fn is_in_tier(key: &Key<'_>, tier: &str) -> bool {
    let Key::Bytes(bytes) = key else {
        return false;
    };
    let mut end = [0; TIER.len_utf8()];
    let mark = TIER.encode_utf8(&mut end).as_bytes();
    let before = bytes.strip_suffix(tier.as_bytes());
    before.is_some_and(|before| before.ends_with(mark))
}

fn in_tier(mut name: String, tier: &str) -> String {
    if tier != BASIC {
        name.push(TIER);
        name.push_str(tier);
    }
    name
}

/// Tells who is asking.
pub(crate) struct Identities {
    address: ClientAddress,
    behind_proxies: bool,
    user_header: UserHeader,
    secret: Option<Secret>,
    /// By hash, so that looking one up takes as long for a wrong key as for a right one.
    tiers: HashMap<[u8; 32], Arc<str>>,
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
        let behind_proxies =
            !trusted.is_empty() || identity.trusted_hops.is_some_and(|hops| hops > 0);
        let address = match identity.trusted_hops {
            Some(hops) => key::client_address_behind(hops),
            None => key::client_address(trusted),
        };
        let address = match identity.forwarded {
            Some(Forwarded::XForwardedFor) => address.header(ForwardedBy::XForwardedFor),
            Some(Forwarded::Forwarded) => address.header(ForwardedBy::Forwarded),
            None => address,
        };
        let mut identities = Self {
            behind_proxies,
            address: address.ipv6_prefix(identity.ipv6_prefix),
            user_header: identity.user_header,
            secret: identity.secret.clone(),
            tiers: HashMap::new(),
        };
        let tiers = identity.keys.iter();
        let tiers = tiers.map(|key| {
            let hash = identities.hash(key.key.reveal().as_bytes());
            (hash, key.tier.as_str().into())
        });
        identities.tiers = tiers.collect();
        identities
    }

    /// What addresses are told apart by.
    pub(crate) fn address_key(&self) -> &ClientAddress {
        &self.address
    }

    /// What limits count somebody by: more than one who can come in several tiers.
    pub(crate) fn keys(&self, identifier: &Identifier) -> Vec<Key<'static>> {
        let name = identifier.to_string();
        match identifier {
            Identifier::Global => Vec::new(),
            Identifier::Address(address) => vec![self.address.key_of(*address)],
            Identifier::Model(model) => vec![model.clone().into()],
            Identifier::ApiKey(id) => {
                let mut known = self.tiers.iter();
                let known = known.find(|(hash, _)| public_id(hash) == *id);
                let tier = known.map_or(BASIC, |(_, tier)| tier);
                vec![in_tier(name, tier).into()]
            }
            Identifier::User(_) => {
                let mut tiers = BTreeSet::from([BASIC]);
                if self.user_header == UserHeader::WithKey {
                    tiers.extend(self.tiers.values().map(|tier| &**tier));
                }
                let tiers = tiers.into_iter();
                tiers
                    .map(|tier| in_tier(name.clone(), tier).into())
                    .collect()
            }
        }
    }

    /// Who sent a request with these headers.
    pub(crate) fn find(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let unknown = self.unknown(peer, headers);
        let user = match headers.get(&USER_ID) {
            Some(value) if self.user_header != UserHeader::Off => Some(name(value.as_bytes())?),
            _ => None,
        };
        let caller = |kind, subject| Caller {
            kind,
            subject,
            ..unknown.clone()
        };
        let Some(key) = api_key(headers) else {
            return Ok(match user {
                Some(user) if self.user_header == UserHeader::Believe => {
                    caller(Kind::User, format!("user:{user}"))
                }
                _ => unknown,
            });
        };
        let hash = self.hash(key);
        let tier = match self.tiers.get(&hash) {
            Some(tier) => tier.clone(),
            None if self.tiers.is_empty() => BASIC.into(),
            None => {
                return Err(ApiError::unauthorized(
                    "invalid_api_key",
                    "the key is not known",
                ));
            }
        };
        let key = in_tier(format!("api_key:{}", public_id(&hash)), &tier);
        let caller = match user {
            Some(user) if self.user_header == UserHeader::WithKey => Caller {
                key: Some(key),
                ..caller(Kind::User, in_tier(format!("user:{user}"), &tier))
            },
            _ => caller(Kind::ApiKey, key),
        };
        Ok(Caller { tier, ..caller })
    }

    /// Whoever it is, by the address alone.
    pub(crate) fn unknown(&self, peer: SocketAddr, headers: &HeaderMap) -> Caller {
        Caller {
            kind: Kind::Address,
            tier: BASIC.into(),
            address: self.address(peer, headers),
            subject: String::new(),
            key: None,
        }
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
                let mac = Hmac::<Sha256>::new_from_slice(secret.reveal().as_bytes());
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

/// Somebody whose limits can be looked up: `user:NAME`, `api_key:ID`, `ip:ADDRESS`, `model:NAME` or `global`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identifier {
    Global,
    User(String),
    /// The public id.
    ApiKey(String),
    Address(IpAddr),
    Model(String),
}

impl Identifier {
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        let wrong = || {
            let forms = "`user:NAME`, `api_key:ID`, `ip:ADDRESS`, `model:NAME` and `global`";
            ApiError::bad_request(format!("`{text}` is no identifier: there are {forms}"))
                .param("identifier")
        };
        if text == "global" {
            return Ok(Self::Global);
        }
        let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
        match kind {
            "user" => Ok(Self::User(name(rest.as_bytes())?.into())),
            // Nothing else, so that a raw key is not taken for one, nor told in the log of `/admin`.
            "api_key" if rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                Ok(Self::ApiKey(rest.to_ascii_lowercase()))
            }
            "ip" => {
                let address = rest.trim_matches(['[', ']']).parse();
                address.map(Self::Address).map_err(|_| wrong())
            }
            "model" if !rest.is_empty() => Ok(Self::Model(rest.into())),
            _ => Err(wrong()),
        }
    }

    /// Whether rules of this kind tell it apart.
    pub(crate) fn is_counted_by(&self, by: config::Identifier) -> bool {
        use config::Identifier::{Ip, Key, Model, Premium, User};

        match self {
            Self::Global => false,
            Self::User(_) => matches!(by, User | Premium),
            Self::ApiKey(_) => matches!(by, User | Premium | Key),
            Self::Address(_) => by == Ip,
            Self::Model(_) => by == Model,
        }
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::ApiKey(id) => write!(f, "api_key:{id}"),
            Self::Address(address) => write!(f, "ip:{address}"),
            Self::Model(name) => write!(f, "model:{name}"),
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
            Ok(caller) => caller.subject.replace(TIER, " "),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn a_key_comes_before_a_user_and_a_user_before_the_address() {
        let config = Config::default();
        let all = [("x-api-key", "k"), ("x-user-id", "alice")];
        // The first 64 bits of SHA-256 of "k".
        assert_eq!(told(&config, &all), "api_key:8254c329a92850f6");
        let bearer = [("authorization", "Bearer k"), ("x-user-id", "alice")];
        assert_eq!(told(&config, &bearer), told(&config, &all));
        assert_eq!(told(&config, &[("x-user-id", "alice")]), "user:alice");
        assert_eq!(told(&config, &[]), "ip:192.0.2.7");
        assert_eq!(
            told(&config, &[("authorization", "Basic eA==")]),
            "ip:192.0.2.7"
        );
    }

    #[test]
    fn with_a_key_table_a_key_that_is_not_in_it_is_refused() {
        let mut config = Config::default();
        config.identity.keys = vec![ApiKey::new("sk-1", "premium")];
        assert!(told(&config, &[("x-api-key", "sk-1")]).ends_with(" premium"));
        let error = told(&config, &[("x-api-key", "sk-2")]);
        assert!(error.contains("401") && !error.contains("sk-2"), "{error}");
        assert_eq!(told(&config, &[]), "ip:192.0.2.7");
    }

    #[test]
    fn a_user_header_is_believed_as_far_as_it_is_set() {
        let mut config = Config::default();
        config.identity.keys = vec![ApiKey::new("sk-1", "premium")];
        let (alone, beside): (&[_], &[_]) = (
            &[("x-user-id", "alice")],
            &[("x-user-id", "alice"), ("x-api-key", "sk-1")],
        );
        config.identity.user_header = UserHeader::WithKey;
        assert_eq!(told(&config, alone), "ip:192.0.2.7");
        assert_eq!(told(&config, beside), "user:alice premium");
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
        assert_eq!(told(&config, &[("x-user-id", "zoë")]), "user:zoë");
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
    fn behind_so_many_proxies_the_address_is_what_the_outermost_wrote() {
        let mut config = Config::default();
        let both = [
            ("x-forwarded-for", "6.6.6.6, 198.51.100.1, 10.0.0.1"),
            ("forwarded", "for=6.6.6.7, for=198.51.100.2, for=10.0.0.2"),
        ];
        for (hops, forwarded, address) in [
            (0, None, "192.0.2.7"),
            (1, None, "10.0.0.1"),
            (2, None, "198.51.100.1"),
            (2, Some(Forwarded::XForwardedFor), "198.51.100.1"),
            (2, Some(Forwarded::Forwarded), "198.51.100.2"),
        ] {
            config.identity.trusted_hops = Some(hops);
            config.identity.forwarded = forwarded;
            assert_eq!(told(&config, &both), format!("ip:{address}"), "{hops}");
        }
    }

    #[test]
    fn a_caller_is_counted_by_what_it_can_be_looked_up_by() {
        let mut config = Config::default();
        config.identity.keys = vec![ApiKey::new("sk-1", "gold"), ApiKey::new("sk-2", "basic")];
        config.identity.user_header = UserHeader::WithKey;
        let identities = Identities::new(&config);
        for (key, user, identifier) in [
            (
                "sk-1",
                None,
                format!("api_key:{}", identities.public_id("sk-1")),
            ),
            (
                "sk-2",
                None,
                format!("api_key:{}", identities.public_id("sk-2")),
            ),
            ("sk-1", Some("alice"), "user:alice".into()),
            ("sk-2", Some("alice"), "user:alice".into()),
        ] {
            let mut headers = vec![("x-api-key", key)];
            headers.extend(user.map(|user| ("x-user-id", user)));
            let caller = find(&config, &headers).unwrap();
            let looked_up = identities.keys(&Identifier::parse(&identifier).unwrap());
            let subject = caller.subject().unwrap();
            assert!(looked_up.contains(&subject), "{key} {user:?}");
            assert_eq!(is_in_tier(&subject, "gold"), key == "sk-1");
            assert!(!is_in_tier(&subject, "old") && !is_in_tier(&subject, "basic"));
            let id = format!("api_key:{}", identities.public_id(key));
            let looked_up = identities.keys(&Identifier::parse(&id).unwrap());
            assert_eq!(looked_up, [caller.key().unwrap()]);
        }
        let address = find(&config, &[]).unwrap();
        assert_eq!((address.subject(), address.key()), (None, None));
    }

    #[test]
    fn identifiers_are_read_as_they_are_written() {
        let identities = Identities::new(&Config::default());
        let keys = |text| identities.keys(&Identifier::parse(text).unwrap());
        assert_eq!(keys("ip:::1"), keys("ip:[::1]"));
        assert_eq!(
            keys("api_key:0123456789ABCDEF"),
            keys("api_key:0123456789abcdef")
        );
        assert_eq!(keys("model:gpt-4o"), ["gpt-4o".into()]);
        for wrong in [
            "alice",
            "user:",
            "ip:here",
            "model:",
            "api_key:raw-key",
            "api_key:0123456789abcdef0123456789abcdef",
            "tenant:a",
            "user:a\nb",
            "user:alice\u{1f}premium",
        ] {
            assert!(Identifier::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
