//! Labels of endpoints that come and go.

use std::{sync::mpsc, thread, time::Duration};

use http::Request;
use palisade_core::{
    classify::Verdict,
    gate::{Admit, Gate},
    head::RequestHead,
    settle::{End, Settle},
    time,
};
use palisade_sla::{Handle, InFlight, LabelledSla, Sla};
use tokio::time::advance;

use crate::objective;

/// The longest window, unless told otherwise.
const WINDOW: Duration = Duration::from_secs(300);

fn admit(gate: &LabelledSla) -> InFlight {
    let request = Request::new(());
    match gate.admit(&RequestHead::from(&request), time::now()) {
        Admit::Now(Ok(guard)) => guard,
        _ => panic!("lets all through"),
    }
}

fn end(mut guard: InFlight, verdict: Verdict) {
    guard.finish(&End::new(verdict), time::now());
}

fn endpoint(sla: &Sla, name: &str) -> LabelledSla {
    sla.labelled("endpoint", name).unwrap()
}

fn names(handle: &Handle) -> Vec<String> {
    let labels = handle.labels(WINDOW).remove(0).labels;
    labels.iter().map(|label| label.label.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_come_and_go_for_weeks_are_all_measured_by_name() {
    let sla = Sla::new(objective()).most_labels(3);
    let handle = sla.handle();
    for day in 0..1000_u64 {
        let name = format!("pod-{day}");
        let gate = endpoint(&sla, &name);
        for _ in 0..=day % 5 {
            end(admit(&gate), Verdict::Success);
        }
        let label = handle.label("endpoint", &name, WINDOW).unwrap();
        assert_eq!(
            label.total_requests,
            day % 5 + 1,
            "nothing of who was there before"
        );
        drop(gate);
        assert!(names(&handle).len() <= 3);
        // Some come faster than a window passes.
        advance(WINDOW / (1 + day as u32 % 7)).await;
    }
    assert_eq!(handle.label("endpoint", "other", WINDOW), None);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_has_left_is_seen_for_a_window_after_its_last_request() {
    let sla = Sla::new(objective());
    let handle = sla.handle();
    let (gate, stays) = (endpoint(&sla, "a"), endpoint(&sla, "b"));
    let (clone, again) = (gate.clone(), endpoint(&sla, "a"));
    let running = admit(&gate);
    drop((gate, clone));
    advance(2 * WINDOW).await;
    assert_eq!(names(&handle), ["a", "b"], "somebody holds it");
    drop(again);
    advance(2 * WINDOW).await;
    let label = handle.label("endpoint", "a", WINDOW).unwrap();
    assert_eq!(label.in_flight, 1);
    end(running, Verdict::Failure);
    advance(WINDOW / 2).await;
    assert_eq!(
        handle.label("endpoint", "a", WINDOW).unwrap().error_count,
        1
    );
    advance(WINDOW).await;
    assert_eq!(names(&handle), ["b"]);
    // It begins from nothing when it comes back.
    let back = endpoint(&sla, "a");
    let label = handle.label("endpoint", "a", WINDOW).unwrap();
    assert_eq!((label.error_count, label.in_flight), (0, 0));
    assert_eq!(
        names(&handle),
        ["b", "a"],
        "in the order in which they came"
    );
    drop((back, stays));
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_back_within_a_window_goes_on_where_it_was() {
    let sla = Sla::new(objective());
    end(admit(&endpoint(&sla, "a")), Verdict::Success);
    advance(WINDOW / 2).await;
    end(admit(&endpoint(&sla, "a")), Verdict::Success);
    let label = sla.handle().label("endpoint", "a", WINDOW).unwrap();
    assert_eq!(label.total_requests, 2);
}

#[tokio::test(start_paused = true)]
async fn all_places_taken_the_one_that_left_first_makes_room_and_who_is_there_does_not() {
    let sla = Sla::new(objective()).most_labels(2);
    let handle = sla.handle();
    let (a, b) = (endpoint(&sla, "a"), endpoint(&sla, "b"));
    let c = endpoint(&sla, "c");
    end(admit(&c), Verdict::Success);
    assert_eq!(names(&handle), ["a", "b", "other"]);
    let running = admit(&b);
    drop(b);
    advance(WINDOW / 100).await;
    drop(a);
    let d = endpoint(&sla, "d");
    assert_eq!(names(&handle), ["b", "d", "other"], "b is still asked");
    end(running, Verdict::Success);
    let e = endpoint(&sla, "e");
    end(admit(&e), Verdict::Failure);
    assert_eq!(names(&handle), ["d", "e", "other"]);
    let e_was = handle.label("endpoint", "e", WINDOW).unwrap();
    assert_eq!((e_was.successful_requests, e_was.error_count), (0, 1));
    drop((c, d, e));
}

#[tokio::test(start_paused = true)]
async fn labels_that_heads_may_name_stay() {
    let sla = Sla::new(objective());
    let gate = endpoint(&sla, "/a");
    let sla = sla.by("endpoint", |head| Some(head.uri.path())).unwrap();
    end(admit(&gate), Verdict::Success);
    drop(gate);
    advance(3 * WINDOW).await;
    let request = Request::builder().uri("/a").body(()).unwrap();
    let Admit::Now(Ok(guard)) = sla.admit(&RequestHead::from(&request), time::now()) else {
        panic!("lets all through");
    };
    end(guard, Verdict::Failure);
    let label = sla.handle().label("endpoint", "/a", WINDOW).unwrap();
    assert_eq!((label.successful_requests, label.error_count), (0, 1));
    assert_eq!(names(&sla.handle()), ["/a"]);
}

/// Answers end on other threads than they began on, and after their endpoint was removed.
#[test]
fn no_endpoint_has_figures_of_another_whoever_comes_and_goes_meanwhile() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 400;
    const LATE: usize = 4;
    // The last of the threads finds a place also when the others hold one each, and late answers, one of which just ends.
    let sla = Sla::new(objective()).most_labels(THREADS as usize + LATE + 1);
    let handle = sla.handle();
    let (late, ending) = mpsc::sync_channel::<(InFlight, Verdict)>(LATE);
    thread::scope(|scope| {
        scope.spawn(move || {
            for (guard, verdict) in ending {
                end(guard, verdict);
            }
        });
        for worker in 0..THREADS {
            let (sla, handle, late) = (&sla, &handle, late.clone());
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let name = format!("{worker}-{round}");
                    let gate = endpoint(sla, &name);
                    let good = round % 2 == 0;
                    let verdict = if good {
                        Verdict::Success
                    } else {
                        Verdict::Failure
                    };
                    let many = 1 + round % 90;
                    (0..many).for_each(|_| end(admit(&gate), verdict));
                    let label = handle.label("endpoint", &name, WINDOW).unwrap();
                    let found = (label.successful_requests, label.error_count);
                    let expected = if good { (many, 0) } else { (0, many) };
                    assert_eq!(found, expected, "{name}");
                    late.send((admit(&gate), verdict)).unwrap();
                }
            });
        }
        drop(late);
    });
    let labels = handle.labels(WINDOW).remove(0).labels;
    assert!(labels.iter().all(|label| label.in_flight == 0));
    for label in labels {
        assert_ne!(&*label.label, "other");
        assert!(
            label.successful_requests == 0 || label.error_count == 0,
            "{label:?}"
        );
    }
}
