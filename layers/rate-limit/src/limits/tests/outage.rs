//! A store that does not answer, and one that is back.

use super::*;

#[tokio::test(start_paused = true)]
async fn processes_that_share_a_store_admit_exactly_the_limit() {
    let store = Scripted::new(2);
    let both = [limit(&store, [per_user(10)]), limit(&store, [per_user(10)])];
    let mut passed = 0;
    for turn in 0..30 {
        passed += admitted(&both[turn % 2], "alice", 1).await;
    }
    assert_eq!(passed, 10);
    assert_eq!(admitted(&both[0], "bob", 1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_waited_for_no_longer_than_its_deadline() {
    for (policy, passes) in [
        (OnStoreError::Allow, true),
        (OnStoreError::Deny, false),
        (OnStoreError::LocalShare, true),
    ] {
        let store = Scripted::new(4);
        let limit = limit(&store, [per_user(100).on_store_error(policy)]);
        assert_eq!(admitted(&limit, "alice", 1).await, 1);
        store.set(Mood::Hangs);
        let asked = time::now();
        let answer = ask(&limit, &from("alice")).await;
        assert_eq!(asked.elapsed(), DEADLINE, "{policy:?}");
        assert_eq!(answer.is_ok(), passes, "{policy:?}");
        if let Err(refused) = answer {
            assert_eq!(refused.reason(), Reason::StoreUnavailable);
            assert_eq!(refused.delay(), Some(Duration::from_secs(1)));
            assert_eq!(refused.policy(), Some("per_user"));
        }
        // Known to be down, it is not asked, and nobody waits.
        store.up.store(false, SeqCst);
        let (asked, trips) = (time::now(), store.trips());
        assert_eq!(ask(&limit, &from("alice")).await.is_ok(), passes);
        assert_eq!((asked.elapsed(), store.trips()), (Duration::ZERO, trips));
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_store_all_processes_together_keep_to_the_limit() {
    let store = Scripted::new(4);
    let processes: Vec<_> = (0..4).map(|_| limit(&store, [per_user(100)])).collect();
    for process in &processes {
        // As often as a process hears how all have used it.
        assert_eq!(admitted(process, "alice", 10).await, 10);
    }
    store.up.store(false, SeqCst);
    let mut without = 0;
    for process in &processes {
        let mine = admitted(process, "alice", 100).await;
        assert!(mine <= 25, "{mine} of a share of 25");
        without += mine;
    }
    // Each knows of what was used when it was told last, and so of 10 to 40: together a quarter of 30, 20 and 10 less
    // than there was, and what rounding leaves of a share.
    assert!(40 + without <= 100 + 15 + 3, "{without} besides 40");
    assert!(without >= 60, "{without}");

    // Who was never heard of has the share too, and no more.
    let mut cold = 0;
    for process in &processes {
        cold += admitted(process, "bob", 100).await;
    }
    assert_eq!(cold, 100);
}

#[tokio::test(start_paused = true)]
async fn what_passed_without_the_store_still_counts_when_it_is_back() {
    let store = Scripted::new(2);
    let limit = limit(&store, [per_user(10)]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 10).await, 5);
    store.up.store(true, SeqCst);
    let refused = ask(&limit, &from("alice")).await;
    assert_eq!(reason(refused), Reason::RateLimited);
    assert_eq!(store.trips(), 0, "refused here");
    // A window later, the store alone decides.
    advance(Duration::from_secs(3600)).await;
    assert_eq!(admitted(&limit, "alice", 11).await, 10);
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_let_all_pass_is_decided_by_the_store_alone_when_it_is_back() {
    let store = Scripted::new(2);
    let rule = per_user(10).on_store_error(OnStoreError::Allow);
    let limit = limit(&store, [rule]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 30).await, 30);
    store.up.store(true, SeqCst);
    assert_eq!(admitted(&limit, "alice", 30).await, 10);
}

#[tokio::test(start_paused = true)]
async fn one_question_without_an_answer_is_no_outage() {
    let store = Scripted::new(4);
    let limit = limit(&store, [per_user(10)]);
    store.set(Mood::Hangs);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    store.set(Mood::Answers);
    // Not held to its share of two.
    assert_eq!(admitted(&limit, "alice", 30).await, 10);
}

#[tokio::test(start_paused = true)]
async fn the_share_follows_the_number_of_processes() {
    let store = Scripted::new(2);
    let limit = limit(&store, [per_user(100)]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 100).await, 50);
    store.replicas.store(5, SeqCst);
    assert_eq!(admitted(&limit, "alice", 100).await, 0);
    assert_eq!(admitted(&limit, "bob", 100).await, 20);
    store.replicas.store(1, SeqCst);
    assert_eq!(admitted(&limit, "alice", 100).await, 50);
}

#[tokio::test(start_paused = true)]
async fn looking_at_a_store_that_is_down_is_an_error_and_a_reset_is_made_here() {
    let store = Scripted::new(2);
    let limit = limit(&store, [per_user(10)]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 10).await, 5);
    store.set(Mood::Fails);
    let handle = limit.handle();
    assert!(
        handle
            .peek_store("per_user", &"alice".into())
            .await
            .is_err()
    );
    assert!(handle.reset_store(None, &"alice".into()).await.is_err());
    assert_eq!(admitted(&limit, "alice", 10).await, 5);
    assert_eq!(
        handle.peek_store("no_such_rule", &"alice".into()).await,
        Ok(None)
    );
}

#[tokio::test(start_paused = true)]
async fn who_waited_until_the_store_was_back_is_counted_there_under_its_own_key() {
    let store = Scripted::new(2);
    let rule = Rule::new("bucket", Quota::per_second(2).burst(2)).key(key::header("x-user-id"));
    let limit = limit(&store, [rule]).wait_up_to(Duration::from_secs(5), 100);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    let waits = tokio::spawn({
        let limit = limit.clone();
        async move { ask(&limit, &from("alice")).await.is_ok() }
    });
    upkeep().await;
    assert_eq!(limit.handle().snapshot().waiting, 1);
    store.up.store(true, SeqCst);
    assert!(waits.await.unwrap());
    let counts = store.counts.lock().unwrap();
    let subjects: Vec<_> = counts.keys().map(|(_, subject)| *subject).collect();
    assert_eq!(subjects, [store.subject(&"alice".into())]);
}

#[tokio::test(start_paused = true)]
async fn what_one_without_a_seat_has_used_in_the_store_is_not_held_against_others() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(100).capacity(1)]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    store.up.store(true, SeqCst);
    assert_eq!(admitted(&limit, "bob", 100).await, 100);
    assert_eq!(admitted(&limit, "carol", 200).await, 100);
}

