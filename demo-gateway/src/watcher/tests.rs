use palisade::time::now;
use palisade::{balance::EndpointState, circuit_breaker::CircuitState};

use super::{
    view::{CircuitView, EndpointView, Rate},
    *,
};

fn endpoint(name: &str, state: EndpointState) -> EndpointView {
    EndpointView {
        name: name.into(),
        state,
        circuit: None,
        reason: None,
        check: None,
        retry_in: None,
    }
}

fn circuit(state: CircuitState, opened: u64) -> Option<CircuitView> {
    Some(CircuitView {
        state,
        forced: false,
        opened,
        in_a_row: 5,
    })
}

fn of(endpoints: Vec<EndpointView>) -> View {
    View {
        usable: true,
        endpoints,
        ..View::default()
    }
}

fn serving() -> View {
    of(vec![endpoint("gpu-3", EndpointState::Serving)])
}

/// What these looks tell after one at a gateway that is well.
fn look(views: impl IntoIterator<Item = View>) -> Vec<Event> {
    let mut watcher = Watcher::default();
    let now = now();
    assert_eq!(watcher.look(serving(), now), []);
    let all = views.into_iter().zip(1..);
    all.flat_map(|(view, second)| watcher.look(view, now + second * EVERY))
        .collect()
}

fn shown(events: &[Event]) -> Vec<String> {
    let shown = events.iter().map(|event| {
        let Event {
            state,
            severity,
            text,
            ..
        } = event;
        format!("{} {}: {text}", state.name(), severity.name())
    });
    shown.collect()
}

#[test]
fn nothing_is_told_while_nothing_changes() {
    assert_eq!(look([serving(), serving(), serving()]), []);
}

#[test]
fn what_is_wrong_at_first_sight_is_told_and_who_is_there_is_not() {
    let mut watcher = Watcher::default();
    let here = of(vec![
        endpoint("a", EndpointState::Serving),
        endpoint("b", EndpointState::Unhealthy),
    ]);
    let events = watcher.look(here, now());
    assert_eq!(shown(&events), ["firing bad: b unhealthy"]);
}

#[test]
fn a_breaker_is_told_from_its_opening_to_its_end_one_sentence_a_step() {
    let with = |state, opened, left: u64| {
        let shown = match state {
            CircuitState::Closed => EndpointState::SlowStart,
            CircuitState::Open => EndpointState::Ejected,
            CircuitState::HalfOpen => EndpointState::Probing,
        };
        of(vec![EndpointView {
            circuit: circuit(state, opened),
            retry_in: (left > 0).then(|| Duration::from_secs(left)),
            ..endpoint("gpu-3", shown)
        }])
    };
    let events = look([
        with(CircuitState::Open, 1, 8),
        with(CircuitState::Open, 1, 7),
        with(CircuitState::HalfOpen, 1, 0),
        with(CircuitState::Open, 2, 14),
        // A probe that came and went between two looks.
        with(CircuitState::Open, 3, 28),
        with(CircuitState::Closed, 3, 0),
        with(CircuitState::Closed, 3, 0),
    ]);
    assert_eq!(
        shown(&events),
        [
            "firing bad: gpu-3 breaker opened after 5 failures in a row, next probe in 8 s",
            "firing warn: gpu-3 half-open: one probe let through",
            "firing bad: gpu-3 probe failed, breaker open again for 14 s",
            "firing bad: gpu-3 probe failed, breaker open again for 28 s",
            "resolved ok: gpu-3 reinstated: breaker closed",
        ]
    );
    assert!(events.iter().all(|event| event.kind == Kind::Endpoint));
    assert!(events.iter().all(|event| &*event.subject == "gpu-3"));
}

