use http::HeaderValue;
use palisade_core::time::to_wall_clock;
use proptest::prelude::*;

use super::*;

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| {
        let name: HeaderName = name.parse().unwrap();
        (name, HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    let mut headers = HeaderMap::new();
    for (name, value) in lines.iter().map(line) {
        headers.append(name, value);
    }
    headers
}

/// Each quota in one line: policy, partition, unit, refill, what remains, limit, window and reset in milliseconds.
fn told(lines: &[(&str, &str)]) -> Vec<String> {
    let headers = headers(lines);
    let reading = Reading::of(&headers);
    let line = |told: &Told<'_>| {
        let partition = told
            .partition
            .map(|key| format!("/{key}"))
            .unwrap_or_default();
        let of = told
            .limit
            .map(|limit| format!(" of {limit}"))
            .unwrap_or_default();
        let per = told
            .window
            .map(|window| format!(" per {}", window / 1_000_000))
            .unwrap_or_default();
        let evenly = if told.refill == Refill::Evenly {
            " evenly"
        } else {
            ""
        };
        let (name, unit) = (told.policy.keep(), told.unit);
        let reset = told.reset / 1_000_000;
        format!(
            "{name}{partition} {:?} {}{of}{per} in {reset}{evenly}",
            unit, told.remaining
        )
    };
    reading.quotas().map(line).collect()
}

