use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    super::{
        known::Refill,
        told::{Name, Told},
    },
    *,
};

const MILLI: At = SECOND / 1000;
const ONE: Cost = Cost {
    requests: 1,
    tokens: 1,
};
const NONE: Cost = Cost {
    requests: 0,
    tokens: 0,
};

/// How a service counts, and what it says about it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Windows that turn at fixed times; rounds up.
    Fixed,
    /// The same, with dates as resets: to the second.
    FixedDates,
    /// A token bucket, and for how long a client should make do: palisade's own.
    Bucket,
    /// A token bucket, and when it will be full: OpenAI's.
    UntilFull,
}

struct Service {
    kind: Kind,
    limit: u64,
    window: At,
    offset: At,
    /// Of windows: how many, in which.
    count: (At, u64),
    /// Of buckets: when it was empty.
    empty: At,
    refused: u64,
    passed: u64,
}

impl Service {
    fn new(kind: Kind, limit: u64, window: At, offset: At) -> Self {
        let empty = -window;
        Self {
            kind,
            limit,
            window,
            offset,
            count: (0, 0),
            empty,
            refused: 0,
            passed: 0,
        }
    }

    fn hear(&mut self, now: At) -> Told<'static> {
        let (remaining, reset) = match self.kind {
            Kind::Fixed | Kind::FixedDates => self.in_window(now),
            Kind::Bucket | Kind::UntilFull => self.in_bucket(now),
        };
        let reset = match self.kind {
            Kind::UntilFull => ceil(reset, MILLI),
            _ => ceil(reset, SECOND),
        };
        let evenly = matches!(self.kind, Kind::UntilFull);
        Told {
            policy: Name::new("p"),
            partition: None,
            unit: QuotaUnit::Requests,
            refill: if evenly {
                Refill::Evenly
            } else {
                Refill::AtReset
            },
            remaining,
            limit: Some(self.limit),
            window: (!evenly).then_some(self.window),
            reset,
        }
    }

    fn in_window(&mut self, now: At) -> (u64, At) {
        let window = (now + self.offset) / self.window;
        if self.count.0 != window {
            self.count = (window, 0);
        }
        if self.count.1 < self.limit {
            self.count.1 += 1;
            self.passed += 1;
        } else {
            self.refused += 1;
        }
        let ends = (window + 1) * self.window - self.offset;
        (self.limit - self.count.1, ends - now)
    }

    fn in_bucket(&mut self, now: At) -> (u64, At) {
        let each = self.window / self.limit as At;
        self.empty = self.empty.max(now - self.window);
        if now - self.empty >= each {
            self.empty += each;
            self.passed += 1;
        } else {
            self.refused += 1;
        }
        let level = (now - self.empty) / each;
        let reset = match (self.kind, level) {
            (Kind::UntilFull, _) => self.empty + self.window - now,
            (_, 0) => self.empty + each - now,
            _ => level * each,
        };
        (level as u64, reset)
    }
}

fn ceil(time: At, to: At) -> At {
    (time + to - 1) / to * to
}

enum Event {
    Wants,
    Arrives {
        mark: Cost,
        sent: At,
        back: At,
    },
    Answered {
        mark: Cost,
        sent: At,
        told: Told<'static>,
    },
}

#[derive(Debug)]
struct World {
    kind: Kind,
    limit: u64,
    window: At,
    offset: At,
    /// When a request is wanted after the one before, and how long it and its answer take: in milliseconds.
    requests: Vec<(At, At, At)>,
    /// Whether requests reach the service as they were sent.
    in_order: bool,
}

