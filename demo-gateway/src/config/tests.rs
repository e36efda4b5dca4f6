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
    let backend: Backend = "http://a:1,zone=east,priority=2".parse().unwrap();
    assert_eq!(
        (backend.zone.as_deref(), backend.priority),
        (Some("east"), 2)
    );
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
        ("http://a:1,zone=", "zone"),
        ("http://a:1,priority=101", "priority"),
        ("http://a:1,priority=first", "priority"),
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

#[test]
fn where_requests_go_is_read_and_printed() {
    let text = r#"
        strategy = "consistent_hash"
        affinity = "user"
        session_header = "x-conversation"
        zone = "east"
        [health_check]
        kind = "grpc"
        service = "llm"
        statuses = "204-206"
        timeout = "1s"
        rise = 1
        fall = 2
        [discovery]
        srv = "_llm._tcp.internal"
        [[backends]]
        url = "http://a"
        zone = "west"
        priority = 3
    "#;
    let config = parse(text).unwrap();
    assert_eq!(config.strategy, Strategy::ConsistentHash);
    assert_eq!(config.affinity, Affinity::User);
    assert_eq!(config.health_check.statuses.0, 204..=206);
    let one = parse("[health_check]\nstatuses = 204").unwrap();
    assert_eq!(one.health_check.statuses.0, 204..=204);
    assert!(one.to_toml().unwrap().contains("statuses = 204\n"));
    assert_eq!(parse(&config.to_toml().unwrap()).unwrap(), config);
}

#[test]
fn what_is_wrong_about_where_requests_go_is_told_with_its_place() {
    for (text, path) in [
        ("strategy = \"fastest\"", "strategy"),
        ("affinity = \"love\"", "affinity"),
        ("session_header = \"two words\"", "session_header"),
        ("zone = \"\"", "zone"),
        ("[health_check]\npath = \"health\"", "health_check.path"),
        ("[health_check]\nstatuses = 99", "health_check.statuses"),
        (
            "[health_check]\nstatuses = \"300-200\"",
            "health_check.statuses",
        ),
        ("[health_check]\nstatuses = [[]]", "health_check.statuses"),
        ("[health_check]\nservice = \"llm\"", "health_check.service"),
        ("[health_check]\ntimeout = \"0s\"", "health_check.timeout"),
        ("[health_check]\nrise = 0", "health_check.rise"),
        ("[health_check]\nfall = 0", "health_check.fall"),
        ("[health_check]\nkind = \"icmp\"", "health_check.kind"),
        ("[discovery]", "discovery"),
        ("[discovery]\nfile = \"a\"\ndns = \"b:1\"", "discovery"),
        ("[discovery]\ndns = \"b\"", "discovery.dns"),
        ("[discovery]\nsrv = \"b c\"", "discovery.srv"),
        (
            "[[backends]]\nurl = \"http://a\"\nzone = \"b c\"",
            "backends[0].zone",
        ),
        (
            "[[backends]]\nurl = \"http://a\"\npriority = 101",
            "backends[0].priority",
        ),
    ] {
        let faults = parse(text).unwrap_err();
        let found: Vec<_> = faults.iter().map(|fault| &*fault.mistake.path).collect();
        assert_eq!(found, [path], "{text}");
    }
}
