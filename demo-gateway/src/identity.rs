//! Who is asking.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    ops::Deref,
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

#[cfg(test)]
mod tests;

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

/// What limits count by, in one allocation.
fn in_tier(kind: Kind, name: &str, tier: &str) -> String {
    let mark = TIER.len_utf8();
    let length = kind.name().len() + ":".len() + name.len() + mark + tier.len();
    let mut text = String::with_capacity(length);
    text.push_str(kind.name());
    text.push(':');
    text.push_str(name);
    if tier != BASIC {
        text.push(TIER);
        text.push_str(tier);
    }
    text
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
        match identifier {
            Identifier::Global => Vec::new(),
            Identifier::Address(address) => vec![self.address.key_of(*address)],
            Identifier::Model(model) => vec![model.clone().into()],
            Identifier::ApiKey(id) => {
                let mut known = self.tiers.iter();
                let known = known.find(|(hash, _)| *public_id(hash) == **id);
                let tier = known.map_or(BASIC, |(_, tier)| tier);
                vec![in_tier(Kind::ApiKey, id, tier).into()]
            }
            Identifier::User(name) => {
                let mut tiers = BTreeSet::from([BASIC]);
                if self.user_header == UserHeader::WithKey {
                    tiers.extend(self.tiers.values().map(|tier| &**tier));
                }
                let tiers = tiers.into_iter();
                tiers
                    .map(|tier| in_tier(Kind::User, name, tier).into())
                    .collect()
            }
        }
    }

    /// Who sent a request with these headers.
    pub(crate) fn find(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let address = self.address(peer, headers);
        let user = match headers.get(&USER_ID) {
            Some(value) if self.user_header != UserHeader::Off => Some(name(value.as_bytes())?),
            _ => None,
        };
        let caller = |kind, subject, tier| Caller {
            kind,
            tier,
            address,
            subject,
            key: None,
        };
        let Some(key) = api_key(headers) else {
            return Ok(match user {
                Some(user) if self.user_header == UserHeader::Believe => {
                    let subject = in_tier(Kind::User, user, BASIC);
                    caller(Kind::User, subject, BASIC.into())
                }
                _ => caller(Kind::Address, String::new(), BASIC.into()),
            });
        };
        let hash = self.hash(key);
        let tier: Arc<str> = match self.tiers.get(&hash) {
            Some(tier) => tier.clone(),
            None if self.tiers.is_empty() => BASIC.into(),
            None => {
                return Err(ApiError::unauthorized(
                    "invalid_api_key",
                    "the key is not known",
                ));
            }
        };
        let key = in_tier(Kind::ApiKey, &public_id(&hash), &tier);
        Ok(match user {
            Some(user) if self.user_header == UserHeader::WithKey => Caller {
                key: Some(key),
                ..caller(Kind::User, in_tier(Kind::User, user, &tier), tier)
            },
            _ => caller(Kind::ApiKey, key, tier),
        })
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
        public_id(&self.hash(key.as_bytes())).to_owned()
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
fn public_id(hash: &[u8; 32]) -> PublicId {
    let mut digits = [0; 16];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(hash) {
        let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
    }
    PublicId(digits)
}

/// Hexadecimal digits where they are needed.
struct PublicId([u8; 16]);

impl Deref for PublicId {
    type Target = str;

    fn deref(&self) -> &str {
        str::from_utf8(&self.0).expect("hexadecimal digits")
    }
}

/// Whether two secrets are equal, found out without telling how much of them is.
pub(crate) fn same_secret(a: &[u8], b: &[u8]) -> bool {
    Sha256::digest(a) == Sha256::digest(b)
}