impl World {
    /// Requests that cannot go are given up, or wait one behind the other.
    fn run(&self, patient: bool) -> (Service, Ledger, u64) {
        let mut service = Service::new(self.kind, self.limit, self.window, self.offset);
        let mut ledger = Ledger::default();
        let mut events = BTreeMap::new();
        let mut id = 0;
        let mut push = |events: &mut BTreeMap<(At, u64), Event>, at, event| {
            id += 1;
            events.insert((at, id), event);
        };
        let mut requests = self.requests.iter().copied();
        let mut next = requests.next();
        let (mut given_up, mut arrived) = (0, 0);
        push(&mut events, 0, Event::Wants);
        while let Some(((now, _), event)) = events.pop_first() {
            match event {
                Event::Wants => {
                    let Some((gap, there, back)) = next else {
                        continue;
                    };
                    match ledger.shut(ONE, now) {
                        Some(shut) if patient => {
                            assert!(shut.at > now);
                            // A bell at the time told; an answer may ring earlier, which nobody hears here.
                            push(&mut events, shut.at, Event::Wants);
                            continue;
                        }
                        Some(_) => given_up += 1,
                        None => {
                            let mark = ledger.take(ONE, now);
                            let (sent, back) = (now, back * MILLI);
                            let mut arrives = now + there * MILLI;
                            if self.in_order {
                                arrives = arrives.max(arrived);
                                arrived = arrives;
                            }
                            push(&mut events, arrives, Event::Arrives { mark, sent, back });
                        }
                    }
                    next = requests.next();
                    push(&mut events, now + gap * MILLI, Event::Wants);
                }
                Event::Arrives { mark, sent, back } => {
                    let told = service.hear(now);
                    push(
                        &mut events,
                        now + back,
                        Event::Answered { mark, sent, told },
                    );
                }
                Event::Answered { mark, sent, told } => {
                    ledger.landed();
                    ledger.learn(&Reading::with(told), mark, sent, now, 0);
                }
            }
        }
        (service, ledger, given_up)
    }
}

const KINDS: [Kind; 4] = [Kind::Fixed, Kind::FixedDates, Kind::Bucket, Kind::UntilFull];

/// Requests that take up to this long to the service and as long back, against windows of at least this length.
fn world(
    latency: At,
    windows: std::ops::Range<At>,
    in_order: bool,
) -> impl Strategy<Value = World> {
    let latency = prop_oneof![3 => 0..50_i64, 1 => 0..latency];
    let requests = prop::collection::vec((0..400_i64, latency.clone(), latency), 1..400);
    (
        prop::sample::select(&KINDS[..]),
        1..60_u64,
        windows,
        0..20_000_i64,
        requests,
    )
        .prop_map(move |(kind, limit, window, offset, mut requests)| {
            // The first is alone, so that there is something to go by.
            requests[0].0 = 5000;
            if in_order && matches!(kind, Kind::Bucket | Kind::UntilFull) {
                // A full bucket fills no further while requests are on their way to it.
                let there = requests[0].1;
                requests.iter_mut().for_each(|request| request.1 = there);
            }
            let (window, offset) = (window * SECOND, offset * MILLI);
            World {
                kind,
                limit,
                window,
                offset,
                requests,
                in_order,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn who_is_alone_with_a_quota_is_never_refused_whatever_the_order_of_answers(world in world(1000, 8..40, true)) {
        for patient in [false, true] {
            let (service, ledger, given_up) = world.run(patient);
            prop_assert_eq!(service.refused, 0);
            prop_assert_eq!(ledger.in_flight, 0);
            prop_assert_eq!(service.passed + given_up, world.requests.len() as u64);
        }
    }
}

#[test]
fn requests_that_overtake_each_other_are_seldom_refused() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};

    // Some take longer than a window lasts: when they arrive nobody can know.
    let worlds = world(2000, 1..20, false);
    let mut runner = TestRunner::deterministic();
    let mut sums = KINDS.map(|_| (0, 0));
    for _ in 0..400 {
        let world = worlds.new_tree(&mut runner).unwrap().current();
        let (service, ..) = world.run(true);
        let (refused, all) = &mut sums[world.kind as usize];
        *refused += service.refused;
        *all += service.passed + service.refused;
    }
    for (refused, all) in sums {
        assert!(refused * 50 <= all, "refused and all by kind: {sums:?}");
    }
}

#[test]
fn most_of_a_quota_is_used() {
    // Ten a second for five minutes, against a limit of a hundred a minute; half of a second for each exchange.
    for kind in [Kind::Fixed, Kind::FixedDates, Kind::Bucket, Kind::UntilFull] {
        let world = World {
            kind,
            limit: 100,
            window: 60 * SECOND,
            offset: 20 * SECOND,
            requests: vec![(100, 250, 250); 3000],
            in_order: true,
        };
        let (service, ..) = world.run(false);
        assert_eq!(service.refused, 0, "{kind:?}");
        // Windows that turn six times within, or a burst and then the rate.
        assert!(
            (530..=600).contains(&service.passed),
            "{kind:?}: {}",
            service.passed
        );
    }
}

fn told(policy: &'static str, partition: Option<&'static str>, remaining: u64) -> Told<'static> {
    Told {
        policy: Name::new(policy),
        partition,
        unit: QuotaUnit::Requests,
        refill: Refill::AtReset,
        remaining,
        limit: Some(10),
        window: Some(10 * SECOND),
        reset: 10 * SECOND,
    }
}

