use super::*;
use crate::config::{Config, Fault, parse};

/// A rule without a mistake, to which others are added.
const RULE: &str = "[[rate_limits]]\nname = \"r\"\nidentifier = \"user\"\nmax_requests = 10\n";

/// What is wrong with a file: line, setting, and all that is said about it.
fn faults(text: &str) -> Vec<(usize, String, String)> {
    let faults = parse(text).err().unwrap_or_default().into_iter();
    let told = |fault: Fault| {
        let said = fault.to_string();
        (fault.line, fault.mistake.path, said)
    };
    faults.map(told).collect()
}

#[test]
fn every_mistake_of_a_rule_has_its_place_and_a_hint() {
    let hour = "window = \"1h\"\n";
    for (text, path, says) in [
        ("window = \"10ms\"\n", "window", "for example \"60s\""),
        ("window = \"8000h\"\n", "window", "104 days"),
        (
            "strategy = \"in_flight\"\nwindow = \"1h\"\n",
            "window",
            "no window",
        ),
        ("burst = 3\n", "burst", "only `token_bucket`"),
        (
            "strategy = \"token_bucket\"\nburst = 0\n",
            "burst",
            "at least 1",
        ),
        (
            "strategy = \"token_bucket\"\nburst = 5000000000\n",
            "burst",
            "above 4294967295",
        ),
        ("unit = \"money\"\n", "unit", "[prices.default]"),
        (
            "unit = \"tokens\"\nstrategy = \"token_bucket\"\n",
            "strategy",
            "sliding_window",
        ),
        (
            "unit = \"tokens\"\nstrategy = \"sliding_log\"\n",
            "strategy",
            "sliding_window",
        ),
        (
            "unit = \"tokens\"\nstrategy = \"in_flight\"\n",
            "strategy",
            "sliding_window",
        ),
        ("estimate = \"learned\"\n", "estimate", "tokens"),
        ("growing = true\n", "growing", "tokens"),
        ("warm_up = \"0s\"\n", "warm_up", "is 0"),
        (
            "unit = \"tokens\"\nwarm_up = \"30s\"\n",
            "warm_up",
            "rates of requests",
        ),
        (
            "strategy = \"in_flight\"\nwarm_up = \"30s\"\n",
            "warm_up",
            "rates of requests",
        ),
        (
            "strategy = \"in_flight\"\ndrain_on_overload = true\n",
            "drain_on_overload",
            "drained",
        ),
        ("capacity = 0\n", "capacity", "0 would"),
        ("lease = 0\n", "lease", "for example 32"),
        ("local = true\nlease = 3\n", "lease", "no store"),
        (
            "strategy = \"sliding_log\"\nlease = 3\n",
            "lease",
            "can be leased",
        ),
        ("unit = \"tokens\"\nlease = 3\n", "lease", "can be leased"),
        ("strict = true\n", "strict", "there is no `lease`"),
        (
            "adaptive = { grow = 1.5 }\n",
            "adaptive",
            "another strategy",
        ),
        (
            "strategy = \"adaptive\"\nadaptive = { grow = 1.0 }\n",
            "adaptive.grow",
            "above 1",
        ),
        (
            "strategy = \"adaptive\"\nadaptive = { shrink = 1 }\n",
            "adaptive.shrink",
            "below 1",
        ),
        (
            "strategy = \"adaptive\"\nadaptive = { threshold = 2 }\n",
            "adaptive.threshold",
            "0 and 1",
        ),
        (
            "strategy = \"adaptive\"\nadaptive = { interval = \"0s\" }\n",
            "adaptive.interval",
            "300s",
        ),
        (
            "strategy = \"adaptive\"\nadaptive = { samples = 0 }\n",
            "adaptive.samples",
            "at least 1",
        ),
        (
            "strategy = \"adaptive\"\nadaptive = { least = 11 }\n",
            "adaptive.least",
            "and the 10",
        ),
        (
            "strategy = \"adaptive\"\nadaptive = { least = 0 }\n",
            "adaptive.least",
            "between 1",
        ),
        (
            "strategy = \"adaptive\"\nadaptive = { most = 9 }\n",
            "adaptive.most",
            "below the 10",
        ),
        (
            "tiers = [{ name = \"basic\", max_requests = 1 }]\n",
            "tiers[0].name",
            "no other tier",
        ),
        (
            "tiers = [{ name = \"a b\", max_requests = 1 }]\n",
            "tiers[0].name",
            "letters",
        ),
        (
            "tiers = [{ name = \"a\", max_requests = 0 }]\n",
            "tiers[0].max_requests",
            "nobody",
        ),
        (
            "tiers = [{ name = \"a\", max_requests = 1, burst = 2 }]\n",
            "tiers[0].burst",
            "token_bucket",
        ),
        (
            "tiers = [{ name = \"a\", max_requests = 1 }, { name = \"a\", max_requests = 1 }]\n",
            "tiers[1].name",
            "twice",
        ),
        (
            "strategy = \"adaptive\"\ntiers = [{ name = \"a\", max_requests = 1 }]\n",
            "tiers[0].name",
            "one limit for all",
        ),
        (
            "exceptions = [{ identifier = \"alice\", max_requests = 1 }]\n",
            "exceptions[0].identifier",
            "`user:NAME`",
        ),
        (
            "exceptions = [{ identifier = \"ip:10.0.0.1\", max_requests = 1 }]\n",
            "exceptions[0].identifier",
            "never counts `ip:10.0.0.1`",
        ),
        (
            "exceptions = [{ identifier = \"user:a\", max_requests = 1 }, { identifier = \"user:a\", max_requests = 1 }]\n",
            "exceptions[1].identifier",
            "twice",
        ),
        (
            "exceptions = [{ identifier = \"user:a\", max_requests = 1.5 }]\n",
            "exceptions[0].max_requests",
            "whole number",
        ),
        (
            "strategy = \"adaptive\"\nexceptions = [{ identifier = \"user:a\", max_requests = 1 }]\n",
            "exceptions[0].identifier",
            "one limit for all",
        ),
    ] {
        let needs_none = text.contains("window = ") || text.contains("in_flight");
        let window = if needs_none { "" } else { hour };
        let found = faults(&format!("{RULE}{window}{text}"));
        let line = 4 + window.lines().count() + text.lines().count();
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
        let (at, of, said) = &found[0];
        assert_eq!(*of, format!("rate_limits[0].{path}"), "{text}");
        // What is wrong stands last in each.
        assert_eq!(*at, line, "{text}: {said}");
        assert!(said.contains(says), "{text}: {said}");
    }
}

