use super::*;

fn event(state: State, severity: Severity) -> Event {
    Event {
        at: SystemTime::UNIX_EPOCH,
        kind: Kind::Endpoint,
        state,
        severity,
        subject: "gpu-3".into(),
        text: "gpu-3".into(),
    }
}

fn told_of(config: &Notify, events: &[(State, Severity)]) -> Vec<bool> {
    let mut filter = Filter::new(config);
    let events = events.iter();
    events
        .map(|(state, severity)| filter.lets_through(&event(*state, *severity)))
        .collect()
}

#[test]
fn an_alert_is_told_once_until_it_is_worse_or_over() {
    use Severity::{Bad, Ok, Warn};
    use State::{Firing, Resolved};

    let told = told_of(
        &Notify::default(),
        &[
            (Firing, Warn),
            (Firing, Bad),
            (Firing, Warn),
            (Firing, Bad),
            (Resolved, Ok),
            (Resolved, Ok),
            (Firing, Bad),
        ],
    );
    assert_eq!(told, [true, true, false, false, true, false, true]);
}

#[test]
fn what_was_not_told_is_not_told_to_be_over() {
    let config = Notify {
        min_severity: MinSeverity::Bad,
        ..Notify::default()
    };
    let events = [
        (State::Firing, Severity::Warn),
        (State::Resolved, Severity::Ok),
        (State::Told, Severity::Info),
    ];
    assert_eq!(told_of(&config, &events), [false; 3]);
    let config = Notify {
        min_severity: MinSeverity::Info,
        ..Notify::default()
    };
    assert_eq!(told_of(&config, &events), [true; 3]);
    let config = Notify {
        kinds: vec![Kind::Burn],
        ..config
    };
    assert_eq!(told_of(&config, &events), [false; 3]);
}

#[tokio::test]
async fn what_finds_no_room_is_not_told_twice_and_its_end_waits_like_its_beginning() {
    let config = Notify::new("http://127.0.0.1:9");
    let (mut notifier, sender) = Notifier::new(&config, "here".into()).unwrap();
    let mut tell = |state, severity| {
        for number in 0..QUEUE + 10 {
            let subject = number.to_string().into();
            let event = event(state, severity);
            notifier.notify(&Event { subject, ..event });
        }
        sender.shared.queue().len()
    };
    assert_eq!(tell(State::Firing, Severity::Bad), QUEUE + 10);
    assert_eq!(tell(State::Firing, Severity::Bad), QUEUE + 10, "known");
    // Ten are over that nobody was told of, and all others are told to be.
    assert_eq!(tell(State::Resolved, Severity::Ok), 2 * QUEUE);
    assert!(notifier.filter.firing.is_empty());
    let queue = &mut *sender.shared.queue();
    let firing = queue.take(QUEUE, 0);
    assert!(firing.iter().all(|event| event.state == State::Firing));
    let over = queue.take(2 * QUEUE, 0);
    assert_eq!(over.len(), QUEUE);
    assert!(over.iter().all(|event| event.state == State::Resolved));
}

#[tokio::test(start_paused = true)]
async fn once_nobody_tells_anything_a_webhook_that_is_down_is_given_up() {
    let config = Notify {
        attempts: 1,
        // Nobody listens there.
        ..Notify::new("http://127.0.0.1:9")
    };
    let (mut notifier, sender) = Notifier::new(&config, "here".into()).unwrap();
    notifier.notify(&event(State::Firing, Severity::Bad));
    let shared = sender.shared.clone();
    drop(notifier);
    let ended = timeout(Duration::from_secs(3600), sender.run()).await;
    assert!(ended.is_ok());
    assert_eq!(shared.queue().len(), 0);
}