fn hear(ledger: &mut Ledger, told: Told<'_>, now: At) {
    ledger.learn(&Reading::with(told), ledger.taken, now, now, 0);
}

#[test]
fn of_several_quotas_the_longest_wait_counts_and_is_named() {
    let mut ledger = Ledger::default();
    hear(&mut ledger, told("roomy", None, 9), 0);
    assert!(ledger.shut(ONE, 1).is_none());
    hear(&mut ledger, told("tight", None, 0), 0);
    hear(&mut ledger, told("tighter", None, 0), SECOND);
    let shut = ledger.shut(ONE, SECOND).unwrap();
    assert_eq!((shut.at, &**shut.policy.unwrap()), (11 * SECOND, "tighter"));
}

#[test]
fn tokens_are_held_against_quotas_of_tokens() {
    let mut ledger = Ledger::default();
    let tokens = Told {
        unit: QuotaUnit::Tokens,
        limit: Some(1000),
        ..told("tokens", None, 600)
    };
    hear(&mut ledger, tokens, 0);
    hear(&mut ledger, told("requests", None, 9), 0);
    let cost = |tokens| Cost {
        requests: 1,
        tokens,
    };
    assert!(ledger.shut(cost(600), 0).is_none());
    assert_eq!(
        &**ledger.shut(cost(601), 0).unwrap().policy.unwrap(),
        "tokens"
    );
    ledger.take(cost(300), 0);
    assert!(ledger.shut(cost(301), 0).is_some() && ledger.shut(cost(300), 0).is_none());
}

#[test]
fn what_a_quota_counts_need_not_be_told_each_time() {
    let mut ledger = Ledger::default();
    let all = Told {
        limit: Some(1000),
        ..told("p", None, 900)
    };
    let tokens = Told {
        unit: QuotaUnit::Tokens,
        ..all
    };
    hear(&mut ledger, tokens, 0);
    let cost = Cost {
        requests: 1,
        tokens: 100,
    };
    let marks = [1, 2].map(|at| ledger.take(cost, at));
    let again = Told {
        remaining: 800,
        ..all
    };
    ledger.learn(&Reading::with(again), marks[0], 1, 3, 0);
    assert_eq!(ledger.room(&ledger.known[0], 3), 700);
}

#[test]
fn of_several_partitions_the_one_with_the_most_room_counts() {
    let mut ledger = Ledger::default();
    hear(&mut ledger, told("p", Some("a"), 0), 0);
    assert!(ledger.shut(ONE, 0).is_some());
    hear(&mut ledger, told("p", Some("b"), 9), 0);
    assert!(ledger.shut(ONE, 0).is_none());
    hear(&mut ledger, told("p", Some("b"), 0), 1);
    assert!(ledger.shut(ONE, 1).is_some());
}