#[test]
fn mistakes_in_numbers_and_names_have_their_places_too() {
    for (text, path, line, says) in [
        (RULE.to_owned(), "rate_limits[0].window", 1, "is missing"),
        (
            RULE.replace("10", "0") + "window = \"1h\"",
            "rate_limits[0].max_requests",
            4,
            "admits nobody",
        ),
        (
            RULE.replace("10", "-1") + "window = \"1h\"",
            "rate_limits[0].max_requests",
            4,
            "whole number",
        ),
        (
            RULE.replace("10", "2.5") + "window = \"1h\"",
            "rate_limits[0].max_requests",
            4,
            "only `unit = \"money\"` has fractions",
        ),
        (
            RULE.replace("10", "\"10\"") + "window = \"1h\"",
            "rate_limits[0].max_requests",
            4,
            "expected a number",
        ),
        (
            RULE.replace("10", "10001") + "window = \"1h\"\nstrategy = \"sliding_log\"",
            "rate_limits[0].max_requests",
            4,
            "at most 10000",
        ),
        (
            RULE.replace("10", "1e9")
                + "window = \"1h\"\nunit = \"money\"\n[prices.m]\nprompt = 1\ncompletion = 1",
            "rate_limits[0].max_requests",
            4,
            "an amount of money",
        ),
        (
            RULE.replace("\"user\"", "\"global\"") + "window = \"1h\"\ncapacity = 3",
            "rate_limits[0].capacity",
            6,
            "counts nobody apart",
        ),
        (
            RULE.replace("\"user\"", "\"ip\"")
                + "window = \"1h\"\ntiers = [{ name = \"gold\", max_requests = 3 }]",
            "rate_limits[0].tiers[0].name",
            6,
            "identity.keys",
        ),
        (
            (0..9)
                .map(|at| RULE.replace("\"r\"", &format!("\"r{at}\"")) + "window = \"1h\"\n")
                .collect(),
            "rate_limits[8].name",
            42,
            "more than 8 rules",
        ),
        (
            "[[identity.keys]]\nkey = \"k\"\ntier = \"gold\"".into(),
            "identity.keys[0].tier",
            3,
            "no rule has a tier `gold`",
        ),
        (
            "[identity]\ntrusted_hops = 1\ntrusted_proxies = [\"10.0.0.0/8\"]".into(),
            "identity.trusted_hops",
            2,
            "by their addresses or by their number",
        ),
        (
            "[identity]\nforwarded = \"forwarded\"".into(),
            "identity.forwarded",
            2,
            "`trusted_proxies` or `trusted_hops`",
        ),
        (
            "[identity]\nipv6_prefix = 16".into(),
            "identity.ipv6_prefix",
            2,
            "64",
        ),
        (
            "wait_up_to = \"1s\"\nwaiting = 0".into(),
            "waiting",
            2,
            "how many may wait",
        ),
        (
            "[prices.\"gpt-3.5-turbo\"]\nprompt = 1\ncompletion = -1".into(),
            "prices.\"gpt-3.5-turbo\".completion",
            3,
            "not a price",
        ),
        (
            "[redis]\nprefix = \"p\"".into(),
            "redis",
            1,
            "neither `url` nor `cluster`",
        ),
        (
            "[redis]\nurl = \"http://:hunter2@localhost\"".into(),
            "redis.url",
            2,
            "redis://",
        ),
        ("[redis]\nurl = 5".into(), "redis.url", 2, "a text"),
    ] {
        let found = faults(&text);
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
        let (at, of, said) = &found[0];
        assert_eq!((&**of, *at), (path, line), "{text}: {said}");
        assert!(said.contains(says) && !said.contains("hunter2"), "{said}");
    }
}