#[test]
fn an_ejection_says_what_for_and_a_failed_check_says_why() {
    let ejected = EndpointView {
        reason: Some(palisade::balance::EjectionReason::SuccessRatio),
        retry_in: Some(Duration::from_secs(10)),
        ..endpoint("gpu-3", EndpointState::Ejected)
    };
    let unhealthy = EndpointView {
        check: Some("connection refused".into()),
        ..endpoint("gpu-3", EndpointState::Unhealthy)
    };
    let events = look([
        of(vec![ejected.clone()]),
        of(vec![endpoint("gpu-3", EndpointState::Probing)]),
        of(vec![ejected]),
        of(vec![unhealthy]),
        serving(),
    ]);
    assert_eq!(
        shown(&events),
        [
            "firing bad: gpu-3 ejected: too many of its answers are failures, next probe in 10 s",
            "firing warn: gpu-3 on probation: one request finds out whether it works again",
            "firing bad: gpu-3 probe failed, ejected again, next probe in 10 s",
            "firing bad: gpu-3 unhealthy: connection refused",
            "resolved ok: gpu-3 reinstated: health checks pass",
        ]
    );
}

#[test]
fn what_somebody_wanted_is_no_alert() {
    let both = of(vec![
        endpoint("gpu-3", EndpointState::Serving),
        endpoint("gpu-4", EndpointState::SlowStart),
    ]);
    let events = look([
        both,
        of(vec![
            endpoint("gpu-3", EndpointState::Draining),
            endpoint("gpu-4", EndpointState::Serving),
        ]),
        of(vec![endpoint("gpu-4", EndpointState::Serving)]),
    ]);
    assert_eq!(
        shown(&events),
        [
            "told info: gpu-4 is new: it gets requests",
            "told info: gpu-3 drains: it finishes what it has",
            "told info: gpu-3 was removed",
        ]
    );
}

#[test]
fn an_alert_ends_with_the_backend_that_it_is_about() {
    let events = look([
        of(vec![endpoint("gpu-3", EndpointState::Ejected)]),
        of(vec![]),
    ]);
    assert_eq!(shown(&events)[1..], ["resolved info: gpu-3 was removed"]);
    let drained = look([
        of(vec![endpoint("gpu-3", EndpointState::Ejected)]),
        of(vec![endpoint("gpu-3", EndpointState::Draining)]),
    ]);
    assert_eq!(drained[1].state, State::Resolved);
}

#[test]
fn no_backend_is_the_worst_there_is() {
    let out = View {
        usable: false,
        ..of(vec![endpoint("gpu-3", EndpointState::Ejected)])
    };
    let events = look([out.clone(), out, serving()]);
    assert_eq!(
        shown(&events),
        [
            "firing bad: the only backend is out: all requests are refused",
            "firing bad: gpu-3 ejected: its breaker refuses",
            "resolved ok: there is a backend again that requests can go to",
            "resolved ok: gpu-3 reinstated",
        ]
    );
}

#[test]
fn backends_that_are_out_and_asked_all_the_same_are_not_taken_for_none() {
    let view = |usable, panics| View {
        usable,
        panics,
        ..serving()
    };
    let (tried, refused) = (view(true, true), view(false, true));
    let events = look([tried.clone(), tried.clone(), refused, tried, serving()]);
    assert_eq!(
        shown(&events),
        [
            "firing bad: fewer than half of the backends are well: those that are out get requests as well",
            "resolved ok: those that are out get no more requests: all are refused",
            "firing bad: the only backend is out: all requests are refused",
            "firing bad: fewer than half of the backends are well: those that are out get requests as well",
            "resolved ok: there is a backend again that requests can go to",
            "resolved ok: those that are out get no more requests: half of the backends are well",
        ]
    );
    let keys: Vec<_> = events.iter().map(|event| &*event.subject).collect();
    assert_eq!(
        keys,
        [
            "balancer", "balancer", "gateway", "balancer", "gateway", "balancer"
        ]
    );
}