#[tokio::test(start_paused = true)]
async fn who_has_no_seat_here_keeps_its_tier_in_the_store() {
    let store = Scripted::new(1);
    let rule = per_user(2)
        .tier("premium", Quota::per_hour(50), |key| *key == "bob".into())
        .capacity(1);
    let limit = limit(&store, [rule]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    store.up.store(true, SeqCst);
    assert_eq!(admitted(&limit, "bob", 60).await, 50);
}

#[tokio::test(start_paused = true)]
async fn a_quota_is_not_divided_while_somebody_changes_it() {
    let store = Scripted::new(1);
    let config = Config {
        rules: vec![per_user(100)],
        headers: Headers::Standard,
        name: "rate_limit".into(),
        pacing: None,
        central: Some(Arc::new(store.clone())),
    };
    let limits = Limits::new(config, time::now()).unwrap();
    let (request, alice) = (from("alice"), Key::from("alice"));
    let look = || {
        limits.describe(&(&request).into(), &mut http::HeaderMap::new(), time::now());
        let state = limits.peek_key(&limits.limits[0], &alice, time::now());
        state.remaining
    };
    store.replicas.store(4, SeqCst);
    let changing = limits.changing.lock().unwrap();
    assert_eq!(
        look(),
        100,
        "or a share of the earlier quota could come last"
    );
    drop(changing);
    assert_eq!(look(), 25);
}
