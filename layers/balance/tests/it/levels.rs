//! Zones and priorities.

use http::StatusCode;
use palisade_balance::{Endpoint, Endpoints, Health, Snapshot};

use crate::support::{Fake, MS, balance, calls, load, of, send, since};

/// Endpoints 0, 1, ... of these zones and priorities, in a set of zone a.
fn placed(endpoints: &Endpoints<Fake>, places: &[(&str, u32)]) -> Vec<Fake> {
    endpoints.set_zone("a");
    let fakes: Vec<_> = places.iter().map(|_| Fake::new(10)).collect();
    for (at, (fake, (zone, priority))) in fakes.iter().zip(places).enumerate() {
        let endpoint = Endpoint::new(at.to_string(), fake.clone());
        endpoints.insert(endpoint.zone(*zone).priority(*priority));
    }
    fakes
}

fn levels(endpoints: &Endpoints<Fake>) -> Vec<u32> {
    let level = |one: &Snapshot| one.level;
    endpoints.snapshot().iter().map(level).collect()
}

#[tokio::test(start_paused = true)]
async fn the_own_zone_serves_alone_until_it_cannot_and_again_when_it_can() {
    let endpoints = Endpoints::default();
    let fakes = placed(
        &endpoints,
        &[("a", 0), ("a", 0), ("b", 0), ("b", 0), ("a", 1)],
    );
    let service = balance(&endpoints);
    load(&service, 100, MS).await;
    let all = calls(&fakes);
    assert_eq!(all[2..], [0, 0, 0]);
    assert_eq!(all[0] + all[1], 100);

    endpoints.set_health("0", Health::Unhealthy);
    load(&service, 200, MS).await;
    let spilt = since(&fakes, &all);
    assert!(
        (138..=142).contains(&spilt[1]),
        "0.5 x 1.4 of 200: {spilt:?}"
    );
    assert_eq!(spilt[1..4].iter().sum::<usize>(), 200);
    assert_eq!(spilt[4], 0);

    endpoints.set_health("0", Health::Healthy);
    let before = calls(&fakes);
    load(&service, 100, MS).await;
    assert_eq!(since(&fakes, &before)[2..], [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_zone_that_fails_is_left_within_a_few_requests_and_nobody_is_refused() {
    let endpoints = Endpoints::default();
    let mut places = vec![("a", 0); 2];
    places.extend([("b", 0); 8]);
    let fakes = placed(&endpoints, &places);
    let service = balance(&endpoints);
    load(&service, 100, MS).await;
    for fake in &fakes[..2] {
        fake.now(1, StatusCode::BAD_GATEWAY);
    }
    let failed = load(&service, 2000, MS * 2).await;
    assert!(failed < 30, "{failed} of 2000");
    for fake in &fakes[..2] {
        fake.now(10, StatusCode::OK);
    }
    load(&service, 6000, MS * 10).await;
    let before = calls(&fakes);
    load(&service, 500, MS * 10).await;
    let far: usize = since(&fakes, &before)[2..].iter().sum();
    assert_eq!(far, 0, "it is back");
}

#[tokio::test(start_paused = true)]
async fn places_change_live() {
    let endpoints = Endpoints::default();
    let fakes = placed(&endpoints, &[("a", 0), ("b", 0), ("b", 1)]);
    let service = balance(&endpoints);
    assert_eq!(levels(&endpoints), [0, 1, 2]);
    endpoints.set_zone("b");
    assert_eq!(levels(&endpoints), [1, 0, 2]);
    send(&service).await.unwrap();
    assert_eq!(calls(&fakes), [0, 1, 0]);
    assert!(endpoints.set_zone_of("1", "c"));
    assert!(endpoints.set_priority("2", 0));
    assert_eq!(levels(&endpoints), [1, 1, 0]);
    assert_eq!(of(&endpoints, "1").zone.as_deref(), Some("c"));
    send(&service).await.unwrap();
    assert_eq!(calls(&fakes), [0, 1, 1]);
    endpoints.set_zone(None);
    assert_eq!(levels(&endpoints), [0, 0, 0]);
    assert!(endpoints.set_zone_of("1", None));
    endpoints.set_zone("z");
    assert_eq!(levels(&endpoints), [1, 0, 1], "who says nothing is near");
    assert!(!endpoints.set_zone_of("x", "a") && !endpoints.set_priority("x", 1));
}
