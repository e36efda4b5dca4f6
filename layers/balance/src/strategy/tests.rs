use std::time::Duration;

use super::{price::Field, *};
use crate::{
    LoadReport,
    coin::{Coin, hash},
    load::{Load, Norm},
    size::{Size, Usual},
    told::Usually,
};

const SECOND: u64 = 1_000_000_000;

const NORM: Norm = Norm {
    latency: 1e9,
    lasts: 0.0,
    streams: 0.0,
    place: 0.0,
};

fn field(now: u64) -> Field {
    Field {
        now,
        size: 1.0,
        peers: 1e9,
        penalty: 5e9,
        place: 0.0,
        round: 0.0,
        usually: None,
        draw: 0,
        belongs: false,
        wants_all: true,
        bound: None,
        hot: None,
    }
}

fn view<'a>(load: &'a Load, field: &'a Field) -> View<'a> {
    View {
        load,
        stride: 1.0,
        turn: 0.0,
        hash: 1,
        doubtful: false,
        field,
    }
}

/// One that took so long for an answer that has just ended, and has so many in flight that have all begun.
fn load(latency: u64, in_flight: usize) -> Load {
    let mut load = Load::new(0);
    let mut attempt = load.start(Size::ONE, &NORM, 0);
    let waited = load.heard(&mut attempt, latency);
    load.sample(&attempt, waited, latency);
    load.end(&attempt);
    for _ in 0..in_flight {
        let mut attempt = load.start(Size::ONE, &NORM, latency);
        load.heard(&mut attempt, latency);
    }
    load
}

fn report(in_flight: u32, latency: Option<u64>) -> LoadReport {
    LoadReport {
        in_flight: Some(in_flight),
        utilization: Some(0.5),
        latency: latency.map(Duration::from_nanos),
        errors: None,
    }
}

#[test]
fn names_lead_back_to_strategies() {
    for strategy in Strategy::ALL {
        assert_eq!(strategy.name().parse(), Ok(strategy));
    }
    assert_eq!("fastest".parse::<Strategy>(), Err(UnknownStrategy));
}

