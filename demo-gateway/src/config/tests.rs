use super::*;

#[test]
fn the_default_has_no_mistake() {
    assert_eq!(Config::default().check(), []);
}

#[test]
fn what_is_printed_is_read_back_without_the_secrets() {
    let mut config = Config {
        admin_token: Some("top-secret-token".into()),
        ..Config::default()
    };
    config.identity.secret = Some("pepper".into());
    config.identity.keys = vec![ApiKey::new("sk-live", "premium")];
    let text = config.to_toml().unwrap();
    for secret in ["top-secret-token", "pepper", "sk-live"] {
        assert!(!text.contains(secret), "{text}");
    }
    let read: Config = toml::from_str(&text).unwrap();
    assert_eq!(read.rate_limits, config.rate_limits);
    assert_eq!(read.timeouts, config.timeouts);
}

#[test]
fn a_backend_is_read_from_one_argument() {
    let backend: Backend = "b1=http://127.0.0.1:9/api,weight=2.5".parse().unwrap();
    assert_eq!((backend.name(), backend.weight), ("b1", 2.5));
    assert_eq!(backend.url, "http://127.0.0.1:9/api");
    let backend: Backend = "http://10.0.0.1:80".parse().unwrap();
    assert_eq!(backend.name(), "10.0.0.1:80");
    let backend: Backend = "http://[::1]:80".parse().unwrap();
    assert_eq!(backend.name(), "[::1]:80");
    for (text, says) in [
        ("https://a:1", "http://"),
        ("nonsense", "http://"),
        ("http://a:1,weight=heavy", "weight"),
        ("http://a:1,weight=0", "weight"),
        ("http://a:1,colour=red", "colour"),
        ("b 1=http://a:1", "id"),
        ("http://user:secret@a:1", "credentials"),
    ] {
        let error = text.parse::<Backend>().unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn every_mistake_is_named_with_its_path() {
    let mut config = Config {
        listen: "8000".into(),
        embedded_backends: 65,
        ..Config::default()
    };
    config.identity.user_header = UserHeader::WithKey;
    config.identity.trusted_proxies = vec!["10.0.0.0/99".into()];
    config.rate_limits[1].name = "global".into();
    config.rate_limits[2].burst = Some(3);
    config.retry.attempts = 0;
    let found: Vec<_> = config.check().into_iter().map(|found| found.path).collect();
    assert_eq!(
        found,
        [
            "listen",
            "embedded_backends",
            "retry.attempts",
            "identity.trusted_proxies[0]",
            "identity.user_header",
            "rate_limits[1].name",
            "rate_limits[2].burst",
        ]
    );
}
