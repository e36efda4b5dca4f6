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
