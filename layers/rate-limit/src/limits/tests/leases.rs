//! What is taken at once and spent here.

use super::*;

#[tokio::test(start_paused = true)]
async fn leases_save_trips_and_never_give_more_than_the_quota() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(1000).leased(32)]);
    assert_eq!(admitted(&limit, "alice", 960).await, 960);
    let trips = store.trips();
    assert!(trips <= 960 / 24 + 1, "{trips} trips");
    let more = admitted(&limit, "alice", 1000).await;
    assert_eq!(960 + more, 1000);
    assert!(
        store.trips() < trips + 10,
        "an empty quota is not asked for each request"
    );
}

#[tokio::test(start_paused = true)]
async fn many_who_find_a_lease_used_up_ask_for_one() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(1000).leased(64)]);
    let requests = (0..64).map(|_| {
        let limit = limit.clone();
        tokio::spawn(async move { ask(&limit, &from("alice")).await.is_ok() })
    });
    let requests: Vec<_> = requests.collect();
    for request in requests {
        assert!(request.await.unwrap());
    }
    upkeep().await;
    // The first, and the one that is asked for when it is nearly used up.
    assert!((1..=2).contains(&store.leases.load(SeqCst)));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_a_lease_is_asked_for_keeps_nobody_waiting() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(1000).leased(64)]);
    store.set(Mood::Hangs);
    let (first, second) = (from("alice"), from("alice"));
    let left = timeout(5 * MS, ask(&limit, &first));
    let stays = ask(&limit, &second);
    let (left, stays) = tokio::join!(left, stays);
    assert!(left.is_err());
    // By policy: the share of this process.
    assert!(stays.is_ok());
    assert_eq!(store.leases.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_lost_when_it_is_over() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(100).leased(20)]);
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    advance(LEASE - MS).await;
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    assert_eq!(store.leases.load(SeqCst), 1);
    advance(MS).await;
    assert_eq!(admitted(&limit, "alice", 1).await, 1);
    assert_eq!(store.leases.load(SeqCst), 2);
    assert_eq!(100 - 2 * 20, {
        let state = limit.handle().peek_store("per_user", &"alice".into()).await;
        state.unwrap().unwrap().remaining
    });
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_the_store_does_not_answer_for_is_decided_by_policy() {
    for (policy, passes) in [(OnStoreError::Allow, true), (OnStoreError::Deny, false)] {
        for mood in [Mood::Hangs, Mood::Fails] {
            let store = Scripted::new(1);
            let limit = limit(&store, [per_user(100).leased(20).on_store_error(policy)]);
            store.set(mood);
            let asked = time::now();
            let answer = ask(&limit, &from("alice")).await;
            assert!(asked.elapsed() <= DEADLINE);
            assert_eq!(answer.is_ok(), passes);
            if !passes {
                assert_eq!(reason(answer), Reason::StoreUnavailable);
            }
        }
    }
    let store = Scripted::new(1);
    store.runs.store(false, SeqCst);
    let limit = limit(
        &store,
        [per_user(100).leased(20).on_store_error(OnStoreError::Deny)],
    );
    assert_eq!(
        reason(ask(&limit, &from("alice")).await),
        Reason::StoreUnavailable
    );
}

#[tokio::test(start_paused = true)]
async fn strict_leases_leave_out_what_they_could_exceed_the_quota_by() {
    // Two processes hold their leases to the end of the window and spend them after its turn.
    for (strict, most) in [(false, 140), (true, 100)] {
        let store = Scripted::new(2);
        let mut rule = per_user(100).leased(20);
        if strict {
            rule = rule.strict();
        }
        let both = [limit(&store, [rule.clone()]), limit(&store, [rule])];
        advance(Duration::from_secs(3600) - 100 * MS).await;
        for process in &both {
            assert_eq!(admitted(process, "alice", 1).await, 1);
        }
        advance(100 * MS).await;
        let mut passed = 0;
        for _ in 0..50 {
            for process in &both {
                passed += admitted(process, "alice", 10).await;
            }
            advance(20 * MS).await;
        }
        assert!(passed <= most, "{passed} of {most}, strict: {strict}");
        assert!(passed >= 60, "{passed}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_leased_is_given_back_when_another_rule_refuses() {
    let store = Scripted::new(1);
    let global = Rule::new("global", Quota::per_hour(1000)).strategy(Strategy::FixedWindow);
    let places = Rule::in_flight("places", 1).key(key::header("x-user-id"));
    let limit = limit(&store, [global.leased(20), places]);
    let held = ask(&limit, &from("alice")).await.unwrap();
    advance(MS).await;
    assert_eq!(admitted(&limit, "alice", 100).await, 0);
    assert_eq!(
        store.leases.load(SeqCst),
        1,
        "the lease was spent by who was refused"
    );
    let rules = limit.handle().snapshot().rules;
    assert_eq!((rules[0].admitted, rules[1].admitted), (1, 1));
    assert_eq!((rules[0].refused, rules[1].refused), (0, 100));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_no_way_around_what_passed_without_the_store() {
    let store = Scripted::new(1);
    let limit = limit(&store, [per_user(100).leased(20)]);
    store.up.store(false, SeqCst);
    assert_eq!(admitted(&limit, "alice", 200).await, 100);
    store.up.store(true, SeqCst);
    assert_eq!(admitted(&limit, "alice", 200).await, 0);
    advance(Duration::from_secs(3600)).await;
    assert_eq!(admitted(&limit, "alice", 100).await, 100);
    assert!(store.leases.load(SeqCst) > 0);
}

#[test]
fn a_lease_cannot_be_drained() {
    let rule = per_user(100).leased(10).drain_on_overload();
    assert!(matches!(
        RateLimit::rules([rule]),
        Err(RuleError::CannotLease(_))
    ));
}
