//! What becomes of what was taken.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_store_hears_of_a_place_that_ends_also_without_room_for_the_job() {
    let store = Scripted::new(1);
    let limit = limit(&store, [Rule::in_flight("place", 1)]);
    let reservation = ask(&limit, &from("alice")).await.unwrap();
    let before = store.trips();
    store.runs.store(false, SeqCst);
    end(reservation, Verdict::Success, None);
    assert_eq!(store.trips(), before + 1, "or it would be renewed for ever");
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_here_is_given_back_when_the_store_refuses() {
    let store = Scripted::new(1);
    let here = Rule::new("here", Quota::per_hour(100)).local();
    let bucket = here.clone();
    let rules = [
        Rule {
            name: "bucket".into(),
            ..bucket
        },
        here.strategy(Strategy::FixedWindow),
        per_user(2),
    ];
    let limit = limit(&store, rules);
    assert_eq!(admitted(&limit, "alice", 2).await, 2);
    advance(Duration::from_secs(2)).await;
    let left = |rule| {
        let state = limit.handle().peek(rule, &"".into());
        state.unwrap().remaining
    };
    let (before, refused) = (
        (left("bucket"), left("here")),
        ask(&limit, &from("alice")).await,
    );
    assert_eq!(reason(refused), Reason::RateLimited);
    assert_eq!((left("bucket"), left("here")), before);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_the_store_is_asked_gives_back_what_was_taken_here() {
    let store = Scripted::new(1);
    let here = Rule::new("here", Quota::per_hour(100))
        .strategy(Strategy::FixedWindow)
        .local();
    let places = Rule::in_flight("places", 3).key(key::header("x-user-id"));
    let limit = limit(&store, [here, per_user(10), places]);
    store.set(Mood::Hangs);
    let left = timeout(5 * MS, ask(&limit, &from("alice"))).await;
    assert!(left.is_err());
    store.set(Mood::Answers);
    upkeep().await;
    let state = limit.handle().peek("here", &"".into()).unwrap();
    assert_eq!(state.remaining, 100);
    // It may have got a place: nobody else would give that back. What it may have taken besides, stands.
    let changes = store.changes.lock().unwrap();
    let told: Vec<_> = changes
        .iter()
        .map(|change| (&*change.rule, change.used))
        .collect();
    assert_eq!(told, [("places", 0)]);
}

#[tokio::test(start_paused = true)]
async fn places_in_the_store_are_given_back_when_the_answer_has_ended() {
    let store = Scripted::new(1);
    let places = Rule::in_flight("places", 2).key(key::header("x-user-id"));
    let limit = limit(&store, [places]);
    let first = ask(&limit, &from("alice")).await.unwrap();
    let mut second = ask(&limit, &from("alice")).await.unwrap();
    assert!(ask(&limit, &from("alice")).await.is_err());
    // A verdict is not the end.
    second.settle(&End::new(Verdict::Failure), time::now());
    upkeep().await;
    advance(Duration::from_secs(1)).await;
    assert!(ask(&limit, &from("alice")).await.is_err());
    drop(second);
    upkeep().await;
    advance(Duration::from_secs(1)).await;
    let third = ask(&limit, &from("alice")).await.unwrap();
    drop((first, third));
    upkeep().await;
    let tickets: Vec<_> = store
        .changes
        .lock()
        .unwrap()
        .iter()
        .map(|change| change.ticket)
        .collect();
    assert_eq!(tickets.len(), 3);
    assert!(tickets[0] != tickets[1] && tickets[1] != tickets[2]);
}

#[tokio::test(start_paused = true)]
async fn costs_are_settled_in_the_store_exactly_once() {
    let store = Scripted::new(1);
    let tokens = Rule::tokens("tokens", Quota::per_hour(10_000)).key(key::header("x-user-id"));
    let limit = limit(&store, [tokens]);
    let request = |prompt, most| {
        let mut request = from("alice");
        let tokens = Tokens::new("m", prompt).max_completion(most);
        request.extensions_mut().insert(tokens);
        request
    };
    let used = |prompt, completion| Some(Usage { prompt, completion });
    let first = ask(&limit, &request(100, 900)).await.unwrap();
    let second = ask(&limit, &request(100, 900)).await.unwrap();
    let third = ask(&limit, &request(100, 900)).await.unwrap();
    let left = async |store: &RateLimit| {
        let state = store.handle().peek_store("tokens", &"alice".into()).await;
        state.unwrap().unwrap().remaining
    };
    assert_eq!(left(&limit).await, 7000);
    end(second, Verdict::Success, used(100, 50));
    end(first, Verdict::Success, used(100, 1900));
    end(third, Verdict::Unsent, None);
    upkeep().await;
    assert_eq!(left(&limit).await, 10_000 - 150 - 2000);
    assert_eq!(store.changes.lock().unwrap().len(), 3);
    // As reserved: nothing to settle.
    end(
        ask(&limit, &request(100, 900)).await.unwrap(),
        Verdict::Success,
        used(100, 900),
    );
    upkeep().await;
    assert_eq!(store.changes.lock().unwrap().len(), 3);
    // Where it cannot be settled, what was reserved stands.
    store.runs.store(false, SeqCst);
    end(
        ask(&limit, &request(100, 900)).await.unwrap(),
        Verdict::Success,
        used(1, 1),
    );
    assert_eq!(left(&limit).await, 10_000 - 150 - 2000 - 1000 - 1000);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_outgrows_its_reservation_asks_the_store_and_is_ended_when_it_refuses() {
    let store = Scripted::new(1);
    let tokens = Rule::tokens("tokens", Quota::per_hour(400))
        .key(key::header("x-user-id"))
        .estimate(Estimate::Learned)
        .growing();
    let limit = limit(&store, [tokens]);
    let mut request = from("alice");
    request
        .extensions_mut()
        .insert(Tokens::new("m", 10).max_completion(10_000));
    // 10 and the 256 of who is not known yet.
    let mut stream = ask(&limit, &request).await.unwrap();
    let mut streamed = 0;
    let refused = loop {
        streamed += 1;
        if let Err(refused) = stream.progress(streamed, time::now()) {
            break refused;
        }
        upkeep().await;
        assert!(streamed < 1000);
    };
    assert_eq!(refused.reason(), Reason::RateLimited);
    // Three steps of 64 fit into 134, of which two did; never a step more was streamed than was reserved.
    assert!((256..=266 + 128).contains(&streamed), "{streamed}");
    let end = End {
        streamed,
        age: MS,
        ..End::new(Verdict::Refused(refused.reason()))
    };
    stream.finish(&end, time::now());
    drop(stream);
    upkeep().await;
    let state = limit.handle().peek_store("tokens", &"alice".into()).await;
    assert_eq!(state.unwrap().unwrap().remaining, 400 - 10 - streamed);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_by_an_earlier_quota_is_given_back_by_it() {
    let store = Scripted::new(1);
    let places = Rule::in_flight("places", 2).key(key::header("x-user-id"));
    let tokens = Rule::tokens("tokens", Quota::per_hour(1000)).key(key::header("x-user-id"));
    let limit = limit(&store, [places, tokens]);
    let mut request = from("alice");
    request
        .extensions_mut()
        .insert(Tokens::new("m", 100).max_completion(100));
    let held = ask(&limit, &request).await.unwrap();
    let handle = limit.handle();
    handle.update("places", Quota::per_second(0)).unwrap();
    handle.update("tokens", Quota::per_day(1000)).unwrap();
    end(held, Verdict::Unsent, None);
    upkeep().await;
    let changes = store.changes.lock().unwrap();
    let mut told: Vec<_> = changes
        .iter()
        .map(|change| (&*change.rule, change.plan))
        .collect();
    told.sort_by_key(|change| change.0);
    let hour = 3_600_000_000_000;
    assert!(
        matches!(
            told[..],
            [
                ("places", Plan::InFlight { limit: 2 }),
                ("tokens", Plan::SlidingWindow { window, .. }),
            ] if window == hour
        ),
        "{told:?}"
    );
}

/// How often it was asked, and when it panics.
#[derive(Clone)]
struct Panics(Arc<[AtomicUsize; 2]>);

impl key::ExtractKey for Panics {
    fn key<'a>(&self, _: &RequestHead<'a>) -> Option<Key<'a>> {
        let [asked, panics_at] = &*self.0;
        assert_ne!(
            asked.fetch_add(1, SeqCst),
            panics_at.load(SeqCst),
            "told to"
        );
        Some("alice".into())
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_panics_when_it_is_asked_for_again_keeps_no_place() {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use palisade_core::gate::Gate;

    let store = Scripted::new(1);
    let user = Panics(Arc::new([
        AtomicUsize::new(0),
        AtomicUsize::new(usize::MAX),
    ]));
    let place = Rule::in_flight("place", 1).local();
    let there = Rule::new("there", Quota::per_hour(100)).key(user.clone());
    let leased = Rule::new("leased", Quota::per_hour(100))
        .key(user.clone())
        .leased(10);
    for rule in [there, leased] {
        let limit = limit(&store, [place.clone(), rule]);
        // All of the lease but one.
        for _ in 0..8 {
            drop(ask(&limit, &from("alice")).await.unwrap());
        }
        // Once to decide, and once more to ask the store.
        let [asked, panics_at] = &*user.0;
        panics_at.store(asked.load(SeqCst) + 1, SeqCst);
        let request = from("alice");
        let panics = || limit.admit(&(&request).into(), time::now());
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert!(ask(&limit, &from("alice")).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_granted_when_the_stream_has_ended_is_given_back() {
    for heard in [false, true] {
        let store = Scripted::new(1);
        let tokens = Rule::tokens("tokens", Quota::per_hour(10_000))
            .key(key::header("x-user-id"))
            .estimate(Estimate::Learned)
            .growing();
        let limit = limit(&store, [tokens]);
        let mut request = from("alice");
        request
            .extensions_mut()
            .insert(Tokens::new("m", 10).max_completion(10_000));
        let mut stream = ask(&limit, &request).await.unwrap();
        stream.progress(256, time::now()).unwrap();
        if heard {
            upkeep().await;
        }
        let end = End {
            streamed: 256,
            age: MS,
            ..End::new(Verdict::Canceled)
        };
        stream.finish(&end, time::now());
        drop(stream);
        upkeep().await;
        upkeep().await;
        let state = limit.handle().peek_store("tokens", &"alice".into()).await;
        assert_eq!(
            state.unwrap().unwrap().remaining,
            10_000 - 266,
            "heard: {heard}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_the_store_did_not_answer_for_is_not_given_back() {
    let store = Scripted::new(1);
    let tokens = Rule::tokens("tokens", Quota::per_hour(10_000))
        .key(key::header("x-user-id"))
        .estimate(Estimate::Learned)
        .growing();
    let limit = limit(&store, [tokens]);
    let mut request = from("alice");
    request
        .extensions_mut()
        .insert(Tokens::new("m", 10).max_completion(10_000));
    let mut stream = ask(&limit, &request).await.unwrap();
    store.set(Mood::Fails);
    stream.progress(256, time::now()).unwrap();
    upkeep().await;
    store.set(Mood::Answers);
    stream.progress(257, time::now()).unwrap();
    end(
        stream,
        Verdict::Success,
        Some(Usage {
            prompt: 10,
            completion: 257,
        }),
    );
    upkeep().await;
    let state = limit.handle().peek_store("tokens", &"alice".into()).await;
    assert_eq!(state.unwrap().unwrap().remaining, 10_000 - 267);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_before_a_store_has_failed_goes_back_to_its_own_window() {
    let store = Scripted::new(1);
    let here = Rule::new("here", Quota::per_second(10))
        .strategy(Strategy::FixedWindow)
        .local();
    let limit = limit(&store, [here, per_user(100)]);
    store.set(Mood::Hangs);
    advance(Duration::from_millis(990)).await;
    let first = ask(&limit, &from("alice")).await.unwrap();
    store.set(Mood::Answers);
    let second = ask(&limit, &from("alice")).await.unwrap();
    end(first, Verdict::Unsent, None);
    let state = limit.handle().peek("here", &"".into()).unwrap();
    assert_eq!(state.remaining, 9);
    drop(second);
}
