//! What the store is asked, and who is told what.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_question_that_is_never_put_to_the_store_holds_nothing_here() {
    use palisade_core::gate::Gate;

    let store = Scripted::new(1);
    let place = Rule::in_flight("place", 1).local();
    let limit = limit(&store, [place, per_user(10)]);
    let request = from("alice");
    let asked = limit.admit(&(&request).into(), time::now());
    assert!(matches!(asked, Admit::Later(_)));
    drop(asked);
    assert_eq!(store.trips(), 0);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn who_was_refused_is_refused_here_for_a_second() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(2)]);
    assert_eq!(admitted(&limit, "alice", 3).await, 2);
    let trips = store.trips();
    let refused = ask(&limit, &from("alice")).await.unwrap_err();
    assert_eq!(refused.delay(), Some(Duration::from_secs(3600)));
    assert_eq!(admitted(&limit, "alice", 1000).await, 0);
    assert_eq!(store.trips(), trips);
    assert_eq!(admitted(&limit, "bob", 1).await, 1);

    advance(Duration::from_secs(1)).await;
    let trips = store.trips();
    assert_eq!(admitted(&limit, "alice", 100).await, 0);
    assert_eq!(store.trips(), trips + 1);

    // A reset shows at once where it was made.
    let handle = limit.handle();
    assert_eq!(handle.reset_store(None, &"alice".into()).await, Ok(1));
    assert_eq!(admitted(&limit, "alice", 3).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_rule_in_shadow_asks_no_store() {
    let store = Scripted::new(2);
    let shadow = per_user(4).mode(Mode::Shadow);
    let limit = limit(&store, [shadow]);
    assert_eq!(admitted(&limit, "alice", 10).await, 10);
    assert_eq!(store.trips(), 0);
    let rule = &limit.handle().snapshot().rules[0];
    assert_eq!((rule.admitted, rule.shadowed), (2, 8), "a share of two");
    limit.handle().set_mode("per_user", Mode::Enforce).unwrap();
    assert_eq!(admitted(&limit, "alice", 10).await, 4);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_adapts_follows_what_the_store_has_learned() {
    let store = Scripted::new(1);
    let rule = per_user(100).strategy(Strategy::Adaptive);
    let limit = limit(&store, [rule]);
    let end_in = async |verdict| {
        advance(Duration::from_secs(2)).await;
        for _ in 0..3 {
            end(ask(&limit, &from("alice")).await.unwrap(), verdict, None);
        }
        upkeep().await;
        limit
            .handle()
            .peek("per_user", &"alice".into())
            .unwrap()
            .limit
    };
    assert_eq!(end_in(Verdict::Success).await, 100);
    assert_eq!(end_in(Verdict::Failure).await, 10);
    let reports = store.reports.lock().unwrap();
    let sum = reports
        .iter()
        .fold((0, 0), |sum, ends| (sum.0 + ends.good, sum.1 + ends.bad));
    assert_eq!(reports.len(), 2, "once in a second");
    assert_eq!(sum, (3, 1), "the rest with the next report");
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_a_quota_that_the_store_counts() {
    let store = Scripted::new(1);
    let rule = Rule::new("bucket", Quota::per_second(10).burst(1)).key(key::header("x-user-id"));
    let limit = limit(&store, [rule]).wait_up_to(Duration::from_secs(2), 100);
    let start = time::now();
    let mut times = Vec::new();
    for _ in 0..4 {
        ask(&limit, &from("alice")).await.unwrap();
        times.push(start.elapsed().as_millis());
    }
    assert_eq!(times, [0, 100, 200, 300]);
}

#[test]
fn a_window_that_the_store_cannot_count_is_an_error() {
    let odd = Quota::new(5, Duration::from_nanos(1_500)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(async {
        let store = Scripted::new(1);
        let rule = Rule::new("odd", odd).strategy(Strategy::FixedWindow);
        let limit = RateLimit::rules([rule.clone()]).unwrap();
        assert!(limit.central(Arc::new(store.clone())).is_err());
        let limit = RateLimit::rules([rule.local()]).unwrap();
        assert!(limit.central(Arc::new(store)).is_ok());
    });
}

#[tokio::test(start_paused = true)]
async fn only_what_passed_is_counted_as_admitted_and_each_request_once() {
    let store = Scripted::new(1);
    let here = Rule::new("here", Quota::per_hour(100)).local();
    let limit = limit(&store, [here, per_user(10)]);
    let totals = || {
        let rules = limit.handle().snapshot().rules;
        rules
            .iter()
            .map(|rule| (rule.admitted, rule.refused))
            .collect::<Vec<_>>()
    };
    assert_eq!(admitted(&limit, "alice", 15).await, 10);
    assert_eq!(totals(), [(10, 0), (10, 5)]);
    // Counted here and there, after the store was down.
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "bob", 1).await, 1);
    store.up.store(true, SeqCst);
    assert_eq!(admitted(&limit, "bob", 1).await, 1);
    assert_eq!(totals(), [(12, 0), (12, 5)]);
    // A look takes nothing, and who is refused by it asks no more.
    assert!(limit.handle().preview(&(&from("alice")).into()).is_err());
    assert_eq!(totals(), [(12, 0), (12, 6)]);
    assert!(limit.handle().preview(&(&from("carol")).into()).is_ok());
    assert_eq!(totals(), [(12, 0), (12, 6)]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_refused_by_the_store_once() {
    let store = Scripted::new(1);
    let rule = Rule::new("bucket", Quota::per_second(10).burst(1)).key(key::header("x-user-id"));
    let limit = limit(&store, [rule]).wait_up_to(Duration::from_secs(9), 100);
    let requests = (0..4).map(|_| {
        let limit = limit.clone();
        tokio::spawn(async move { ask(&limit, &from("alice")).await.is_ok() })
    });
    for request in requests.collect::<Vec<_>>() {
        assert!(request.await.unwrap());
    }
    let rule = &limit.handle().snapshot().rules[0];
    assert!(rule.admitted == 4 && rule.refused <= 3, "{rule:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cost_that_never_fits_is_told_so_also_to_who_was_refused_a_moment_ago() {
    let store = Scripted::new(1);
    let cost = |head: &RequestHead<'_>| match head.headers.contains_key("x-large") {
        true => 3,
        false => 1,
    };
    let limit = limit(&store, [per_user(2).cost(cost)]);
    assert_eq!(admitted(&limit, "alice", 3).await, 2);
    let mut large = from("alice");
    large
        .headers_mut()
        .insert("x-large", "yes".parse().unwrap());
    assert_eq!(reason(ask(&limit, &large).await), Reason::CostExceedsQuota);
}

#[tokio::test(start_paused = true)]
async fn a_larger_quota_counts_at_once_for_who_was_refused_a_moment_ago() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(2)]);
    assert_eq!(admitted(&limit, "alice", 3).await, 2);
    limit
        .handle()
        .update("per_user", Quota::per_hour(5))
        .unwrap();
    assert_eq!(admitted(&limit, "alice", 4).await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_is_closed_before_the_store_is_asked_refuses() {
    use palisade_core::gate::Gate;

    let store = Scripted::new(1);
    let other = Rule::new("other", Quota::per_hour(100)).strategy(Strategy::FixedWindow);
    let limit = limit(&store, [per_user(10), other]);
    let request = from("alice");
    let Admit::Later(asked) = limit.admit(&(&request).into(), time::now()) else {
        panic!("the store has to be asked");
    };
    limit
        .handle()
        .update("per_user", Quota::per_hour(0))
        .unwrap();
    let refused = asked.await.unwrap_err();
    assert_eq!(refused.policy(), Some("per_user"));
    assert_eq!(store.trips(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_look_does_not_refuse_who_would_wait() {
    let rule = Rule::new("bucket", Quota::per_second(1));
    let limit = RateLimit::rules([rule]).unwrap();
    let patient = limit.clone().wait_up_to(Duration::from_secs(2), 9);
    for (limit, passes) in [(limit, false), (patient, true)] {
        assert_eq!(admitted(&limit, "alice", 1).await, 1);
        let looked = limit.handle().preview(&(&from("alice")).into());
        assert_eq!(looked.is_ok(), passes);
        let refused = limit.handle().snapshot().rules[0].refused;
        assert_eq!(refused, u64::from(!passes));
    }
}
