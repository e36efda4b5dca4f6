use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    class::Class,
    indicators::{Ended, Event, Gaps, Indicators},
};
use palisade_core::classify::Usage;

const PRESENT: Present = Present {
    in_flight: 3,
    queue_depth: Some(2),
    process: ProcessUsage {
        cpu_usage: Some(0.5),
        memory_usage: None,
    },
};

fn gathered(events: &[Event]) -> Gathered {
    let mut bucket = Indicators::<Whole>::default();
    events.iter().for_each(|event| bucket.count(event));
    let before = Totals::of(&bucket);
    let spans = Spans {
        window: 60.0,
        covered: 63.0,
    };
    Gathered::new([&bucket].into_iter(), Some((before, 60.0)), spans)
}

fn sent(export: &Export) -> Export {
    serde_json::from_str(&serde_json::to_string(export).unwrap()).unwrap()
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let length = (0.0..60e9_f64.ln()).prop_map(|log| log.exp() as u64);
    let class = prop::sample::select(Class::ALL.to_vec());
    let ended = (class, length.clone(), any::<bool>(), 0_u64..3000);
    let ended = ended.prop_map(|(class, total, streams, tokens)| {
        let gaps = Gaps {
            mean: total / 20,
            longest: total / 3,
        };
        Event::End(Ended {
            class,
            usage: streams.then_some(Usage {
                prompt: 10,
                completion: tokens,
            }),
            first_data: Some(total / 2),
            total,
            gaps: streams.then_some(gaps),
        })
    });
    vec(prop_oneof![ended, length.prop_map(Event::FirstData)], 0..60)
}

proptest! {
    #[test]
    fn merging_replicas_equals_one_big_replica(parts in vec(events(), 1..6)) {
        let mut replicas = Replicas::new();
        for part in &parts {
            let export = Export::new("chat", &gathered(part), &PRESENT);
            replicas.add(&sent(&export)).unwrap();
        }
        let targets = Targets::default();
        let merged = replicas.summary(&targets).unwrap();
        let count = parts.len() as u64;
        prop_assert_eq!(replicas.count() as u64, count);
        let present = Present {
            in_flight: 3 * count,
            queue_depth: Some(2 * count),
            ..PRESENT
        };
        let mut big = gathered(&parts.concat()).summary(&present, &targets);
        // A sum of fractions depends on their order, and a fraction in JSON may lose its last digit.
        let close = |one: f64, other: f64| (one - other).abs() <= 1e-9 * other;
        let (found, expected) = (&merged.token_metrics, &mut big.token_metrics);
        prop_assert!(close(found.avg_tokens_per_second, expected.avg_tokens_per_second));
        prop_assert!(close(found.max_tokens_per_second, expected.max_tokens_per_second));
        expected.avg_tokens_per_second = found.avg_tokens_per_second;
        expected.max_tokens_per_second = found.max_tokens_per_second;
        // All else is the same to the last digit, percentiles and trend included.
        prop_assert_eq!(merged, big);
    }

    #[test]
    fn what_others_send_is_an_error_and_never_a_panic(
        bytes in vec(any::<u8>(), 0..200),
        at in 0..HEADER,
        to in any::<u8>(),
        garbage in any::<bool>(),
    ) {
        let mut export = Export::new("chat", &gathered(&[Event::FirstData(3_000_000)]), &PRESENT);
        let mut good = STANDARD.decode(&export.first_data.hdr).unwrap();
        good[at] = to;
        good.truncate(HEADER);
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        good[4..8].copy_from_slice(&length);
        good.extend(&bytes);
        export.first_data.hdr = STANDARD.encode(if garbage { &bytes } else { &good });
        let mut replicas = Replicas::new();
        if replicas.add(&export).is_ok() {
            replicas.summary(&Targets::default()).unwrap();
        } else {
            prop_assert_eq!(replicas.summary(&Targets::default()), None);
        }
    }
}

#[test]
fn tools_of_hdr_histogram_read_what_is_exported() {
    let millis = |millis: u64| Event::FirstData(millis * 1_000_000);
    let all: Vec<_> = (1..=1000).map(millis).collect();
    let export = Export::new("chat", &gathered(&all), &PRESENT);
    let bytes = STANDARD.decode(export.first_data.hdr).unwrap();
    let hdr: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
    assert_eq!(hdr.len(), 1000);
    for (share, expected) in [(0.5, 500e6), (0.95, 950e6), (0.99, 990e6)] {
        let found = hdr.value_at_quantile(share) as f64;
        assert!(
            (found - expected).abs() < 0.032 * expected,
            "{share} {found}"
        );
    }
}

#[test]
fn another_version_another_window_and_what_cannot_be_are_refused_by_name() {
    let good = Export::new("chat", &gathered(&[]), &PRESENT);
    let refused = |change: fn(&mut Export)| {
        let mut export = good.clone();
        change(&mut export);
        let mut replicas = Replicas::new();
        replicas.add(&good).unwrap();
        let error = replicas.add(&export).unwrap_err();
        assert_eq!(replicas.count(), 1);
        error.field()
    };
    assert_eq!(refused(|export| export.version = 2), "version");
    assert_eq!(
        refused(|export| export.window_seconds = 59.0),
        "window_seconds"
    );
    assert_eq!(
        refused(|export| export.window_seconds = f64::NAN),
        "window_seconds"
    );
    assert_eq!(
        refused(|export| export.covered_seconds = f64::INFINITY),
        "covered_seconds"
    );
    assert_eq!(refused(|export| export.tokens.rates = -1.0), "tokens");
    assert_eq!(
        refused(|export| export.verdicts.success = u64::MAX),
        "verdicts"
    );
    assert_eq!(refused(|export| export.latency.hdr = "?".into()), "latency");
    assert_eq!(
        refused(|export| export.between_tokens.hdr.clear()),
        "between_tokens"
    );
    let error = InvalidExport("version");
    assert_eq!(
        error.to_string(),
        "the export cannot be added for its version"
    );
}

#[test]
fn a_trend_is_known_when_all_replicas_know_what_was_before() {
    let mut young = Export::new("chat", &gathered(&[]), &PRESENT);
    let mut replicas = Replicas::new();
    replicas.add(&young).unwrap();
    let trend = |replicas: &Replicas| replicas.summary(&Targets::default()).unwrap().trend;
    assert!(trend(&replicas).is_some());
    young.before = None;
    replicas.add(&young).unwrap();
    assert!(trend(&replicas).is_none());
}
