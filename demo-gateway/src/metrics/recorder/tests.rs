use std::collections::BTreeSet;

use ::metrics::{counter, describe_counter, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use palisade_core::testing::CountingAllocator;
use proptest::{collection::vec, prelude::*};
use tokio::time::advance;

use super::*;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What its users report, and what a scrape sees then.
fn page(recorder: &Recorder, report: impl FnOnce()) -> String {
    ::metrics::with_local_recorder(recorder, report);
    recorder.render()
}

/// Lines that begin so.
fn lines<'a>(page: &'a str, start: &str) -> Vec<&'a str> {
    let all = page.lines().filter(|line| line.starts_with(start));
    all.collect()
}

#[test]
fn counting_allocates_nothing() {
    let recorder = Recorder::new();
    ::metrics::with_local_recorder(&recorder, || {
        let count = counter!("c_total", "x" => "y");
        let level = gauge!("g");
        let values = histogram!("h_seconds", "x" => "y");
        values.record(0.1);
        let before = CountingAllocator::count();
        for value in 0..10_000 {
            count.increment(1);
            level.set(f64::from(value));
            values.record(f64::from(value));
        }
        assert_eq!(CountingAllocator::count() - before, 0);
    });
    let page = recorder.render();
    assert_eq!(
        lines(&page, "h_seconds_count"),
        [r#"h_seconds_count{x="y"} 10001"#]
    );
}

#[test]
fn names_are_sorted_and_described_and_labels_are_escaped() {
    let recorder = Recorder::new();
    let page = page(&recorder, || {
        counter!("b_total", "z" => "1", "a" => "back\\slash \"quoted\"\nnext").increment(2);
        gauge!("a.level").set(f64::INFINITY);
        describe_counter!("b_total", "What\nit says.");
        describe_counter!("never_total", "Nobody counts it.");
    });
    let expected = "\
# TYPE a_level gauge
a_level +Inf
# HELP b_total What\\nit says.
# TYPE b_total counter
b_total{z=\"1\",a=\"back\\\\slash \\\"quoted\\\"\\nnext\"} 2
";
    assert!(page.starts_with(expected), "{page}");
    assert!(!page.contains("never_total"), "{page}");
}

#[test]
fn one_set_of_labels_is_one_series_in_whatever_order() {
    let recorder = Recorder::new();
    let page = page(&recorder, || {
        counter!("c_total", "a" => "1", "b" => "2").increment(1);
        counter!("c_total", "b" => "2", "a" => "1").increment(1);
    });
    assert_eq!(lines(&page, "c_total"), [r#"c_total{a="1",b="2"} 2"#]);
}

#[test]
fn what_finds_no_room_counts_together_and_is_counted() {
    let recorder = Recorder::with(3, GRACE);
    let page = page(&recorder, || {
        for user in 0..10 {
            counter!("c_total", "user" => user.to_string()).increment(1);
        }
        // What has a place keeps it.
        counter!("c_total", "user" => "0").increment(1);
        gauge!("another").set(1.0);
    });
    let expected = [
        r#"c_total{user="0"} 2"#,
        r#"c_total{user="1"} 1"#,
        r#"c_total{user="other"} 8"#,
    ];
    assert_eq!(lines(&page, "c_total"), expected);
    assert_eq!(lines(&page, DROPPED), [format!("{DROPPED} 8")]);
    assert_eq!(lines(&page, "another"), ["another 1"]);
    assert_eq!(lines(&page, SERIES), [format!("{SERIES} 6")]);
}

#[test]
fn a_name_has_one_kind() {
    let recorder = Recorder::new();
    let page = page(&recorder, || {
        counter!("x").increment(1);
        gauge!("x", "a" => "b").set(7.0);
        histogram!("x").record(7.0);
    });
    assert_eq!(lines(&page, "x"), ["x 1"]);
    assert_eq!(lines(&page, DROPPED), [format!("{DROPPED} 2")]);
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_shown_until_everybody_has_seen_its_last_value() {
    let recorder = Recorder::new();
    let shown = || !lines(&recorder.render(), "c_total{endpoint=\"a\"").is_empty();
    let held = ::metrics::with_local_recorder(&recorder, || {
        counter!("c_total", "endpoint" => "b").increment(1);
        counter!("c_total", "endpoint" => "a")
    });
    recorder.forget("endpoint", "a");
    advance(2 * GRACE).await;
    // Its last request may still end.
    assert!(shown());
    held.increment(5);
    drop(held);
    advance(GRACE - Duration::from_nanos(1)).await;
    assert_eq!(
        lines(&recorder.render(), "c_total{endpoint=\"a\""),
        [r#"c_total{endpoint="a"} 5"#]
    );
    advance(Duration::from_nanos(1)).await;
    assert!(!shown());
    let page = recorder.render();
    assert_eq!(lines(&page, "c_total"), [r#"c_total{endpoint="b"} 1"#]);
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_goes_on_where_it_was_and_later_begins_anew() {
    let recorder = Recorder::new();
    let add = || {
        ::metrics::with_local_recorder(&recorder, || {
            counter!("c_total", "endpoint" => "a").increment(1);
        });
    };
    let value = || lines(&recorder.render(), "c_total{").concat();
    add();
    recorder.forget("endpoint", "a");
    advance(GRACE / 2).await;
    add();
    advance(2 * GRACE).await;
    assert_eq!(value(), r#"c_total{endpoint="a"} 2"#);
    recorder.forget("endpoint", "a");
    advance(GRACE).await;
    assert_eq!(value(), "");
    add();
    assert_eq!(value(), r#"c_total{endpoint="a"} 1"#);
}

#[test]
fn room_that_was_left_is_given_to_others() {
    let recorder = Recorder::with(2, Duration::ZERO);
    let add = |name: &'static str| counter!("c_total", "endpoint" => name).increment(1);
    ::metrics::with_local_recorder(&recorder, || {
        add("a");
        recorder.forget("endpoint", "a");
        recorder.sweep(time::now());
        add("b");
    });
    let page = recorder.render();
    assert_eq!(lines(&page, "c_total"), [r#"c_total{endpoint="b"} 1"#]);
}

#[derive(Clone, Debug)]
enum Event {
    Count(u8, u64),
    Level(u8, f64),
    Value(u8, f64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        (0..4_u8, 0..100_u64).prop_map(|(at, by)| Event::Count(at, by)),
        (0..4_u8, -50..50_i32).prop_map(|(at, to)| Event::Level(at, f64::from(to) / 4.0)),
        // Sums that come out the same in whatever order.
        (0..4_u8, 0..1500_u32).prop_map(|(at, value)| Event::Value(at, f64::from(value) / 4.0)),
    ];
    vec(event, 0..60)
}

fn report(events: &[Event]) {
    describe_counter!("c_total", "Counts.");
    describe_histogram!("h_seconds", "Values.");
    for event in events {
        match event {
            Event::Count(at, by) => counter!("c_total", "at" => at.to_string()).increment(*by),
            Event::Level(at, to) => gauge!("level", "at" => at.to_string()).set(*to),
            Event::Value(at, value) => {
                histogram!("h_seconds", "at" => at.to_string()).record(*value);
            }
        }
    }
}

proptest! {
    #[test]
    fn its_page_says_what_the_exporter_of_metrics_says(events in events()) {
        let bounds = buckets::of("h_seconds");
        let exporter = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full("h_seconds".into()), bounds)
            .unwrap()
            .build_recorder();
        ::metrics::with_local_recorder(&exporter, || report(&events));
        let theirs = exporter.handle().render();
        let recorder = Recorder::new();
        let ours = page(&recorder, || report(&events));
        let set = |page: &str| -> BTreeSet<String> {
            let lines = page.lines().filter(|line| !line.is_empty());
            lines.filter(|line| !line.contains("palisade_metrics_")).map(str::to_owned).collect()
        };
        prop_assert_eq!(set(&ours), set(&theirs));
    }
}
