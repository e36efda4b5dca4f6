use palisade::balance::Strategy;

use super::*;
use crate::{
    app::App,
    config::{Backend, Config, Switch},
};

fn app(backends: &[&str]) -> App {
    let config = Config {
        rate_limit: Switch::Off,
        strategy: Strategy::RoundRobin,
        ..Config::default()
    };
    let app = App::new(config, "token".into(), None).unwrap();
    for id in backends {
        let backend = Backend {
            id: Some((*id).into()),
            ..Backend::new("http://127.0.0.1:1")
        };
        app.backends.add(&backend).unwrap();
    }
    app
}

fn judge(app: &App, ended: u64) -> Verdict {
    app.verdict.judge(&Facts {
        backends: &app.backends,
        endpoints: &app.backends.endpoints.snapshot(),
        burn: &app.stack.sla.burn(palisade::time::now()),
        draining: app.is_draining(),
        ended,
        in_flight: 3,
    })
}

#[test]
fn it_says_in_a_sentence_how_it_is_and_since_when() {
    let app = app(&["a", "b"]);
    let verdict = judge(&app, 0);
    assert_eq!(verdict.state, State::Idle);
    assert_eq!(
        verdict.text,
        "All 2 endpoints are serving. No request has come yet."
    );
    let verdict = judge(&app, 1);
    assert_eq!(verdict.state, State::Healthy);
    assert_eq!(
        verdict.text,
        "All 2 endpoints are serving, and all objectives are within their error budget."
    );
    assert_eq!(judge(&app, 2).since, verdict.since);
    assert_eq!(verdict.causes, []);

    app.backends
        .endpoints
        .with_gate("b", |gate| gate.0.handle().force_open());
    let verdict = judge(&app, 2);
    assert_eq!(verdict.state, State::Degraded);
    assert_eq!(
        verdict.text,
        "b is ejected (circuit held open by hand). Traffic goes to the one that serves."
    );
    assert_eq!(
        (&*verdict.causes[0].subject, verdict.causes.len()),
        ("b", 1)
    );

    app.backends
        .endpoints
        .with_gate("a", |gate| gate.0.handle().force_open());
    let verdict = judge(&app, 2);
    assert_eq!(verdict.state, State::Down);
    assert!(
        verdict.text.ends_with("callers get 503."),
        "{}",
        verdict.text
    );

    app.drain();
    let verdict = judge(&app, 2);
    assert_eq!(verdict.state, State::Draining);
    assert!(
        verdict.text.contains("3 requests in flight"),
        "{}",
        verdict.text
    );
}

#[test]
fn three_that_are_held_open_are_not_asked_though_too_few_are_left() {
    let app = app(&["a", "b", "c"]);
    for id in ["a", "b"] {
        let open = |gate: &crate::stack::EndpointGate| gate.0.handle().force_open();
        app.backends.endpoints.with_gate(id, open);
    }
    let verdict = judge(&app, 1);
    assert_eq!(verdict.state, State::Degraded);
    assert!(
        verdict
            .text
            .ends_with("Traffic goes to the one that serves."),
        "{}",
        verdict.text
    );
    app.backends
        .endpoints
        .with_gate("c", |gate| gate.0.handle().force_open());
    assert!(app.backends.endpoints.is_panicking());
    assert_eq!(judge(&app, 1).state, State::Down);
}

#[test]
fn one_that_is_drained_is_no_trouble() {
    let app = app(&["a", "b"]);
    app.backends.endpoints.suspend("b");
    let verdict = judge(&app, 1);
    assert_eq!(verdict.state, State::Healthy);
    assert!(
        verdict
            .text
            .starts_with("1 of 2 endpoints are serving, as asked for")
    );
    app.backends.endpoints.suspend("a");
    assert_eq!(judge(&app, 1).state, State::Down);
}

#[test]
fn however_much_is_wrong_it_stays_a_sentence() {
    let cause = |number: usize, length: usize| Cause {
        area: Area::Endpoints,
        severity: Severity::Bad,
        subject: format!("gpu-{number}"),
        text: format!("gpu-{number} {}", "é".repeat(length)),
    };
    for length in [1, 20, 60, 300] {
        for many in 1..100 {
            let causes: Vec<_> = (0..many).map(|number| cause(number, length)).collect();
            let text = told(&causes, "Traffic goes to the 12 that serve.");
            assert!(text.chars().count() <= SENTENCE, "{text}");
            assert!(text.starts_with("gpu-0") && text.ends_with("serve."));
            let told = (1..CAUSES)
                .filter(|it| text.contains(&format!("gpu-{it} ")))
                .count()
                + 1;
            assert_eq!(
                text.contains(&format!(" and {} more.", many - told)),
                many > told,
                "{text}"
            );
        }
    }
}

#[test]
fn a_backend_that_is_out_is_told_before_what_can_wait() {
    let app = app(&["a", "b"]);
    app.backends
        .endpoints
        .with_gate("b", |gate| gate.0.handle().force_open());
    let mut burn = app.stack.sla.burn(palisade::time::now());
    let ticket = burn.availability.alerts.iter_mut();
    let mut tickets = ticket.filter(|alert| alert.kind == AlertKind::Ticket);
    tickets.next().unwrap().firing = true;
    let verdict = app.verdict.judge(&Facts {
        backends: &app.backends,
        endpoints: &app.backends.endpoints.snapshot(),
        burn: &burn,
        draining: false,
        ended: 1,
        in_flight: 0,
    });
    assert_eq!(verdict.state, State::Degraded);
    let causes = verdict.causes.iter();
    let causes: Vec<_> = causes.map(|it| (it.severity, &*it.subject)).collect();
    assert_eq!(
        causes,
        [(Severity::Bad, "b"), (Severity::Warn, "availability")]
    );
    assert!(verdict.text.starts_with("b is ejected"), "{}", verdict.text);
}
