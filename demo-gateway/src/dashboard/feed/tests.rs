use std::task::Waker;

use palisade::classify::Usage;
use serde_json::Value;

use super::*;
use crate::{
    changes::Severity,
    config::{Backend, Config, Switch},
    dashboard::testing::{Told, tell},
};

fn app() -> App {
    let config = Config {
        rate_limit: Switch::Off,
        ..Config::default()
    };
    App::new(config, "token".into(), None).unwrap()
}

fn look(app: &App) {
    app.dashboard.look(app, EVERY, Vec::new());
}

/// What is ready for this viewer now; `None` at the end.
fn ready(viewing: &mut Viewing) -> Poll<Option<(String, Value)>> {
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(viewing).poll_frame(&mut cx).map(|frame| {
        let data = frame?.unwrap().into_data().unwrap();
        let text = std::str::from_utf8(&data).unwrap();
        let (name, data) = text
            .strip_prefix("event: ")
            .unwrap()
            .split_once("\ndata: ")
            .unwrap();
        let data = data.strip_suffix("\n\n").unwrap();
        assert!(!data.contains('\n'));
        Some((name.into(), serde_json::from_str(data).unwrap()))
    })
}

#[track_caller]
fn message(viewing: &mut Viewing, name: &str) -> Value {
    match ready(viewing) {
        Poll::Ready(Some((told, message))) if told == name => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn first_all_is_told_and_then_what_is_new() {
    let app = app();
    tell(&app.dashboard, Told::default());
    look(&app);
    let mut viewing = app.dashboard.view(&app, None).unwrap();
    let snapshot = message(&mut viewing, "snapshot");
    assert_eq!(snapshot["tick"]["seq"], 1);
    assert_eq!(snapshot["tick"]["total_requests"], 1);
    assert_eq!(snapshot["requests"].as_array().unwrap().len(), 1);
    // It is told once, and not again with the tick that it came in.
    assert_eq!(snapshot["tick"]["requests"].as_array().unwrap().len(), 0);
    assert!(ready(&mut viewing).is_pending());
    tell(
        &app.dashboard,
        Told {
            usage: Some(Usage {
                prompt: 7,
                completion: 40,
            }),
            ..Told::default()
        },
    );
    app.changes.tell(Severity::Bad, "b", "b is ejected");
    let fresh = app.changes.recent();
    app.dashboard.look(&app, Duration::from_millis(500), fresh);
    let tick = message(&mut viewing, "tick");
    assert_eq!(
        (&tick["seq"], &tick["total_requests"]),
        (&2.into(), &2.into())
    );
    // In half a second.
    assert_eq!(tick["rate"]["requests"], 2);
    assert_eq!(tick["rate"]["tokens_out"], 80);
    assert_eq!(tick["requests"][0]["tokens"], 47);
    assert_eq!(tick["events"][0]["text"], "b is ejected");
    assert_eq!(
        tick["at"].as_u64().unwrap(),
        snapshot["tick"]["at"].as_u64().unwrap() + 1
    );
}

#[test]
fn many_changes_at_once_come_tick_by_tick_and_none_twice() {
    let app = app();
    let mut early = app.dashboard.view(&app, None).unwrap();
    message(&mut early, "snapshot");
    for number in 0..10 {
        app.changes.tell(Severity::Warn, "b", format!("{number}"));
    }
    let mut fresh: Vec<_> = app.changes.recent();
    fresh.reverse();
    app.dashboard.look(&app, EVERY, fresh);
    let texts = |message: &Value| {
        let events = message["events"].as_array().unwrap().iter();
        events
            .map(|event| event["text"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
            .join("")
    };
    assert_eq!(texts(&message(&mut early, "tick")), "3210");
    // Who comes in between gets the rest with the others.
    let mut late = app.dashboard.view(&app, None).unwrap();
    assert_eq!(texts(&message(&mut late, "snapshot")), "3210");
    for expected in ["7654", "98", ""] {
        look(&app);
        for viewer in [&mut early, &mut late] {
            assert_eq!(texts(&message(viewer, "tick")), expected);
        }
    }
}

#[test]
fn a_slow_reader_loses_ticks_and_sees_by_the_numbers_that_it_did() {
    let app = app();
    let mut slow = app.dashboard.view(&app, None).unwrap();
    let mut fast = app.dashboard.view(&app, None).unwrap();
    for viewer in [&mut slow, &mut fast] {
        message(viewer, "snapshot");
        assert!(ready(viewer).is_pending());
    }
    for seq in 1..=5_u64 {
        look(&app);
        assert_eq!(message(&mut fast, "tick")["seq"], seq);
    }
    assert_eq!(message(&mut slow, "tick")["seq"], 5);
    assert!(ready(&mut slow).is_pending());
}

#[test]
fn all_viewers_are_sent_the_same_bytes() {
    let app = app();
    let mut viewers = [(); 3].map(|()| app.dashboard.view(&app, None).unwrap());
    let mut cx = Context::from_waker(Waker::noop());
    look(&app);
    let sent = viewers.each_mut().map(|viewer| {
        message(viewer, "snapshot");
        match Pin::new(viewer).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap(),
            other => panic!("{other:?}"),
        }
    });
    let places = sent.each_ref().map(|bytes| bytes.as_ptr());
    assert!(places.iter().all(|place| *place == places[0]));
}

#[test]
fn who_missed_that_the_endpoints_changed_is_told_all_again() {
    let app = app();
    let mut viewing = app.dashboard.view(&app, None).unwrap();
    let snapshot = message(&mut viewing, "snapshot");
    assert_eq!(snapshot["endpoints"].as_array().unwrap().len(), 0);
    assert_eq!(snapshot["tick"]["verdict"]["state"], "down");
    let backend = Backend {
        id: Some("gpu-1".into()),
        ..Backend::new("http://127.0.0.1:1")
    };
    app.backends.add(&backend).unwrap();
    for _ in 0..3 {
        look(&app);
    }
    let snapshot = message(&mut viewing, "snapshot");
    assert_eq!(snapshot["endpoints"][0]["url"], "http://127.0.0.1:1");
    assert_eq!(message(&mut viewing, "tick")["seq"], 3);
    look(&app);
    let tick = message(&mut viewing, "tick");
    assert_eq!(tick["endpoints"][0]["id"], "gpu-1");
    assert_eq!(tick["verdict"]["state"], "idle");
}

#[test]
fn nobody_looking_nothing_is_written_and_history_goes_on() {
    let app = app();
    for _ in 0..2 {
        tell(&app.dashboard, Told::default());
        look(&app);
    }
    assert!(matches!(*app.dashboard.messages.borrow(), Message::Nothing));
    let mut viewing = app.dashboard.view(&app, None).unwrap();
    let snapshot = message(&mut viewing, "snapshot");
    assert_eq!(snapshot["history"]["requests"], serde_json::json!([1, 1]));
    drop(viewing);
    look(&app);
    assert!(matches!(*app.dashboard.messages.borrow(), Message::Nothing));
}

#[test]
fn the_end_is_told_at_once_and_who_leaves_makes_room() {
    let app = app();
    let mut viewers: Vec<_> = (0..VIEWERS)
        .map(|_| app.dashboard.view(&app, None).unwrap())
        .collect();
    let refused = app.dashboard.view(&app, None).err().unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    viewers.pop();
    viewers.push(app.dashboard.view(&app, None).unwrap());
    app.dashboard.close();
    for viewer in &mut viewers {
        message(viewer, "snapshot");
        assert!(matches!(ready(viewer), Poll::Ready(None)));
    }
    look(&app);
    drop(viewers);
    assert_eq!(
        app.dashboard.view(&app, None).err().unwrap().code(),
        "draining"
    );
}