#[test]
fn a_rule_refuses_until_it_has_been_quiet_for_half_a_minute() {
    let refused = |refused| View {
        rules: vec![RuleView {
            name: "per_user".into(),
            refused,
        }],
        ..serving()
    };
    let mut looks = vec![refused(0), refused(3), refused(3), refused(10)];
    looks.extend((0..29).map(|_| refused(10)));
    assert_eq!(
        shown(&look(looks.clone())),
        ["firing warn: rule per_user refuses requests: 3 in the last second"]
    );
    looks.extend([refused(10), refused(10), refused(11)]);
    assert_eq!(
        shown(&look(looks))[1..],
        [
            "resolved ok: rule per_user has refused nothing for 30 s, after 10 requests",
            "firing warn: rule per_user refuses requests: 1 in the last second",
        ]
    );
}

#[test]
fn a_store_says_why_it_is_gone() {
    let store = |up, error: Option<&str>| View {
        store: Some((up, error.map(Into::into))),
        ..serving()
    };
    let events = look([
        store(true, None),
        store(false, Some("connection refused")),
        store(false, Some("timed out")),
        store(true, Some("timed out")),
    ]);
    assert_eq!(
        shown(&events),
        [
            "firing bad: redis does not answer (connection refused): limits go on by `on_store_error`",
            "resolved ok: redis answers again: limits are shared",
        ]
    );
}

#[test]
fn a_burn_is_told_when_it_begins_and_when_it_ends() {
    let burn = |firing: Option<f64>| View {
        burns: vec![BurnView {
            rule: "availability",
            kind: AlertKind::Page,
            firing: firing.map(|rate| Rate {
                rate,
                over: Duration::from_secs(3600),
            }),
            left: 0.714,
        }],
        ..serving()
    };
    let events = look([burn(None), burn(Some(20.0)), burn(Some(40.0)), burn(None)]);
    assert_eq!(
        shown(&events),
        [
            "firing bad: page: the error budget of availability is spent 20.0 times as fast as it is earned over the last 60 min; 71 % of it is left",
            "resolved ok: page is over: the error budget of availability is no longer spent too fast; 71 % of it is left",
        ]
    );
    assert_eq!(events[0].subject, events[1].subject);
}

#[test]
fn a_flood_is_summed_up_and_its_worst_are_told() {
    let changes = Changes::default();
    let events = (0..20).map(|number| {
        let severity = match number {
            15 => Severity::Bad,
            0..10 => Severity::Info,
            _ => Severity::Warn,
        };
        told(&"b".into(), severity, format!("{number}"))
    });
    tell(&changes, events.collect());
    let recent = changes.recent();
    let texts: Vec<_> = recent.iter().rev().map(|it| &*it.text).collect();
    assert_eq!(
        texts,
        [
            "10",
            "11",
            "12",
            "13",
            "14",
            "15",
            "16",
            "and 13 more changes: 3 warn, 10 info"
        ]
    );
    let few = Changes::default();
    let events = (0..SENTENCES).map(|_| told(&"b".into(), Severity::Ok, "x".into()));
    tell(&few, events.collect());
    assert_eq!(few.recent().len(), SENTENCES);
}

#[test]
fn a_request_log_that_loses_rows_is_told_once_with_why_and_at_last_how_many() {
    let log = |up, is_full, lost| View {
        log: Some(Writing {
            up,
            is_full,
            lost,
            last_error: Some("database is locked".into()),
        }),
        ..serving()
    };
    let events = look([
        log(true, false, 0),
        log(false, false, 0),
        log(false, false, 0),
        log(false, true, 7),
        log(false, true, 9),
        log(true, false, 9),
        log(true, false, 9),
        // There was no room for a moment between two looks.
        log(true, false, 12),
        log(true, false, 12),
    ]);
    assert_eq!(
        shown(&events),
        [
            "firing bad: request log cannot be written, rows wait: database is locked",
            "firing bad: request log: rows are dropped and counted: database is locked",
            "resolved ok: request log is written again; 9 rows were dropped",
            "firing bad: request log: rows are dropped and counted: it is too slow",
            "resolved ok: request log is written again; 3 rows were dropped",
        ]
    );
    assert!(events.iter().all(|event| event.kind == Kind::Store));
}
