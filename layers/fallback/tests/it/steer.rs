use http::Response;
use palisade_core::classify::Verdict;
use palisade_fallback::{Answer, FallbackLayer, Mode, NoSuchAlternative};

use crate::support::{Backend, get, ok, outcome, secondary, status};

#[tokio::test(start_paused = true)]
async fn a_forced_alternative_serves_without_the_service() {
    let (first, other) = (Backend::new([ok("first")]), Backend::new([ok("other")]));
    let layer = secondary(&other).value("value", Response::new("value"));
    let handle = layer.handle();
    for (name, text) in [("secondary", "other"), ("value", "value")] {
        handle.force(name).unwrap();
        assert_eq!(handle.snapshot().mode, Mode::Forced(name.into()));
        let served = outcome(&layer, &first).await;
        assert_eq!(served, (200, Some(name.into()), text.into()));
    }
    assert_eq!(first.calls(), 0);
    handle.auto();
    assert_eq!(outcome(&layer, &first).await.2, "first");
}

#[tokio::test(start_paused = true)]
async fn a_forced_alternative_that_fails_is_followed_by_those_after_it() {
    let (first, other) = (Backend::new([ok("first")]), Backend::new([status(500)]));
    let layer = secondary(&other).value("value", Response::new("value"));
    layer.handle().force("secondary").unwrap();
    assert_eq!(outcome(&layer, &first).await.2, "value");
    assert_eq!((first.calls(), other.calls()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_forced_alternative_that_cannot_leaves_the_request_to_the_service() {
    let layer = FallbackLayer::new().function("function", |_, failure| {
        assert_eq!(failure.verdict(), Verdict::Unsent);
        None
    });
    layer.handle().force("function").unwrap();
    assert_eq!(
        outcome(&layer, &Backend::new([ok("first")])).await.2,
        "first"
    );
}

#[tokio::test(start_paused = true)]
async fn forcing_nobody_changes_nothing() {
    let layer = FallbackLayer::<()>::new().value("value", Response::new("value"));
    let handle = layer.handle();
    let error: NoSuchAlternative = handle.force("other").unwrap_err();
    assert_eq!(error.to_string(), "no alternative is named \"other\"");
    assert_eq!(handle.snapshot().mode, Mode::Auto);
}

#[tokio::test(start_paused = true)]
async fn a_shadow_counts_who_would_be_asked_and_asks_nobody() {
    let other = Backend::new([ok("other")]);
    let layer = secondary(&other).function("function", |_, _| -> Option<Answer> {
        panic!("asked");
    });
    let handle = layer.handle();
    handle.shadow();
    assert_eq!(outcome(&layer, &Backend::new([status(503)])).await.0, 503);
    assert_eq!(outcome(&layer, &Backend::new([ok("first")])).await.0, 200);
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.mode, snapshot.requests), (Mode::Shadow, 2));
    let alternatives = snapshot.alternatives.iter();
    let counts: Vec<_> = alternatives
        .map(|each| (each.served, each.shadowed))
        .collect();
    assert_eq!((counts, other.calls()), (vec![(0, 1), (0, 0)], 0));
    assert_eq!(snapshot.exhausted, 0);
}

#[tokio::test(start_paused = true)]
async fn clones_share_counts_and_mode_until_one_is_changed() {
    let layer = FallbackLayer::new().value("value", Response::new("value"));
    let clone = layer.clone();
    layer.handle().shadow();
    assert_eq!(clone.handle().snapshot().mode, Mode::Shadow);
    let other = clone.value("other", Response::new("other"));
    assert_eq!(other.handle().snapshot().mode, Mode::Auto);
    get(&other, &Backend::new([status(503)])).await.unwrap();
    assert_eq!(layer.handle().snapshot().requests, 0);
}
