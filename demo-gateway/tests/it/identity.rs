//! Who callers are taken for.

use demo_gateway::{
    Config,
    config::{ApiKey, Switch, UserHeader},
};
use http::StatusCode;

use crate::support::{CHAT, PROMPT, backend, config, get, post, post_with, start};

fn with_keys(config: Config) -> Config {
    let mut config = config;
    config.rate_limit = Switch::Default;
    config.identity.keys = vec![
        ApiKey::new("sk-basic", "basic"),
        ApiKey::new("sk-premium", "premium"),
    ];
    config
}

#[tokio::test]
async fn with_a_key_table_an_unknown_key_is_401_and_none_is_an_address() {
    let backend = backend().await;
    let gateway = start(with_keys(config(&[&backend]))).await;
    for headers in [
        &[("x-api-key", "sk-other")],
        &[("authorization", "Bearer sk-other")],
    ] {
        let reply = post_with(&gateway, "/generate", PROMPT, headers).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert_eq!(reply.header("www-authenticate"), "Bearer");
        assert!(!reply.text().contains("sk-other"));
        let reply = post_with(&gateway, "/v1/chat/completions", CHAT, headers).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
    }
    assert_eq!(
        post(&gateway, "/generate", PROMPT).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn the_tier_of_a_key_decides_which_rule_holds() {
    let backend = backend().await;
    let gateway = start(with_keys(config(&[&backend]))).await;
    for (key, rule) in [
        ("sk-basic", "\"per_user\";r=99"),
        ("sk-premium", "\"premium_user\";r=499"),
    ] {
        let reply = post_with(&gateway, "/generate", PROMPT, &[("x-api-key", key)]).await;
        assert!(reply.header("ratelimit").contains(rule), "{reply:?}");
        assert!(
            reply.header("ratelimit").contains("\"per_ip\""),
            "{reply:?}"
        );
    }
}

#[tokio::test]
async fn a_user_header_that_is_not_believed_changes_nothing() {
    let backend = backend().await;
    let mut config = with_keys(config(&[&backend]));
    config.identity.user_header = UserHeader::Off;
    let gateway = start(config).await;
    post_with(&gateway, "/generate", PROMPT, &[("x-user-id", "alice")]).await;
    let alice = get(&gateway, "/rate-limits/user:alice").await.json();
    assert_eq!(alice["per_user"]["remaining"], 100);
    let address = get(&gateway, "/rate-limits/ip:127.0.0.1").await.json();
    assert_eq!(address["per_ip"]["remaining"], 199);
}

#[tokio::test]
async fn nobody_is_trusted_to_name_an_address_unless_told_so() {
    let backend = backend().await;
    let forwarded = [("x-forwarded-for", "198.51.100.7")];
    let mut config = with_keys(config(&[&backend]));
    for (trusted, counted) in [
        (vec![], "127.0.0.1"),
        (vec!["127.0.0.0/8".to_owned()], "198.51.100.7"),
    ] {
        config.identity.trusted_proxies = trusted;
        let gateway = start(config.clone()).await;
        post_with(&gateway, "/generate", PROMPT, &forwarded).await;
        let state = get(&gateway, &format!("/rate-limits/ip:{counted}"))
            .await
            .json();
        assert_eq!(state["per_ip"]["remaining"], 199, "{counted}");
    }
}