#[test]
fn a_model_with_a_dot_in_its_name_needs_quotes_and_is_told_so() {
    let found = faults("[prices.gpt-3.5-turbo]\nprompt = 1\ncompletion = 1\n");
    let hinted = |(_, _, said): &(usize, String, String)| said.contains("needs quotes");
    assert!(!found.is_empty() && found.iter().all(hinted), "{found:#?}");
}

#[test]
fn all_that_can_be_set_is_printed_as_it_was_read() {
    let text = "wait_up_to = \"2s\"\nwaiting = 7\n\
        [redis]\nurl = \"redis://127.0.0.1:6379/1\"\nprefix = \"p\"\ndeadline = \"10ms\"\n\
        [prices.default]\nprompt = 1.5\ncompletion = 2\n\
        [prices.\"gpt-3.5-turbo\"]\nprompt = 0.5\ncompletion = 1.5\n\
        [identity]\ntrusted_hops = 2\nforwarded = \"x-forwarded-for\"\nipv6_prefix = 56\n\
        [[rate_limits]]\nname = \"a\"\nidentifier = \"user\"\nstrategy = \"token_bucket\"\nmax_requests = 10\n\
        window = \"1m\"\nburst = 20\nmode = \"shadow\"\nwarm_up = \"30s\"\n\
        on_store_error = \"deny\"\nlease = 32\nstrict = true\ncapacity = 500\n\
        [[rate_limits.tiers]]\nname = \"gold\"\nmax_requests = 50\nburst = 60\n\
        [[rate_limits.exceptions]]\nidentifier = \"user:alice\"\nmax_requests = 5\n\
        [[rate_limits]]\nname = \"b\"\nidentifier = \"model\"\nunit = \"money\"\nmax_requests = 2.5\n\
        window = \"24h\"\nestimate = \"learned\"\ngrowing = true\nlocal = true\n\
        [[rate_limits]]\nname = \"c\"\nidentifier = \"key\"\nstrategy = \"adaptive\"\nmax_requests = 100\n\
        window = \"1m\"\nadaptive = { least = 5, most = 500, grow = 1.5, shrink = 0.5, threshold = 0.9, interval = \"60s\", samples = 9 }\n\
        [[rate_limits]]\nname = \"d\"\nidentifier = \"premium\"\nstrategy = \"in_flight\"\nmax_requests = 4\n\
        [[rate_limits]]\nname = \"e\"\nidentifier = \"ip\"\nstrategy = \"sliding_log\"\nmax_requests = 4\nwindow = \"1m\"\n\
        drain_on_overload = true\non_store_error = \"allow\"\n\
        [[rate_limits]]\nname = \"f\"\nidentifier = \"global\"\nunit = \"tokens\"\nstrategy = \"fixed_window\"\n\
        max_requests = 4\nwindow = \"1m\"\nestimate = \"most\"\n";
    let read = parse(text).unwrap();
    let printed = read.to_toml().unwrap();
    assert_eq!(parse(&printed), Ok(read), "{printed}");
    // And what is as it is by itself stands in nobody's way.
    let default = Config::default().to_toml().unwrap();
    for name in [
        "unit", "mode", "lease", "tiers", "redis", "prices", "capacity",
    ] {
        assert!(!default.contains(name), "{default}");
    }
}

#[test]
fn every_adjective_of_a_rule_is_known_to_the_layer() {
    for (strategy, name) in [
        (LimitStrategy::SlidingWindow, "sliding_window"),
        (LimitStrategy::FixedWindow, "fixed_window"),
        (LimitStrategy::TokenBucket, "token_bucket"),
        (LimitStrategy::SlidingLog, "sliding_log"),
        (LimitStrategy::Adaptive, "adaptive"),
        (LimitStrategy::InFlight, "in_flight"),
    ] {
        assert_eq!(strategy.name(), name);
        assert_eq!(serde_json::to_value(strategy).unwrap(), name);
    }
    for (policy, name) in [
        (OnStoreError::LocalShare, "local_share"),
        (OnStoreError::Allow, "allow"),
        (OnStoreError::Deny, "deny"),
    ] {
        assert_eq!(
            palisade::rate_limit::OnStoreError::from(policy).name(),
            name
        );
        assert_eq!(serde_json::to_value(policy).unwrap(), name);
    }
}
