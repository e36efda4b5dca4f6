use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use palisade_core::{
    BoxError,
    classify::Verdict,
    deadline::Deadline,
    gate::Admission,
    key::Key,
    reject::{Reason, Rejected},
    settle::Settle,
    testing::CountingAllocator,
    time::now,
};
use palisade_rate_limit::{QuotaMirror, Sent};
use tokio::time::{advance, timeout};

use crate::{admit, answer, ended, judged, limited, to, wait};

const SECOND: Duration = Duration::from_secs(1);

/// A mirror that was told that nothing is left for so many seconds, of 10 in 10 s.
fn exhausted(mirror: QuotaMirror, seconds: u64) -> QuotaMirror {
    let sent = admit(&mirror, &to("api")).unwrap();
    let told = format!("\"ten\";r=0;t={seconds}");
    answer(
        sent,
        &[
            ("ratelimit-policy", r#""ten";q=10;w=10"#),
            ("ratelimit", &told),
        ],
    );
    mirror
}

fn poll(admission: &mut Admission<Sent>) -> Poll<Result<Sent, Rejected>> {
    admission
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
}

fn waiting(mirror: &QuotaMirror) -> usize {
    mirror.handle().snapshot(&Key::from("api")).unwrap().waiting
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_at_the_reset_and_not_before() {
    let mirror = exhausted(QuotaMirror::new().wait_up_to(5 * SECOND), 3);
    let began = now();
    let _sent = wait(&mirror, &to("api")).await.unwrap();
    // Timers tick each millisecond.
    let waited = now() - began;
    assert!(
        (3 * SECOND..=3 * SECOND + Duration::from_millis(1)).contains(&waited),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_would_wait_too_long_hears_at_once_for_how_long() {
    let mirror = exhausted(QuotaMirror::new(), 3);
    let refused = admit(&mirror, &to("api")).unwrap_err();
    assert_eq!(
        (refused.reason(), refused.policy()),
        (Reason::RateLimited, Some("ten"))
    );
    assert_eq!(
        (&*limited(&refused).rule, limited(&refused).retry_after),
        ("ten", 3 * SECOND)
    );
    assert_eq!(refused.delay(), Some(3 * SECOND));
    advance(2 * SECOND).await;
    let early = wait(&mirror, &to("api"));
    assert!(
        timeout(SECOND - Duration::from_millis(1), early)
            .await
            .is_err()
    );
    advance(Duration::from_millis(1)).await;
    admit(&mirror, &to("api")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_comes_before_its_turn_refuses_a_request() {
    let mirror = exhausted(QuotaMirror::new().wait_up_to(5 * SECOND), 3);
    let mut request = to("api");
    request
        .extensions_mut()
        .insert(Deadline(now() + 2 * SECOND));
    admit(&mirror, &request).unwrap_err();
    request
        .extensions_mut()
        .insert(Deadline(now() + 4 * SECOND));
    wait(&mirror, &request).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_so_many_wait_and_none_if_none_may() {
    let mirror = exhausted(QuotaMirror::new().waiting(2), 1);
    let _two = [wait(&mirror, &to("api")), wait(&mirror, &to("api"))];
    let refused = admit(&mirror, &to("api")).unwrap_err();
    assert_eq!(limited(&refused).retry_after, SECOND);
    assert_eq!(waiting(&mirror), 2);

    let never = exhausted(QuotaMirror::new().wait_up_to(Duration::ZERO), 0);
    let _probe = admit(&never, &to("api")).unwrap();
    admit(&never, &to("api")).unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn first_come_first_served() {
    let mirror = exhausted(QuotaMirror::new().wait_up_to(60 * SECOND), 2);
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for nth in 0..5 {
        let (admission, order) = (wait(&mirror, &to("api")), order.clone());
        let begun = now();
        tasks.spawn(async move {
            let sent = admission.await.unwrap();
            order.lock().unwrap().push((nth, (now() - begun).as_secs()));
            // No answer comes: one each second.
            std::mem::forget(sent);
        });
    }
    tasks.join_all().await;
    assert_eq!(
        *order.lock().unwrap(),
        [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_lets_those_who_wait_go() {
    let mirror = exhausted(QuotaMirror::new().wait_up_to(5 * SECOND), 2);
    advance(2 * SECOND).await;
    let first = admit(&mirror, &to("api")).unwrap();
    let rest: Vec<_> = (0..3)
        .map(|_| tokio::spawn(wait(&mirror, &to("api"))))
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(waiting(&mirror), 3);
    let began = now();
    answer(first, &[("ratelimit", r#""ten";r=9;t=10"#)]);
    for one in rest {
        std::mem::forget(one.await.unwrap().unwrap());
    }
    assert_eq!(now(), began);
    let known = mirror.handle().snapshot(&Key::from("api")).unwrap();
    assert_eq!(
        (known.waiting, known.in_flight, known.quotas[0].remaining),
        (0, 3, 6)
    );
}

#[tokio::test(start_paused = true)]
async fn nobody_overtakes_who_waits_though_there_is_room() {
    let mirror = exhausted(QuotaMirror::new().wait_up_to(5 * SECOND), 2);
    advance(2 * SECOND).await;
    let probe = admit(&mirror, &to("api")).unwrap();
    let mut first = wait(&mirror, &to("api"));
    assert!(poll(&mut first).is_pending());
    answer(probe, &[("ratelimit", r#""ten";r=9;t=10"#)]);
    // Woken, and not polled yet.
    let mut second = wait(&mirror, &to("api"));
    assert!(poll(&mut second).is_pending());
    assert!(poll(&mut first).is_ready());
    assert!(poll(&mut second).is_ready());
    admit(&mirror, &to("api")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_on_its_way_is_waited_for() {
    // By itself there is one each second, for which nobody here waits long enough.
    let mirror = QuotaMirror::new().wait_up_to(SECOND / 2);
    let busy = Some(Verdict::Overload { retry_after: None });
    for asks in [("ratelimit", r#""ten";r=0;t=1"#), ("retry-after", "1")] {
        let told = [("ratelimit-policy", r#""ten";q=10;w=10"#), asks];
        judged(admit(&mirror, &to("api")).unwrap(), busy, &told);
        advance(SECOND).await;
        let probe = admit(&mirror, &to("api")).unwrap();
        let next = tokio::spawn(wait(&mirror, &to("api")));
        tokio::time::sleep(SECOND / 4).await;
        answer(probe, &[("ratelimit", r#""ten";r=9;t=9"#)]);
        answer(
            next.await.unwrap().unwrap(),
            &[("ratelimit", r#""ten";r=8;t=9"#)],
        );
    }
}

#[tokio::test(start_paused = true)]
async fn who_leaves_gives_up_its_place_wherever_it_stands() {
    let mirror = exhausted(QuotaMirror::new().wait_up_to(60 * SECOND), 2);
    let mut queue: Vec<_> = (0..4)
        .map(|_| Some(tokio::spawn(wait(&mirror, &to("api")))))
        .collect();
    // One that was never polled.
    drop(wait(&mirror, &to("api")));
    tokio::task::yield_now().await;
    assert_eq!(waiting(&mirror), 4);
    for leaves in [0, 2] {
        let task = queue[leaves].take().unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }
    assert_eq!(waiting(&mirror), 2);
    let began = now();
    let mut went = Vec::new();
    for task in queue.into_iter().flatten() {
        std::mem::forget(task.await.unwrap().unwrap());
        went.push((now() - began).as_secs());
    }
    assert_eq!(went, [2, 3], "nobody waits behind who has left");
    assert_eq!(waiting(&mirror), 0);
}

#[tokio::test(start_paused = true)]
async fn a_longer_wait_that_an_answer_tells_of_refuses_those_who_cannot_wait_for_it() {
    let mirror = exhausted(QuotaMirror::new().wait_up_to(5 * SECOND), 1);
    advance(SECOND).await;
    let probe = admit(&mirror, &to("api")).unwrap();
    let tasks = [(); 3].map(|()| tokio::spawn(wait(&mirror, &to("api"))));
    tokio::task::yield_now().await;
    let overload = Verdict::Overload { retry_after: None };
    judged(probe, Some(overload), &[("retry-after", "30")]);
    let began = now();
    for task in tasks {
        let refused = task.await.unwrap().unwrap_err();
        assert_eq!((now(), refused.delay()), (began, Some(30 * SECOND)));
        assert_eq!(refused.policy(), Some("retry-after"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_further_in_or_never_sent_gives_its_place_back() {
    for verdict in [Verdict::Unsent, Verdict::Refused(Reason::Overloaded)] {
        let mirror = exhausted(QuotaMirror::new().wait_up_to(5 * SECOND), 2);
        advance(2 * SECOND).await;
        let mut sent = admit(&mirror, &to("api")).unwrap();
        let next = tokio::spawn(wait(&mirror, &to("api")));
        tokio::task::yield_now().await;
        let began = now();
        sent.finish(&ended(verdict), now());
        std::mem::forget(next.await.unwrap().unwrap());
        assert_eq!(now(), began, "{verdict:?}");
    }
    // Whoever left has used it.
    let mirror = exhausted(QuotaMirror::new().wait_up_to(5 * SECOND), 2);
    advance(2 * SECOND).await;
    let began = now();
    drop(admit(&mirror, &to("api")).unwrap());
    wait(&mirror, &to("api")).await.unwrap();
    assert_eq!((now() - began).as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn forgetting_lets_those_who_wait_go() {
    let mirror = exhausted(QuotaMirror::new(), 1);
    let waits = tokio::spawn(wait(&mirror, &to("api")));
    tokio::task::yield_now().await;
    let (handle, began) = (mirror.handle(), now());
    assert!(handle.forget(&Key::from("api")) && !handle.forget(&Key::from("api")));
    assert!(!handle.forget(&Key::from("other")));
    waits.await.unwrap().unwrap();
    assert_eq!(now(), began);
}

#[tokio::test(start_paused = true)]
async fn jitter_spreads_the_first_requests_after_a_reset() {
    let mut waits = Vec::new();
    for _ in 0..20 {
        let mirror = QuotaMirror::new().wait_up_to(9 * SECOND).jitter(2 * SECOND);
        let mirror = exhausted(mirror, 1);
        let began = now();
        wait(&mirror, &to("api")).await.unwrap();
        waits.push(now() - began);
    }
    let most = 3 * SECOND + Duration::from_millis(1);
    assert!(
        waits.iter().all(|wait| (SECOND..=most).contains(wait)),
        "{waits:?}"
    );
    waits.sort();
    waits.dedup();
    assert!(waits.len() > 10, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn room_costs_no_allocation_a_wait_one_and_a_refusal_two() {
    let mirror = QuotaMirror::new();
    let lines = |left: &str| {
        let mut headers = http::HeaderMap::new();
        headers.insert("ratelimit-policy", r#""ten";q=10;w=10"#.parse().unwrap());
        headers.insert(
            "ratelimit",
            format!("\"ten\";r={left};t=1").parse().unwrap(),
        );
        headers.insert("x-ratelimit-remaining-tokens", "150".parse().unwrap());
        headers.insert("x-ratelimit-reset-tokens", "1m2.5s".parse().unwrap());
        headers
    };
    let (request, mut headers) = (to("api"), lines("9"));
    let mut exchange = || {
        let mut sent = admit(&mirror, &request).unwrap();
        sent.decorate(&mut headers);
        sent.finish(&ended(Verdict::Success), now());
    };
    exchange();
    let before = CountingAllocator::count();
    exchange();
    assert_eq!(CountingAllocator::count() - before, 0);

    admit(&mirror, &request).unwrap().decorate(&mut lines("0"));
    let request = to("api");
    // The first finds no room in the queue.
    drop(wait(&mirror, &request));
    let before = CountingAllocator::count();
    let waits = wait(&mirror, &request);
    assert_eq!(CountingAllocator::count() - before, 1);
    waits.await.unwrap();
    assert_eq!(
        CountingAllocator::count() - before,
        1,
        "its timer and its turn cost none"
    );

    let mut hurried = to("api");
    hurried.extensions_mut().insert(Deadline(now()));
    let before = CountingAllocator::count();
    let refused = BoxError::from(admit(&mirror, &hurried).unwrap_err());
    assert_eq!(CountingAllocator::count() - before, 2);
    drop(refused);
}
