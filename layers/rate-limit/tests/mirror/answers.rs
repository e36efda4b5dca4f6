use std::time::Duration;

use palisade_core::{classify::Verdict, key::Key, settle::Settle, time::now};
use palisade_rate_limit::{Mirrored, QuotaMirror, QuotaUnit};
use proptest::prelude::*;
use tokio::time::advance;

use crate::{admit, answer, ended, judged, limited, to};

const SECOND: Duration = Duration::from_secs(1);
const BUSY: Option<Verdict> = Some(Verdict::Overload { retry_after: None });

fn known(mirror: &QuotaMirror) -> Mirrored {
    mirror.handle().snapshot(&Key::from("api")).unwrap()
}

fn left(mirror: &QuotaMirror) -> u64 {
    known(mirror).quotas[0].remaining
}

#[tokio::test(start_paused = true)]
async fn what_an_answer_tells_can_be_looked_at() {
    let mirror = QuotaMirror::new();
    let sent = admit(&mirror, &to("api")).unwrap();
    assert_eq!(known(&mirror).in_flight, 1);
    answer(
        sent,
        &[
            ("ratelimit-policy", r#""day";q=1000;w=86400"#),
            ("ratelimit", r#""day";r=400;t=3600;pk=:YQ==:"#),
            ("x-ratelimit-remaining-tokens", "7"),
            ("x-ratelimit-limit-tokens", "70"),
            ("x-ratelimit-reset-tokens", "1m3s"),
        ],
    );
    let mirrored = known(&mirror);
    assert_eq!(
        (mirrored.in_flight, mirrored.waiting, mirrored.retry_after),
        (0, 0, None)
    );
    let [day, tokens] = &mirrored.quotas[..] else {
        panic!("{mirrored:?}")
    };
    assert_eq!(
        (&*day.policy, day.partition.as_deref(), day.unit),
        ("day", Some("YQ=="), QuotaUnit::Requests)
    );
    assert_eq!(
        (day.limit, day.remaining, day.reset_after),
        (1000, 400, 3600 * SECOND)
    );
    assert_eq!(
        (&*tokens.policy, tokens.unit),
        ("x-ratelimit-tokens", QuotaUnit::Tokens)
    );
    advance(9 * SECOND).await;
    assert_eq!(
        known(&mirror).quotas[1].remaining,
        16,
        "one comes back each second"
    );
}

#[tokio::test(start_paused = true)]
async fn answers_that_come_out_of_order_never_raise_what_remains() {
    let mirror = QuotaMirror::new();
    let told = |sent, left: u32| {
        let line = format!("\"a\";r={left};t=60");
        answer(
            sent,
            &[
                ("ratelimit-policy", r#""a";q=100;w=60"#),
                ("ratelimit", &line),
            ],
        );
    };
    told(admit(&mirror, &to("api")).unwrap(), 99);
    let [first, second, third] = [(); 3].map(|()| admit(&mirror, &to("api")).unwrap());
    assert_eq!(left(&mirror), 96, "those on their way count");
    // Others have taken ten, between the first and the third.
    told(third, 86);
    assert_eq!(left(&mirror), 86);
    told(first, 98);
    told(second, 97);
    assert_eq!(left(&mirror), 86);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed_where_a_service_is_overloaded_and_nowhere_else() {
    const ASKS: &[(&str, &str)] = &[("retry-after", "7")];
    for (verdict, asked) in [
        (BUSY, true),
        (Some(Verdict::Failure), true),
        (Some(Verdict::CallerFault), false),
        // Work that goes on, to be asked for later.
        (None, false),
    ] {
        let mirror = QuotaMirror::new();
        judged(admit(&mirror, &to("api")).unwrap(), verdict, ASKS);
        assert_eq!(known(&mirror).retry_after.is_some(), asked, "{verdict:?}");
        match admit(&mirror, &to("api")) {
            Ok(_) => assert!(!asked),
            Err(refused) => {
                assert_eq!(limited(&refused).retry_after, 7 * SECOND);
                assert_eq!(&*limited(&refused).rule, "retry-after");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_judge_finds_at_the_end_of_a_stream_is_obeyed_too() {
    let mirror = QuotaMirror::new();
    let mut sent = admit(&mirror, &to("api")).unwrap();
    sent.decorate(&mut http::HeaderMap::new());
    let retry_after = Some(7 * SECOND);
    sent.finish(&ended(Verdict::Overload { retry_after }), now());
    assert_eq!(known(&mirror).retry_after, retry_after);
}

#[tokio::test(start_paused = true)]
async fn after_it_has_been_left_alone_a_service_hears_one_request_first() {
    let mirror = QuotaMirror::new().wait_up_to(Duration::ZERO);
    judged(
        admit(&mirror, &to("api")).unwrap(),
        BUSY,
        &[("retry-after", "7")],
    );
    advance(7 * SECOND).await;
    let first = admit(&mirror, &to("api")).unwrap();
    admit(&mirror, &to("api")).unwrap_err();
    answer(first, &[("server", "well")]);
    for _ in 0..9 {
        std::mem::forget(admit(&mirror, &to("api")).unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_service_asks_for_goes_before_what_our_clock_makes_of_it() {
    let mirror = QuotaMirror::new();
    let retry_after = Some(3600 * SECOND);
    let verdict = Some(Verdict::Overload { retry_after });
    let asks = [
        ("date", "Sun, 06 Nov 1994 08:49:30 GMT"),
        ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ];
    judged(admit(&mirror, &to("api")).unwrap(), verdict, &asks);
    assert_eq!(known(&mirror).retry_after, Some(7 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_further_in_does_not_say_that_a_service_is_well_again() {
    let mirror = QuotaMirror::new().wait_up_to(Duration::ZERO);
    judged(
        admit(&mirror, &to("api")).unwrap(),
        BUSY,
        &[("retry-after", "7")],
    );
    advance(7 * SECOND).await;
    for _ in 0..3 {
        let mut sent = admit(&mirror, &to("api")).unwrap();
        admit(&mirror, &to("api")).unwrap_err();
        sent.decorate(&mut http::HeaderMap::new());
        let reason = palisade_core::reject::Reason::NoEndpoint;
        sent.finish(&ended(Verdict::Refused(reason)), now());
    }
    assert_eq!(known(&mirror).retry_after, Some(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn retry_after_goes_before_the_reset_that_was_told_with_it() {
    let mirror = QuotaMirror::new().wait_up_to(Duration::ZERO);
    let told = &[("retry-after", "7"), ("ratelimit", r#""a";r=0;t=60"#)];
    judged(admit(&mirror, &to("api")).unwrap(), BUSY, told);
    advance(7 * SECOND).await;
    admit(&mirror, &to("api")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_word_of_it_changes_nothing_before_the_reset() {
    let mirror = QuotaMirror::new().wait_up_to(Duration::ZERO);
    let told = |left| [("ratelimit-policy", r#""a";q=9;w=9"#), ("ratelimit", left)];
    answer(admit(&mirror, &to("api")).unwrap(), &told(r#""a";r=1;t=9"#));
    answer(admit(&mirror, &to("api")).unwrap(), &[("server", "terse")]);
    assert_eq!(left(&mirror), 0);
    admit(&mirror, &to("api")).unwrap_err();
    // After it, what the service tells no more of is over.
    advance(9 * SECOND).await;
    answer(admit(&mirror, &to("api")).unwrap(), &[("server", "terse")]);
    assert_eq!(known(&mirror).quotas.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_a_layer_further_in_says_nothing_of_the_service() {
    let mirror = QuotaMirror::new().wait_up_to(Duration::ZERO);
    answer(
        admit(&mirror, &to("api")).unwrap(),
        &[("ratelimit", r#""a";r=0;t=9"#)],
    );
    advance(9 * SECOND).await;
    for _ in 0..3 {
        let mut sent = admit(&mirror, &to("api")).unwrap();
        sent.decorate(&mut http::HeaderMap::new());
        let reason = palisade_core::reject::Reason::CircuitOpen;
        sent.finish(&ended(Verdict::Refused(reason)), now());
        assert_eq!(
            (known(&mirror).quotas.len(), known(&mirror).in_flight),
            (1, 0)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_answers_make_it_panic_or_wait_for_longer_than_a_day(
        lines in prop::collection::vec((0..9_usize, "[ -~]{0,30}|[0-9]{1,20}|\"a\";r=[0-9]{1,16};t=[0-9]{1,16}"), 0..12),
        seconds in 0..100_000_u64,
    ) {
        const NAMES: [&str; 9] = [
            "ratelimit", "ratelimit-policy", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset",
            "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", "retry-after", "date",
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mirror = QuotaMirror::new().wait_up_to(Duration::ZERO).cost(|_| u64::MAX);
            for lines in lines.chunks(3) {
                let lines: Vec<_> = lines.iter().map(|(name, value)| (NAMES[*name], value.trim())).collect();
                match admit(&mirror, &to("api")) {
                    Ok(sent) => judged(sent, BUSY, &lines),
                    Err(refused) => assert!(limited(&refused).retry_after <= 2 * 86_400 * SECOND, "{refused:?}"),
                }
                advance(Duration::from_secs(seconds)).await;
            }
        });
    }
}