#[test]
fn a_request_without_an_answer_is_used_and_one_that_was_never_seen_is_not() {
    let mut ledger = Ledger::default();
    hear(&mut ledger, told("p", None, 9), 0);
    let left = |ledger: &Ledger| ledger.room(&ledger.known[0], 0);
    let marks = [0; 3].map(|at| ledger.take(ONE, at));
    assert_eq!(left(&ledger), 6);
    ledger.give_back(ONE, marks[0], 0);
    assert_eq!(left(&ledger), 7);
    // The service told of what it saw, which was not the second; the third is still on its way.
    ledger.learn(&Reading::with(told("p", None, 5)), marks[1], 0, 0, 0);
    assert_eq!(left(&ledger), 4);
    ledger.give_back(ONE, marks[1], 0);
    assert_eq!(left(&ledger), 4);
    // After the reset as well, where only the first may go.
    hear(&mut ledger, told("p", None, 0), 0);
    let reset = 10 * SECOND;
    let mark = ledger.take(ONE, reset);
    assert!(ledger.shut(ONE, reset).is_some());
    ledger.give_back(ONE, mark, reset);
    assert!(ledger.shut(ONE, reset).is_none());
}

#[test]
fn who_wants_to_be_left_alone_is_and_then_one_goes_first() {
    let mut ledger = Ledger::default();
    ledger.hold(None, 5 * SECOND, 0, 0);
    ledger.hold(None, SECOND, SECOND, 0);
    let shut = |ledger: &Ledger, now| {
        ledger
            .shut(ONE, now)
            .map(|shut| (shut.at, shut.policy.is_none()))
    };
    assert_eq!(
        shut(&ledger, 0),
        Some((5 * SECOND, true)),
        "what is asked for later does not shorten it"
    );
    assert_eq!(shut(&ledger, 5 * SECOND), None);
    ledger.take(ONE, 5 * SECOND);
    assert_eq!(shut(&ledger, 5 * SECOND), Some((6 * SECOND, true)));
    ledger.unhold(4 * SECOND);
    assert!(
        shut(&ledger, 5 * SECOND).is_some(),
        "answered, but sent before"
    );
    ledger.unhold(5 * SECOND);
    assert_eq!(shut(&ledger, 5 * SECOND), None);
}

#[test]
fn retry_after_goes_before_the_reset_that_was_told_with_it() {
    for (delay, opens) in [(3 * SECOND, 3 * SECOND), (30 * SECOND, 30 * SECOND)] {
        let mut ledger = Ledger::default();
        let reading = Reading::with(told("p", None, 0));
        ledger.learn(&reading, NONE, 0, 0, 0);
        ledger.hold(Some(&reading), delay, 0, 0);
        assert_eq!(ledger.shut(ONE, 0).unwrap().at, opens);
    }
}

#[test]
fn a_quota_that_a_service_tells_of_no_more_is_forgotten_after_its_reset() {
    let mut ledger = Ledger::default();
    hear(&mut ledger, told("p", None, 0), 0);
    ledger.silence(9 * SECOND);
    assert_eq!(ledger.known.len(), 1);
    ledger.silence(10 * SECOND);
    assert_eq!(ledger.known.len(), 0);
}

#[test]
fn it_is_idle_when_forgetting_it_loses_nothing() {
    let mut ledger = Ledger::default();
    assert!(ledger.is_idle(0));
    let mark = ledger.take(ONE, 0);
    assert!(!ledger.is_idle(0), "an answer is awaited");
    ledger.landed();
    ledger.learn(&Reading::with(told("p", None, 0)), mark, 0, 0, 0);
    // One is there at the reset, and one more each second.
    assert!(!ledger.is_idle(19 * SECOND - 1) && ledger.is_idle(19 * SECOND));
    ledger.hold(None, 40 * SECOND, 0, 0);
    assert!(!ledger.is_idle(39 * SECOND) && ledger.is_idle(40 * SECOND));
}

#[test]
fn only_so_many_quotas_are_kept_and_the_idle_ones_give_way() {
    const NAMES: [&str; MOST] = [
        "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p",
    ];
    let mut ledger = Ledger::default();
    for name in NAMES {
        hear(&mut ledger, told(name, None, 1), 0);
    }
    hear(&mut ledger, told("more", None, 1), 0);
    assert_eq!(&*ledger.known[0].policy, "a");
    hear(&mut ledger, told("more", None, 1), 60 * SECOND);
    assert_eq!(
        (&*ledger.known[0].policy, ledger.known.len()),
        ("more", MOST)
    );
}
