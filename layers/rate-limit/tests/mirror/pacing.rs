use std::time::Duration;

use http::{Request, Response, StatusCode};
use palisade_core::{BoxError, reject::Rejected, time::now};
use palisade_rate_limit::QuotaMirrorLayer;
use tokio::{task::JoinSet, time::sleep_until};
use tower::{Layer, Service, ServiceExt};

use crate::{
    service::{Counts, LIMIT, Says},
    to,
};

const FIVE_MINUTES: u32 = 300;

/// Ten requests a second, from each client, for five minutes: how many were refused here.
async fn drive<S, B>(clients: Vec<S>) -> u64
where
    S: Service<Request<()>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Send + 'static,
{
    let start = now();
    let mut requests = JoinSet::new();
    let many = clients.len() as u32;
    for (nth, client) in clients.into_iter().enumerate() {
        for tick in 0..FIVE_MINUTES * 10 {
            let client = client.clone();
            // Each client at another time within the tenth of a second.
            let at = start
                + Duration::from_millis(100) * tick
                + Duration::from_millis(100) / many * nth as u32;
            requests.spawn(async move {
                sleep_until(at).await;
                client
                    .oneshot(to("api"))
                    .await
                    .map(|answer| answer.status())
                    .map_err(Into::into)
            });
        }
    }
    let mut refused = 0;
    while let Some(ended) = requests.join_next().await {
        match ended.unwrap() {
            Ok(status) => {
                assert!([StatusCode::OK, StatusCode::TOO_MANY_REQUESTS].contains(&status));
            }
            Err(error) => {
                assert!(Rejected::find(&*error).unwrap().delay().is_some());
                refused += 1;
            }
        }
    }
    refused
}

/// What a service lets through in five minutes that touch six of its windows.
const MOST: u64 = 6 * LIMIT;

#[tokio::test(start_paused = true)]
async fn without_a_mirror_a_service_answers_hundreds_of_429() {
    let counts = Counts::new(Says::Standard);
    assert_eq!(drive(vec![counts.service()]).await, 0);
    assert_eq!(counts.passed() + counts.refused(), 3000);
    assert!(counts.refused() >= 2400, "{}", counts.refused());
}

#[tokio::test(start_paused = true)]
async fn with_a_mirror_a_service_answers_no_429_and_is_used_to_its_limit() {
    for says in [Says::Standard, Says::Triple, Says::Epoch] {
        let counts = Counts::new(says);
        let client = QuotaMirrorLayer::new().layer(counts.service());
        let refused = drive(vec![client]).await;
        assert_eq!(counts.refused(), 0, "{says:?}");
        assert_eq!(counts.passed() + refused, 3000);
        assert!(
            counts.passed() >= MOST * 95 / 100,
            "{says:?}: {}",
            counts.passed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_wrong_changes_nothing() {
    for hours in [0, 1, 10_000] {
        let counts = Counts::new(Says::Epoch).clock_ahead(Duration::from_secs(hours * 3600));
        drive(vec![QuotaMirrorLayer::new().layer(counts.service())]).await;
        assert_eq!(counts.refused(), 0, "{hours} h ahead");
        assert!(counts.passed() >= MOST * 95 / 100, "{}", counts.passed());
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_share_a_quota_leave_each_other_their_part() {
    let counts = Counts::new(Says::Standard);
    // Processes of their own: each learns from its own answers only.
    let client = |_| {
        let mirror = QuotaMirrorLayer::new().jitter(Duration::from_millis(500));
        mirror.layer(counts.service())
    };
    let refused = drive((0..4).map(client).collect()).await;
    assert_eq!(counts.passed() + counts.refused() + refused, 12_000);
    assert!(
        counts.refused() <= 12,
        "of 11 400 without: {}",
        counts.refused()
    );
    assert!(counts.passed() >= MOST * 80 / 100, "{}", counts.passed());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_only_says_retry_after_is_left_alone_until_then() {
    for says in [Says::RetryAfter, Says::HttpDate, Says::OldDate, Says::CDate] {
        let counts = Counts::new(says);
        drive(vec![QuotaMirrorLayer::new().layer(counts.service())]).await;
        // Each window ends with one 429, and what was on its way by then.
        assert!(counts.refused() <= 2 * 6, "{says:?}: {}", counts.refused());
        assert!(
            counts.passed() >= MOST * 90 / 100,
            "{says:?}: {}",
            counts.passed()
        );
    }
}