#[test]
fn the_field_of_the_draft_is_read_with_its_policies() {
    assert_eq!(
        told(&[
            (
                "ratelimit-policy",
                r#""burst";q=100;w=60, "day";q=1000;w=86400;qu="requests""#
            ),
            (
                "ratelimit-policy",
                r#""in";q=5000;w=60;qu="tokens", "io";q=9;qu="content-bytes""#
            ),
            ("ratelimit-policy", r#""c";q=3;qu="concurrent-requests""#),
            (
                "ratelimit",
                r#""burst";r=50;t=30, "day";r=400, "io";r=3;t=1, "c";r=0, "other";r=0"#
            ),
            ("ratelimit", r#""in";r=20;t=1.5;vendor-x=(1 2)"#),
            ("ratelimit", r#""in";r=20;t=1.5;vendor-x=?1"#),
        ]),
        [
            "burst Requests 50 of 100 per 60000 in 30000",
            "day Requests 400 of 1000 per 86400000 in 86400000",
            "io Requests 3 of 9 in 1000",
            "in Tokens 20 of 5000 per 60000 in 1500",
        ],
        "parameters hold no lists, so that line is malformed; without an end a quota cannot be waited for"
    );
}

#[test]
fn partitions_are_told_apart_and_described_apart() {
    assert_eq!(
        told(&[
            (
                "ratelimit-policy",
                r#""u";q=10;w=1;pk=:YQ==:, "u";q=20;w=1;pk=:Yg==:, "v";q=5"#
            ),
            (
                "ratelimit",
                r#""u";r=1;t=1;pk=:YQ==:, "u";r=2;t=1;pk=:Yg==:, "v";r=3;t=1;pk="x""#
            ),
        ]),
        [
            "u/YQ== Requests 1 of 10 per 1000 in 1000",
            "u/Yg== Requests 2 of 20 per 1000 in 1000",
            "v/x Requests 3 of 5 in 1000",
        ]
    );
}

#[test]
fn older_drafts_are_read_too() {
    for (lines, says) in [
        // 08 and 09: tokens as names.
        (
            &[("ratelimit", "default;r=50;t=30")][..],
            "default Requests 50 in 30000",
        ),
        // 07: a dictionary.
        (
            &[("ratelimit", "limit=100, remaining=50, reset=5")],
            "ratelimit Requests 50 of 100 in 5000",
        ),
        // 03 to 06: three fields, and more about the policy in the first.
        (
            &[
                ("ratelimit-limit", "100, 100;w=60"),
                ("ratelimit-remaining", "7"),
                ("ratelimit-reset", "50"),
                ("x-ratelimit-remaining", "8"),
                ("x-ratelimit-reset", "50"),
            ],
            "ratelimit Requests 7 of 100 in 50000",
        ),
    ] {
        assert_eq!(told(lines), [says]);
    }
}

#[test]
fn the_headers_of_well_known_services_are_read() {
    const DATE: (&str, &str) = ("date", "Tue, 14 Nov 2023 22:13:20 GMT");
    assert_eq!(
        told(&[
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-requests", "1s"),
            ("x-ratelimit-limit-tokens", "150000"),
            ("x-ratelimit-remaining-tokens", "149984"),
            ("x-ratelimit-reset-tokens", "1m2.5s"),
        ]),
        [
            "x-ratelimit-requests Requests 59 of 60 in 1000 evenly",
            "x-ratelimit-tokens Tokens 149984 of 150000 in 62500 evenly",
        ]
    );
    assert_eq!(
        told(&[
            DATE,
            ("x-ratelimit-limit", "5000"),
            ("x-ratelimit-remaining", "4987"),
            ("x-ratelimit-reset", "1700000300"),
            ("x-ratelimit-resource", "search"),
        ]),
        ["x-ratelimit/search Requests 4987 of 5000 in 300000"]
    );
    assert_eq!(
        told(&[
            DATE,
            ("anthropic-ratelimit-requests-limit", "1000"),
            ("anthropic-ratelimit-requests-remaining", "999"),
            ("anthropic-ratelimit-requests-reset", "2023-11-14T22:13:19Z"),
            ("anthropic-ratelimit-input-tokens-limit", "80000"),
            ("anthropic-ratelimit-input-tokens-remaining", "0"),
            (
                "anthropic-ratelimit-input-tokens-reset",
                "2023-11-14T22:14:20Z"
            ),
        ]),
        [
            "anthropic-ratelimit-requests Requests 999 of 1000 in 0 evenly",
            "anthropic-ratelimit-input-tokens Tokens 0 of 80000 in 60000 evenly",
        ]
    );
    // Reddit's numbers, and Twitter's names.
    assert_eq!(
        told(&[
            ("x-ratelimit-remaining", "598.0"),
            ("x-ratelimit-reset", "287")
        ]),
        ["x-ratelimit Requests 598 in 287000"]
    );
    assert_eq!(
        told(&[
            DATE,
            ("x-rate-limit-remaining", "14"),
            ("x-rate-limit-reset", "1700000001")
        ]),
        ["x-rate-limit Requests 14 in 1000"]
    );
}

#[test]
fn dates_are_measured_against_the_clock_that_wrote_them() {
    let lines = |date| {
        headers(&[
            ("date", date),
            ("retry-after", "Tue, 14 Nov 2023 22:13:30 GMT"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1700000010"),
        ])
    };
    // Wrong by two years, and yet ten seconds.
    let reading = lines("Tue, 14 Nov 2023 22:13:20 GMT");
    let reading = Reading::of(&reading);
    assert_eq!(reading.retry_after, Some(10 * SECOND));
    assert_eq!(reading.quotas().next().unwrap().reset, 10 * SECOND);
    // Of our clock only where the service does not tell its own.
    let broken = lines("today");
    assert_eq!(Reading::of(&broken).retry_after, Some(0));
}

#[test]
fn each_form_of_retry_after_is_read() {
    let soon = to_wall_clock(palisade_core::time::now() + Duration::from_secs(90));
    let soon = httpdate::HttpDate::from(soon).to_string();
    for (name, value, date, wants) in [
        ("retry-after", "30", None, 30),
        ("retry-after-ms", "2000", None, 2),
        (
            "retry-after",
            "Sun, 06 Nov 1994 08:49:37 GMT",
            Some("Sun, 06 Nov 1994 08:49:27 GMT"),
            10,
        ),
        (
            "retry-after",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            Some("Sun, 06 Nov 1994 08:49:27 GMT"),
            10,
        ),
        (
            "retry-after",
            "Sun Nov  6 08:49:37 1994",
            Some("Sun, 06 Nov 1994 08:49:27 GMT"),
            10,
        ),
        ("retry-after", &soon, None, 89),
    ] {
        let date = date.map(|date| ("date", date));
        let lines: Vec<_> = [(name, value)].into_iter().chain(date).collect();
        let headers = headers(&lines);
        let asked = Reading::of(&headers).retry_after.unwrap();
        // A date has no fractions of a second.
        assert!(
            (wants * SECOND..=(wants + 1) * SECOND).contains(&asked),
            "{value}: {asked}"
        );
    }
}

#[test]
fn what_is_malformed_says_nothing() {
    for lines in [
        &[("ratelimit", r#""a";r=1;t=1 "b";r=1;t=1"#)][..],
        &[(
            "ratelimit",
            r#""a";r=-1;t=1, 7;r=1;t=1, "b";t=1, "c";r="1";t=1, "d";r=1;t=-1, "e";r=1;t=-0.5"#,
        )],
        &[("ratelimit", r#""a";r=1;t="soon""#)],
        &[("ratelimit", "\u{e9}")],
        &[("ratelimit", "remaining=1"), ("ratelimit-remaining", "1")],
        &[("x-ratelimit-remaining", "-1"), ("x-ratelimit-reset", "1")],
        &[
            ("x-ratelimit-remaining", "1"),
            ("x-ratelimit-reset", "later"),
        ],
        &[
            ("x-ratelimit-remaining", "unlimited"),
            ("x-ratelimit-reset", "1"),
        ],
        &[
            ("x-ratelimit-remaining-tokens", "99999999999999999999"),
            ("x-ratelimit-reset-tokens", "1s"),
        ],
        // Kept by a cache: it tells of another time.
        &[("ratelimit", r#""a";r=1;t=1"#), ("age", "7")],
    ] {
        assert_eq!(told(lines), [""; 0], "{lines:?}");
    }
    assert_eq!(
        told(&[("ratelimit", r#""a";r=1;t=1"#), ("age", "0")]).len(),
        1
    );
}

#[test]
fn no_answer_silences_a_client_for_longer_than_a_day() {
    let lines = headers(&[
        ("ratelimit", r#""a";r=0;t=999999999999999"#),
        ("retry-after", "999999999999"),
    ]);
    let reading = Reading::of(&lines);
    assert_eq!(reading.retry_after, Some(LONGEST));
    assert_eq!(reading.quotas().next().unwrap().reset, LONGEST);
}

#[test]
fn no_more_quotas_are_read_than_are_kept() {
    let many: Vec<_> = (0..40).map(|name| format!("\"p{name}\";r=1;t=1")).collect();
    assert_eq!(told(&[("ratelimit", &many.join(","))]).len(), MOST);
}

#[test]
fn a_service_that_tells_of_thousands_is_not_heard_to_its_end() {
    // Else each of them would be held against each of the policies, and those are as many.
    let places: Vec<_> = (0..LOOKED_AT)
        .map(|name| format!("p{name};r=1;t=1;qu=\"concurrent-requests\""))
        .collect();
    let policies = places.join(",");
    let field = format!("{policies},last;r=1;t=1");
    assert_eq!(
        told(&[("ratelimit", &field), ("ratelimit-policy", &policies)]).len(),
        0
    );
    let heard = field.split_once(',').unwrap().1;
    assert_eq!(
        told(&[("ratelimit", heard), ("ratelimit-policy", &policies)]).len(),
        1
    );
}

proptest! {
    #[test]
    fn no_headers_make_it_panic(
        lines in prop::collection::vec((0..17_usize, prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            "[ -~]{0,40}".prop_map(String::into_bytes),
            "[0-9]{1,25}".prop_map(String::into_bytes),
            "\"[a-c]\";r=[0-9]{1,17};t=[0-9.]{1,17}(;pk=:[a-z]{1,3}:)?".prop_map(String::into_bytes),
        ]), 0..8),
    ) {
        const NAMES: [&str; 17] = [
            "ratelimit", "ratelimit-policy", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset",
            "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "x-ratelimit-resource",
            "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", "anthropic-ratelimit-tokens-remaining",
            "anthropic-ratelimit-tokens-reset", "retry-after", "retry-after-ms", "date", "age",
        ];
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.append(NAMES[name], value);
            }
        }
        let reading = Reading::of(&headers);
        for told in reading.quotas() {
            prop_assert!((0..=LONGEST).contains(&told.reset));
            prop_assert!(told.window.is_none_or(|window| (1..=LONGEST).contains(&window)));
        }
    }
}