#[test]
fn every_price_is_finite_and_dearer_than_a_probe() {
    let mut fresh = Load::new(0);
    let mut busy = Load::new(0);
    for _ in 0..1000 {
        let attempt = busy.start(Size::ONE, &NORM, 0);
        busy.sample(&attempt, 0.0, 0);
    }
    busy.penalise(u64::MAX as f64, SECOND);
    let told = LoadReport {
        in_flight: Some(u32::MAX),
        utilization: Some(f64::MAX),
        latency: Some(Duration::MAX),
        errors: Some(1.0),
    };
    fresh.report(told, 0);
    let odd = LoadReport {
        utilization: Some(f64::NAN),
        ..told
    };
    busy.report(odd, 0);
    let fields = [
        field(0),
        field(u64::MAX),
        Field {
            usually: Some(Usually {
                others: Some(f64::from(u32::MAX)),
                utilization: Some(f64::MAX),
                latency: Some(f64::MAX),
                errors: Some(1.0),
            }),
            bound: Some(0.0),
            hot: Some(0),
            size: 100.0,
            place: 1e10,
            round: 1e18,
            ..field(1)
        },
        Field {
            usually: Some(Usually {
                others: Some(0.0),
                utilization: Some(0.0),
                latency: Some(0.0),
                errors: Some(0.0),
            }),
            bound: Some(f64::MAX),
            hot: Some(u32::MAX),
            size: 0.01,
            peers: 0.0,
            penalty: 0.0,
            ..field(1)
        },
    ];
    for (load, field) in [&fresh, &busy]
        .into_iter()
        .flat_map(|load| fields.iter().map(move |field| (load, field)))
    {
        for strategy in Strategy::ALL {
            for doubtful in [false, true] {
                for stride in [1e-6, 1.0, 1e4] {
                    let price = strategy.price(&View {
                        stride,
                        doubtful,
                        ..view(load, field)
                    });
                    assert!(
                        price.is_finite() && price > 0.0,
                        "{strategy} {price} {field:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn adaptive_counts_work_and_least_response_time_counts_requests() {
    let mut usual = Usual::default();
    usual.note(Some(100.0));
    let (mut large, mut small) = (load(SECOND, 0), load(SECOND, 0));
    large.start(usual.size(Some(5000.0)), &NORM, SECOND);
    for _ in 0..3 {
        small.start(usual.size(Some(10.0)), &NORM, SECOND);
    }
    let field = field(SECOND);
    let both =
        |strategy: Strategy| [&large, &small].map(|load| strategy.price(&view(load, &field)));
    let [large, small] = both(Strategy::Adaptive);
    assert!(large > 1.5 * small, "{large} {small}");
    let [large, small] = both(Strategy::LeastResponseTime);
    assert_eq!(small, 2.0 * large);
}

#[test]
fn reports_tell_adaptive_of_the_requests_of_others() {
    let (mut idle, mut full, silent) = (load(SECOND, 1), load(SECOND, 1), load(SECOND, 1));
    idle.report(report(1, None), SECOND);
    full.report(report(32, None), SECOND);
    let field = Field {
        usually: Some(Usually {
            others: Some(7.0),
            utilization: Some(0.5),
            ..Usually::default()
        }),
        ..field(SECOND)
    };
    let price = |load: &Load, field: &Field| Strategy::Adaptive.price(&view(load, field));
    assert_eq!(price(&full, &field), 2.5 * price(&silent, &field));
    assert_eq!(price(&idle, &field), 0.75 * price(&silent, &field));
    let later = Field {
        now: 7 * SECOND,
        ..field
    };
    assert_eq!(price(&full, &later), price(&silent, &later), "it is old");
    assert_eq!(
        Strategy::LeastResponseTime.price(&view(&full, &field)),
        Strategy::LeastResponseTime.price(&view(&idle, &field)),
    );
}

#[test]
fn who_is_forgotten_is_as_slow_as_it_says_and_looked_at_all_the_same() {
    let now = 100 * SECOND;
    let usually = Some(Usually {
        others: Some(7.0),
        latency: Some(2e9),
        ..Usually::default()
    });
    let field = Field {
        usually,
        ..field(now)
    };
    let due = Field {
        round: 1e3,
        ..field
    };
    let price = |load: &Load, field: &Field| Strategy::Adaptive.price(&view(load, field));
    // Nobody has heard of it; it was slower than its peers; it was odd.
    let known = [(0, 0.9e9), (3 * SECOND / 2, 1e9), (3 * SECOND, 1e9)];
    for (mut load, forgotten) in known.map(|(latency, forgotten)| match latency {
        0 => (Load::new(0), forgotten),
        latency => (load(latency, 0), forgotten),
    }) {
        assert_eq!(price(&load, &field), forgotten);
        load.report(report(7, Some(SECOND)), now);
        assert_eq!(price(&load, &field), forgotten, "it says that it is faster");
        load.report(report(7, Some(6 * SECOND)), now);
        assert_eq!(price(&load, &field), 3.0 * forgotten);
        assert_eq!(
            Strategy::LeastResponseTime.price(&view(&load, &field)),
            forgotten,
            "it does not ask for reports"
        );
        assert_eq!(price(&load, &due), f64::MIN_POSITIVE, "its turn has come");
    }
    let mut known = load(SECOND, 1);
    let before = price(&known, &field);
    known.report(report(8, Some(6 * SECOND)), SECOND);
    let silent = Field {
        now: SECOND,
        ..field
    };
    assert_eq!(price(&known, &silent), before, "answers say more");
}

#[test]
fn what_was_priced_out_is_overdue_after_fifty_seconds_and_a_hundred_turns_of_its_peers() {
    let slow = load(100 * SECOND, 0);
    let at = |seconds: u64, round: f64, strategy: Strategy| {
        let field = Field {
            round,
            ..field((100 + seconds) * SECOND)
        };
        strategy.price(&view(&slow, &field))
    };
    for strategy in [
        Strategy::Adaptive,
        Strategy::LeastResponseTime,
        Strategy::LeastConnections,
        Strategy::ConsistentHash,
        Strategy::Prequal,
    ] {
        assert!(at(49, 1000.0, strategy) > 0.5, "{strategy}");
        assert!(at(51, 100.0, strategy) > 0.5, "{strategy}");
        assert!(at(51, 101.0, strategy) < 1e-300, "{strategy}");
    }
}

#[test]
fn prequal_takes_the_fastest_that_is_cold_and_the_emptiest_if_all_are_hot() {
    let price = |in_flight, latency, hot| {
        let mut load = load(SECOND, 0);
        load.report(report(in_flight, latency), SECOND);
        let field = Field {
            hot: Some(hot),
            ..field(SECOND)
        };
        Strategy::Prequal.price(&view(&load, &field))
    };
    let fast = price(5, Some(SECOND / 100), 5);
    let slow = price(0, Some(SECOND / 10), 5);
    let own = price(0, None, 5);
    let hot = price(6, Some(1), 5);
    let hotter = price(7, Some(1), 5);
    assert!(fast < slow && slow < own && own < hot && hot < hotter);
    let field = Field {
        hot: Some(5),
        ..field(SECOND)
    };
    let unknown = Strategy::Prequal.price(&view(&load(1, 0), &field));
    assert!(hotter < unknown, "who does not answer probes comes last");
}

#[test]
fn those_above_the_quantile_are_hot() {
    let hot =
        |probed: &[u32]| price::hot(&mut probed.iter().copied().map(f64::from).collect::<Vec<_>>());
    assert_eq!(hot(&[]), None);
    assert_eq!(hot(&[3]), None);
    assert_eq!(hot(&[3, 9]), Some(3));
    assert_eq!(hot(&[9, 1, 2, 3, 4, 5, 6, 7, 8, 0]), Some(7));
}

/// Who of these gets what has this affinity.
fn home(names: &[(String, f64)], draw: u64) -> usize {
    let load = load(SECOND, 0);
    let field = Field {
        draw,
        bound: Some(f64::MAX),
        ..field(SECOND)
    };
    let price = |at: &usize| {
        let (name, weight) = &names[*at];
        Strategy::ConsistentHash.price(&View {
            stride: 1.0 / weight,
            hash: hash(name.as_bytes()),
            ..view(&load, &field)
        })
    };
    let all = 0..names.len();
    all.min_by(|a, b| price(a).total_cmp(&price(b))).unwrap()
}

fn named(number: usize) -> Vec<(String, f64)> {
    (0..number)
        .map(|at| (format!("10.0.0.{at}:80"), 1.0))
        .collect()
}

#[test]
fn an_affinity_moves_only_to_who_comes_and_only_from_who_goes() {
    let mut coin = Coin::seeded(3);
    for number in [2, 5, 33] {
        let names = named(number);
        let gone = number / 2;
        let mut fewer = names.clone();
        fewer.remove(gone);
        let mut moved = 0;
        for _ in 0..3000 {
            let draw = coin.toss();
            let (before, after) = (home(&names, draw), home(&fewer, draw));
            if before == gone {
                moved += 1;
            } else {
                assert_eq!(names[before], fewer[after]);
            }
        }
        let share = 3000 / number;
        assert!(
            (share * 3 / 4..share * 5 / 4).contains(&moved),
            "{number} {moved}"
        );
    }
}

#[test]
fn an_affinity_finds_endpoints_by_weight_and_a_weight_that_grows_takes_from_all_alike() {
    let mut coin = Coin::seeded(4);
    let mut names = named(4);
    let mut counts = [0; 4];
    let draws: Vec<_> = (0..8000).map(|_| coin.toss()).collect();
    let before: Vec<_> = draws.iter().map(|&draw| home(&names, draw)).collect();
    names[0].1 = 5.0;
    for (draw, before) in draws.into_iter().zip(before) {
        let after = home(&names, draw);
        assert!(after == before || after == 0);
        counts[after] += 1;
    }
    assert!((4800..5200).contains(&counts[0]), "{counts:?}");
    assert!(
        counts[1..].iter().all(|count| (850..1150).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn who_has_more_than_its_share_comes_after_those_that_have_not() {
    // Ten in flight and one to come, four endpoints alike: 1.25 x 11 / 4, rounded up.
    let bound = price::bound(10, 4.0);
    let price = |in_flight, hash, doubtful| {
        let load = load(SECOND, in_flight);
        let field = Field {
            bound: Some(bound),
            ..field(SECOND)
        };
        Strategy::ConsistentHash.price(&View {
            hash,
            doubtful,
            ..view(&load, &field)
        })
    };
    for hash in 0..100 {
        for other in 0..100 {
            assert!(price(3, hash, false) < price(4, other, false));
            assert!(price(3, hash, false) < price(3, other, true));
            assert!(price(3, hash, true) < price(4, other, false));
        }
        assert_eq!(price(0, hash, false), price(3, hash, false));
        assert_eq!(
            price(4, hash, false),
            price(9, hash, false),
            "still by affinity"
        );
    }
}

#[test]
fn chance_draws_by_weight() {
    let mut coin = Coin::seeded(5);
    let load = load(SECOND, 0);
    let strides = [1.0, 0.5, 0.2];
    let mut counts = [0; 3];
    for _ in 0..8000 {
        let field = Field {
            draw: coin.toss(),
            ..field(SECOND)
        };
        let price = |at: &usize| {
            Strategy::Random.price(&View {
                stride: strides[*at],
                hash: hash(&[*at as u8]),
                ..view(&load, &field)
            })
        };
        let drawn = (0..3).min_by(|a, b| price(a).total_cmp(&price(b))).unwrap();
        counts[drawn] += 1;
    }
    for (count, expected) in counts.into_iter().zip([1000, 2000, 5000]) {
        assert!(
            (expected * 9 / 10..expected * 11 / 10).contains(&count),
            "{counts:?}"
        );
    }
}

#[test]
fn who_says_that_it_fails_costs_what_that_would_and_is_not_looked_at_to_see() {
    let now = 100 * SECOND;
    let says = |errors| LoadReport {
        errors: Some(errors),
        ..report(7, Some(SECOND))
    };
    let field = Field {
        usually: Some(Usually {
            others: Some(7.0),
            latency: Some(1e9),
            errors: Some(0.0),
            ..Usually::default()
        }),
        penalty: 5e9,
        hot: Some(100),
        ..field(now)
    };
    let due = Field {
        round: 1e3,
        ..field
    };
    let mut one = load(SECOND, 0);
    let mut priced = |strategy: Strategy, errors, field: &Field| {
        one.report(says(errors), now);
        strategy.price(&view(&one, field))
    };
    let mut price = |errors, field: &Field| priced(Strategy::Adaptive, errors, field);
    assert_eq!(price(0.0, &field), 1e9);
    assert_eq!(price(0.5, &field), 3.5e9);
    assert_eq!(price(1.0, &field), 6e9);
    assert_eq!(price(0.0, &due), f64::MIN_POSITIVE, "its turn has come");
    assert_eq!(price(0.1, &due), f64::MIN_POSITIVE, "few know that yet");
    assert_eq!(price(1.0, &due), 5e9);
    let long = Field {
        round: 1001.0,
        ..field
    };
    assert_eq!(price(1.0, &long), f64::MIN_POSITIVE, "it may be wrong");
    let prequal = |errors| errors / (1.0 + errors);
    assert_eq!(priced(Strategy::Prequal, 0.0, &field), prequal(1.0));
    assert_eq!(priced(Strategy::Prequal, 1.0, &field), prequal(6.0));
    let rest = priced(Strategy::LeastResponseTime, 1.0, &field);
    assert_eq!(rest, 1e9, "it does not ask for reports");
}
