use std::time::Duration;

use palisade::time;

use super::*;
use crate::{app::App, config};

/// Longer than the grace of the recorder, whatever it is.
const LATER: Duration = Duration::from_secs(24 * 3600);

/// How many series of that backend are on the page.
fn series_of(backend: &str) -> usize {
    let page = page().unwrap();
    let value = format!("=\"{backend}\"");
    page.lines().filter(|line| line.contains(&value)).count()
}

#[tokio::test]
async fn all_series_of_a_backend_that_was_removed_go_and_it_can_come_back() {
    let recorder = recorder().unwrap();
    let app = App::new(Config::default(), String::new(), None).unwrap();
    let backend = config::Backend {
        id: Some("short-lived".into()),
        ..config::Backend::new("http://127.0.0.1:1")
    };
    let mut counts = Vec::new();
    for _ in 0..3 {
        app.backends.add(&backend).unwrap();
        app.backends.publish();
        counts.push(series_of("short-lived"));
        app.backends.remove("short-lived").unwrap();
        app.backends.publish();
        // Its last values can still be read.
        assert_eq!(series_of("short-lived"), counts[0]);
        app.backends.publish();
        recorder.sweep(time::now() + LATER);
        assert_eq!(series_of("short-lived"), 0);
    }
    assert!(counts[0] > 20, "{counts:?}");
    assert_eq!(counts, [counts[0]; 3]);
}

#[tokio::test]
async fn an_endpoint_that_comes_after_many_others_is_still_measured_by_its_name() {
    let app = App::new(Config::default(), String::new(), None).unwrap();
    // More than are measured at once.
    for number in 0..300 {
        let backend = config::Backend {
            id: Some(format!("pod-{number}")),
            ..config::Backend::new("http://127.0.0.1:1")
        };
        app.backends.add(&backend).unwrap();
        app.backends.remove(&format!("pod-{number}")).unwrap();
    }
    let sla = &app.stack.sla;
    let last = sla.label("endpoint", "pod-299", Duration::from_secs(60));
    assert!(last.is_some());
    assert_eq!(
        sla.label("endpoint", "other", Duration::from_secs(60)),
        None
    );
}
