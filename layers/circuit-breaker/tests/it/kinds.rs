//! What opens a circuit, and what does not.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, StatusCode};
use palisade_circuit_breaker::{
    CircuitBreaker, CircuitBreakerLayer, CircuitState, Mode, SavedState, Settings, Window,
};
use palisade_core::{
    BoxError,
    classify::{Http, Verdict},
    gate::{Gate, Outlook},
    ratio::Ratio,
    settle::{End, Settle, Watch},
    testing::exchange,
    time::now,
};
use tokio::time::{advance, timeout};
use tower::{Layer, Service, service_fn};

use crate::support::{Answer, COOLDOWN, admit, many, one, says};

const SECOND: Duration = Duration::from_secs(1);

fn state(breaker: &CircuitBreaker) -> CircuitState {
    breaker.handle().snapshot().state
}

#[tokio::test(start_paused = true)]
async fn after_100_successes_a_window_of_100_calls_at_half_opens_on_the_50th_failure_in_a_row() {
    let breaker = CircuitBreaker::window(Ratio::HALF, 100, COOLDOWN);
    many(&breaker, Verdict::Success, 100);
    many(&breaker, Verdict::Failure, 49);
    assert_eq!(state(&breaker), CircuitState::Closed);
    many(&breaker, Verdict::Failure, 1);
    assert_eq!(state(&breaker), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn an_empty_window_of_either_kind_opens_on_the_tenth_call_if_five_failed() {
    for breaker in [
        CircuitBreaker::window(Ratio::HALF, 100, COOLDOWN),
        CircuitBreaker::time_window(Ratio::HALF, SECOND * 10, COOLDOWN),
    ] {
        many(&breaker, Verdict::Failure, 5);
        many(&breaker, Verdict::Success, 4);
        assert_eq!(state(&breaker), CircuitState::Closed);
        many(&breaker, Verdict::Success, 1);
        assert_eq!(state(&breaker), CircuitState::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn whether_it_opens_depends_on_the_share_and_not_on_the_rate() {
    for pause in [SECOND / 1000, SECOND / 10, SECOND] {
        for (failing, opens) in [(4, false), (5, true)] {
            let breaker = CircuitBreaker::time_window(Ratio::HALF, SECOND * 30, COOLDOWN);
            let mut has_opened = false;
            for call in 0..200 {
                // Successes first, so that no beginning is worse than the whole.
                let verdict = match call % 10 < 10 - failing {
                    true => Verdict::Success,
                    false => Verdict::Failure,
                };
                has_opened |= !one(&breaker, verdict);
                advance(pause).await;
            }
            assert_eq!(has_opened, opens, "{failing} of 10, one in {pause:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_reopens_a_window_of_time_and_so_do_probes_farther_apart_than_it() {
    let breaker = CircuitBreaker::time_window(Ratio::HALF, SECOND, COOLDOWN).probes(3);
    many(&breaker, Verdict::Failure, 10);
    assert_eq!(state(&breaker), CircuitState::Open);
    for _ in 0..3 {
        assert_ne!(state(&breaker), CircuitState::Closed);
        advance(SECOND * 3600).await;
        many(&breaker, Verdict::Success, 1);
    }
    assert_eq!(state(&breaker), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_of_an_earlier_epoch_changes_nothing_in_any_kind() {
    for settings in [
        Settings::consecutive(10, COOLDOWN),
        Settings::window(Ratio::HALF, Window::Calls(20), COOLDOWN),
        Settings::window(Ratio::HALF, Window::Time(SECOND * 60), COOLDOWN),
    ] {
        let breaker = CircuitBreaker::new(settings);
        let mut early: Vec<_> = (0..20).map(|_| admit(&breaker).unwrap()).collect();
        many(&breaker, Verdict::Failure, 10);
        assert_eq!(state(&breaker), CircuitState::Open);
        advance(COOLDOWN * 2).await;
        let mut probe = admit(&breaker).unwrap();
        let tell = |calls: &mut [palisade_circuit_breaker::Call], verdict| {
            for call in calls {
                call.settle(&End::new(verdict), now());
            }
        };
        tell(&mut early[..5], Verdict::Success);
        assert_eq!(state(&breaker), CircuitState::HalfOpen);
        tell(&mut early[5..10], Verdict::Failure);
        assert_eq!(state(&breaker), CircuitState::HalfOpen);
        probe.settle(&End::new(Verdict::Success), now());
        tell(&mut early[10..], Verdict::Failure);
        let snapshot = breaker.handle().snapshot();
        assert_eq!(
            (snapshot.state, snapshot.failures, snapshot.calls),
            (CircuitState::Closed, 0, 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_is_slow_by_its_first_data_and_by_its_end_if_it_has_none() {
    let breaker = CircuitBreaker::window(Ratio::HALF, 4, COOLDOWN)
        .minimum_calls(4)
        .slow_calls(Ratio::new(1.0).unwrap(), SECOND);
    let slow = || breaker.handle().snapshot().slow_calls;
    let end = |age| End {
        age,
        ..End::new(Verdict::Success)
    };

    let mut stream = admit(&breaker).unwrap();
    advance(SECOND - Duration::from_nanos(1)).await;
    stream.first_data(now());
    advance(SECOND * 60).await;
    stream.settle(&end(SECOND * 61), now());
    assert_eq!(slow(), 0, "its data came in time");

    let mut stream = admit(&breaker).unwrap();
    advance(SECOND).await;
    stream.first_data(now());
    stream.settle(&end(SECOND), now());
    assert_eq!(slow(), 1);

    let mut plain = admit(&breaker).unwrap();
    advance(SECOND).await;
    plain.settle(&end(SECOND), now());
    assert_eq!(slow(), 2);
    let snapshot = breaker.handle().snapshot();
    assert_eq!((snapshot.failures, snapshot.calls), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_works_but_slowly_is_left_alone_until_it_is_quick_again() {
    let layer = CircuitBreakerLayer::consecutive(5, COOLDOWN)
        .jitter(None)
        .slow_calls(Ratio::HALF, SECOND);
    let takes = |latency: Duration| {
        layer.layer(service_fn(move |_: Request<()>| async move {
            tokio::time::sleep(latency).await;
            says(StatusCode::OK).call(Request::new(())).await
        }))
    };
    for _ in 0..10 {
        exchange(takes(SECOND)).await.unwrap();
    }
    assert_eq!(layer.handle().snapshot().state, CircuitState::Open);
    advance(COOLDOWN).await;
    exchange(takes(SECOND)).await.unwrap();
    assert_eq!(layer.handle().snapshot().state, CircuitState::Open, "slow");
    advance(COOLDOWN * 2).await;
    exchange(takes(SECOND / 2)).await.unwrap();
    assert_eq!(layer.handle().snapshot().state, CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_accepts_and_never_answers_is_found_behind_a_shorter_total_deadline() {
    let attempt = SECOND * 10;
    for kind in [
        CircuitBreakerLayer::consecutive(5, COOLDOWN),
        CircuitBreakerLayer::window(Ratio::HALF, 10, COOLDOWN).minimum_calls(5),
        CircuitBreakerLayer::time_window(Ratio::HALF, SECOND * 60, COOLDOWN).minimum_calls(5),
    ] {
        let layer = kind.attempt_timeout(attempt);
        let service = layer.layer(service_fn(move |_: Request<()>| async move {
            let answer = timeout(attempt, pending::<Result<Answer, BoxError>>()).await;
            answer.map_err(BoxError::from)?
        }));
        for _ in 0..5 {
            assert_eq!(layer.handle().snapshot().state, CircuitState::Closed);
            let total = timeout(SECOND * 6, exchange(service.clone())).await;
            assert!(total.is_err(), "the caller is gone before the attempt is");
        }
        assert_eq!(layer.handle().snapshot().state, CircuitState::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_ignored_counts_as_neither() {
    let breaker = CircuitBreaker::consecutive(2, COOLDOWN)
        .jitter(None)
        .ignore(|end| end.verdict == Verdict::Unsent);
    many(&breaker, Verdict::Failure, 1);
    many(&breaker, Verdict::Unsent, 10);
    assert_eq!(breaker.handle().snapshot().in_a_row, 1);
    many(&breaker, Verdict::Failure, 1);
    assert_eq!(state(&breaker), CircuitState::Open);
    advance(COOLDOWN).await;
    many(&breaker, Verdict::Unsent, 10);
    assert_eq!(state(&breaker), CircuitState::HalfOpen);
    many(&breaker, Verdict::Success, 1);
    assert_eq!(state(&breaker), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_ignore_function_that_panics_gives_the_place_of_the_probe_back() {
    let breaker = CircuitBreaker::consecutive(1, COOLDOWN)
        .jitter(None)
        .ignore(|end| match end.verdict {
            Verdict::TimedOut => std::panic::resume_unwind(Box::new("on purpose")),
            _ => false,
        });
    many(&breaker, Verdict::Failure, 1);
    advance(COOLDOWN).await;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        one(&breaker, Verdict::TimedOut)
    }));
    assert!(panicked.is_err());
    assert_eq!(breaker.outlook(now()), Outlook::Probes);
    many(&breaker, Verdict::Success, 1);
    assert_eq!(state(&breaker), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_ignore_function_is_not_asked_while_a_panic_unwinds() {
    let asked = Arc::new(AtomicBool::new(false));
    let breaker = CircuitBreaker::consecutive(2, COOLDOWN).ignore({
        let asked = asked.clone();
        move |_| !asked.swap(true, Relaxed)
    });
    let call = admit(&breaker).unwrap();
    let since = now();
    advance(SECOND * 5).await;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _watch = Watch::new(call, Http, since);
        std::panic::resume_unwind(Box::new("on purpose"));
    }));
    assert!(panicked.is_err());
    assert!(!asked.load(Relaxed));
    assert_eq!(breaker.handle().snapshot().in_a_row, 1);
}

#[tokio::test(start_paused = true)]
async fn in_shadow_everything_passes_and_what_would_have_been_refused_is_counted() {
    let layer = CircuitBreakerLayer::consecutive(2, COOLDOWN)
        .jitter(None)
        .shadow();
    let handle = layer.handle();
    for _ in 0..10 {
        exchange(layer.layer(says(StatusCode::BAD_GATEWAY)))
            .await
            .unwrap();
    }
    let snapshot = handle.snapshot();
    assert_eq!(snapshot.state, CircuitState::Open);
    assert_eq!((snapshot.refused_total, snapshot.shadowed_total), (0, 8));
    assert_eq!(layer.gate().outlook(now()), Outlook::Admits);

    // The one after the cool-down is the probe; what passes beside it is not heard.
    advance(COOLDOWN).await;
    let mut probe = admit(layer.gate()).unwrap();
    many(layer.gate(), Verdict::Failure, 3);
    assert_eq!(handle.snapshot().state, CircuitState::HalfOpen);
    probe.settle(&End::new(Verdict::Success), now());
    assert_eq!(handle.snapshot().state, CircuitState::Closed);

    handle.set_mode(Mode::Enforce);
    many(layer.gate(), Verdict::Failure, 2);
    assert!(admit(layer.gate()).is_err());
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.refused_total, snapshot.shadowed_total), (1, 11));
    handle.force_open();
    handle.set_mode(Mode::Shadow);
    many(layer.gate(), Verdict::Success, 1);
}

#[tokio::test(start_paused = true)]
async fn settings_change_while_requests_come_and_what_was_counted_stays() {
    let breaker = CircuitBreaker::window(Ratio::new(0.9).unwrap(), 100, COOLDOWN);
    let handle = breaker.handle();
    many(&breaker, Verdict::Success, 50);
    many(&breaker, Verdict::Failure, 49);
    let mut settings = handle.settings();
    settings.failure_share = Some(Ratio::HALF);
    handle.update(settings);
    assert_eq!(state(&breaker), CircuitState::Closed);
    many(&breaker, Verdict::Failure, 1);
    assert_eq!(state(&breaker), CircuitState::Open);

    // A row that is given a window hears successes from then on.
    let row = CircuitBreaker::consecutive(5, COOLDOWN);
    many(&row, Verdict::Success, 3);
    let mut settings = row.handle().settings();
    settings.window = Some(Window::Calls(10));
    row.handle().update(settings);
    many(&row, Verdict::Success, 3);
    assert_eq!(row.handle().snapshot().calls, 3);
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_an_open_circuit_open_for_what_was_left() {
    let make = || CircuitBreaker::consecutive(1, COOLDOWN).jitter(None);
    let before = make();
    many(&before, Verdict::Failure, 1);
    advance(SECOND * 2).await;
    let saved = before.handle().save();
    let remaining = SECOND * 3;
    assert_eq!(saved.state, SavedState::Open { remaining });

    let after = make();
    after.handle().restore(&saved);
    assert!(admit(&after).is_err());
    advance(remaining - Duration::from_nanos(1)).await;
    assert!(admit(&after).is_err());
    advance(Duration::from_nanos(1)).await;
    many(&after, Verdict::Success, 1);
    assert_eq!(state(&after), CircuitState::Closed);
}

#[cfg(feature = "serde")]
#[tokio::test(start_paused = true)]
async fn a_saved_circuit_is_written_read_and_filled_up_where_it_says_nothing() {
    use palisade_circuit_breaker::Saved;

    let breaker = CircuitBreaker::window(Ratio::HALF, 20, COOLDOWN).jitter(None);
    many(&breaker, Verdict::Failure, 10);
    let saved = breaker.handle().save();
    let text = serde_json::to_string(&saved).unwrap();
    assert_eq!(serde_json::from_str::<Saved>(&text).unwrap(), saved);
    let little = r#"{ "state": "forced_open", "from": "another version" }"#;
    let saved: Saved = serde_json::from_str(little).unwrap();
    breaker.handle().restore(&saved);
    let snapshot = breaker.handle().snapshot();
    assert_eq!((snapshot.forced, snapshot.calls), (true, 0));
    assert!(admit(&breaker).is_err());
}

#[tokio::test(start_paused = true)]
async fn equal_seeds_open_for_equal_times() {
    let pause = |seed| {
        let breaker = CircuitBreaker::consecutive(1, COOLDOWN).seed(seed);
        many(&breaker, Verdict::Failure, 1);
        breaker.handle().snapshot().next_probe_in.unwrap()
    };
    assert_eq!(pause(1), pause(1));
    assert_ne!(pause(1), pause(2));
}
