use std::{
    collections::BTreeMap,
    future::{Future, pending, ready},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use palisade_balance::{Balance, Endpoint, Endpoints, LoadReport, OrcaProbe, Probes, Strategy};
use palisade_core::{
    BoxError,
    reject::{Reason, Rejected},
    testing::{Answers, CountingAllocator},
    time,
};
use tokio::time::{Instant, sleep};
use tower::Service;

use crate::support::{Fake, MS, balance, fakes, of, send};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

/// Which endpoints were probed, and when.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<(String, Instant)>>>);

impl Seen {
    pub(crate) fn note(&self, name: &str) {
        self.0.lock().unwrap().push((name.to_owned(), time::now()));
    }

    fn take(&self) -> Vec<(String, Instant)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.take().into_iter().map(|(name, _)| name).collect()
    }

    /// How often each was probed.
    pub(crate) fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for name in self.names() {
            *counts.entry(name).or_default() += 1;
        }
        counts
    }
}

/// A set that is probed, of so many endpoints that answer at once; what all say once was seen.
async fn probed(endpoints: usize, probes: Probes) -> (Endpoints<Fake>, Seen) {
    let set = Endpoints::default();
    set.set_strategy(Strategy::Prequal);
    fakes(&set, &vec![0; endpoints]);
    let seen = Seen::default();
    let noted = seen.clone();
    tokio::spawn(set.probes(probes, move |name, _| {
        noted.note(&name);
        ready(Some(report(1)))
    }));
    sleep(MS).await;
    assert_eq!(seen.counts().len(), endpoints);
    sleep(SECOND).await;
    seen.take();
    (set, seen)
}

pub(crate) fn report(in_flight: u32) -> LoadReport {
    let mut report = LoadReport::default();
    report.in_flight = Some(in_flight);
    report
}

fn only_for_requests() -> Probes {
    Probes::default().idle(NEVER).steady(None)
}

#[tokio::test(start_paused = true)]
async fn a_request_has_three_endpoints_probed_and_in_time_all_alike() {
    let (set, seen) = probed(10, only_for_requests()).await;
    let service = balance(&set);
    set.set_strategy(Strategy::Prequal);
    let mut total = BTreeMap::<_, usize>::new();
    for _ in 0..100 {
        send(&service).await.unwrap();
        sleep(MS * 100).await;
        let names = seen.counts();
        assert_eq!(names.len(), 3, "three different ones: {names:?}");
        for (name, count) in names {
            assert_eq!(count, 1);
            *total.entry(name).or_default() += 1;
        }
    }
    assert_eq!(total.len(), 10);
    assert!(
        total.values().all(|count| (20..=40).contains(count)),
        "{total:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn fractions_add_up() {
    let (set, seen) = probed(10, only_for_requests().per_request(0.25)).await;
    let service = balance(&set);
    set.set_strategy(Strategy::Prequal);
    for sent in 1..=20 {
        send(&service).await.unwrap();
        sleep(MS * 100).await;
        assert_eq!(seen.names().len(), usize::from(sent % 4 == 0), "{sent}");
    }
    for odd in [f64::NAN, -1.0, 0.0] {
        let (set, seen) = probed(10, only_for_requests().per_request(odd)).await;
        let service = balance(&set);
        set.set_strategy(Strategy::Prequal);
        send(&service).await.unwrap();
        sleep(MS).await;
        assert_eq!(seen.names().len(), 0, "{odd}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_probed_while_the_strategy_is_another_and_all_are_once_it_is_prequal() {
    let (set, seen) = probed(5, Probes::default().steady(None)).await;
    let service = balance(&set);
    assert_eq!(set.strategy(), Strategy::Adaptive);
    sleep(SECOND).await;
    seen.take();
    for _ in 0..10 {
        send(&service).await.unwrap();
        sleep(SECOND).await;
    }
    assert_eq!(seen.names().len(), 0);
    set.set_strategy(Strategy::Prequal);
    sleep(MS).await;
    let counts = seen.counts();
    assert_eq!(counts.len(), 5);
    assert!(counts.values().all(|&count| count == 1), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn what_an_endpoint_says_is_heard() {
    let set = Endpoints::default();
    set.set_strategy(Strategy::Prequal);
    fakes(&set, &[0; 3]);
    tokio::spawn(set.probes(Probes::default(), |name, _| {
        let said = name.parse().ok().filter(|&said| said != 1);
        ready(said.map(report))
    }));
    sleep(MS).await;
    let reported = |name| of(&set, name).reported;
    assert_eq!(reported("0"), Some(report(0)));
    assert_eq!(reported("1"), None);
    assert_eq!(reported("2"), Some(report(2)));
}

#[tokio::test(start_paused = true)]
async fn however_many_requests_there_are_an_endpoint_has_its_peace() {
    let (set, seen) = probed(4, only_for_requests().spacing(MS * 10)).await;
    let service = balance(&set);
    set.set_strategy(Strategy::Prequal);
    for _ in 0..1000 {
        send(&service).await.unwrap();
        sleep(MS).await;
    }
    let mut last = BTreeMap::new();
    let mut gaps = Vec::new();
    for (name, at) in seen.take() {
        gaps.extend(last.insert(name, at).map(|before| at - before));
    }
    assert!(gaps.iter().all(|&gap| gap >= MS * 10), "{gaps:?}");
    // Each nearly as soon as it may: 100 of them for each at most.
    assert!((300..=400).contains(&gaps.len()), "{}", gaps.len());
}

#[tokio::test(start_paused = true)]
async fn without_requests_endpoints_are_still_probed_now_and_then() {
    let (_set, seen) = probed(10, Probes::default().idle(MS * 100)).await;
    sleep(SECOND * 10).await;
    let seen = seen.take();
    let gaps: Vec<_> = seen.windows(2).map(|two| two[1].1 - two[0].1).collect();
    let (least, most) = (MS * 80, MS * 121);
    assert!(
        gaps.iter().all(|gap| (least..=most).contains(gap)),
        "{gaps:?}"
    );
    assert!(gaps.iter().any(|&gap| gap < MS * 95) && gaps.iter().any(|&gap| gap > MS * 105));
    assert!((85..=115).contains(&seen.len()), "{}", seen.len());
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_is_given_up_and_keeps_no_other_from_being_sent() {
    let set = Endpoints::default();
    set.set_strategy(Strategy::Prequal);
    fakes(&set, &[0; 3]);
    let (seen, running) = (Seen::default(), Arc::new(()));
    let (noted, held) = (seen.clone(), running.clone());
    let probes = Probes::default().idle(MS * 10).timeout(MS * 200);
    tokio::spawn(set.probes(probes, move |name, _| {
        noted.note(&name);
        let held = held.clone();
        async move {
            if &*name == "0" {
                pending::<()>().await;
            }
            drop(held);
            Some(report(1))
        }
    }));
    sleep(SECOND).await;
    let probes = seen.take();
    let hung: Vec<_> = probes
        .iter()
        .filter(|(name, _)| name == "0")
        .map(|&(_, at)| at)
        .collect();
    assert!((4..=5).contains(&hung.len()), "{hung:?}");
    assert!(
        hung.windows(2).all(|two| two[1] - two[0] >= MS * 200),
        "one at a time: {hung:?}"
    );
    assert!(probes.len() - hung.len() > 60, "{}", probes.len());
    assert_eq!(of(&set, "0").reported, None);
    assert!(
        Arc::strong_count(&running) <= 3,
        "what was given up is dropped"
    );
}

#[tokio::test(start_paused = true)]
async fn at_most_64_probes_are_under_way() {
    let set = Endpoints::default();
    set.set_strategy(Strategy::Prequal);
    fakes(&set, &[0; 100]);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, peak) = (now.clone(), most.clone());
    tokio::spawn(
        set.probes(only_for_requests().timeout(SECOND), move |_, _| {
            let running = running.clone();
            peak.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            async move {
                sleep(MS * 10).await;
                running.fetch_sub(1, SeqCst);
                None
            }
        }),
    );
    sleep(MS).await;
    assert_eq!(most.load(SeqCst), 64);
    sleep(SECOND).await;
    assert_eq!(now.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_come_are_probed_and_those_that_go_are_not() {
    let (set, seen) = probed(2, Probes::default()).await;
    set.insert(Endpoint::new("new", Fake::new(0)));
    sleep(MS).await;
    assert_eq!(seen.names(), ["new"]);
    set.remove("0");
    sleep(SECOND * 5).await;
    assert_eq!(seen.counts().into_keys().collect::<Vec<_>>(), ["1", "new"]);
}

#[tokio::test(start_paused = true)]
async fn what_an_endpoint_said_is_not_said_of_its_successor() {
    let set = Endpoints::default();
    set.set_strategy(Strategy::Prequal);
    set.insert(Endpoint::new("0", Fake::new(0)));
    tokio::spawn(set.probes(only_for_requests(), |_, _| async {
        sleep(MS * 50).await;
        Some(report(1))
    }));
    sleep(MS * 10).await;
    set.insert(Endpoint::new("0", Fake::new(0)));
    sleep(SECOND).await;
    assert_eq!(of(&set, "0").reported, None);
}

#[tokio::test(start_paused = true)]
async fn who_drops_the_prober_drops_its_probes() {
    let set = Endpoints::default();
    set.set_strategy(Strategy::Prequal);
    fakes(&set, &[0; 3]);
    let running = Arc::new(());
    let held = running.clone();
    let prober = tokio::spawn(set.probes(Probes::default(), move |_, _| {
        let held = held.clone();
        async move {
            pending::<()>().await;
            drop(held);
            None
        }
    }));
    sleep(MS).await;
    assert_eq!(Arc::strong_count(&running), 5);
    prober.abort();
    assert!(prober.await.unwrap_err().is_cancelled());
    assert_eq!(Arc::strong_count(&running), 1);
    // Requests go on without it.
    let service = balance(&set);
    set.set_strategy(Strategy::Prequal);
    send(&service).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_prober_ends_with_the_set() {
    for strategy in [Strategy::Prequal, Strategy::Adaptive] {
        let set = Endpoints::default();
        set.set_strategy(strategy);
        fakes(&set, &[0; 3]);
        let prober = tokio::spawn(set.probes(only_for_requests(), |_, _| pending()));
        sleep(SECOND).await;
        drop(set);
        prober.await.unwrap();
    }
}

/// Counts how often it is polled.
struct Counted<F>(Pin<Box<F>>, Arc<AtomicUsize>);

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.1.fetch_add(1, SeqCst);
        self.0.as_mut().poll(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn the_prober_is_polled_when_there_is_something_to_do() {
    let set = Endpoints::default();
    fakes(&set, &[0; 5]);
    let polls = Arc::new(AtomicUsize::new(0));
    let prober = set.probes(only_for_requests(), |_, _| async {
        sleep(MS).await;
        None
    });
    tokio::spawn(Counted(Box::pin(prober), polls.clone()));
    let service = balance(&set);
    sleep(SECOND).await;
    let before = polls.load(SeqCst);
    for _ in 0..100 {
        send(&service).await.unwrap();
    }
    sleep(SECOND * 100).await;
    assert_eq!(polls.load(SeqCst), before, "another strategy");
    set.set_strategy(Strategy::Prequal);
    sleep(SECOND).await;
    let before = polls.load(SeqCst);
    for _ in 0..100 {
        send(&service).await.unwrap();
        sleep(SECOND).await;
    }
    // Once for the request, and once for three probes that end together.
    let polls = polls.load(SeqCst) - before;
    assert!((200..=400).contains(&polls), "{polls}");
}

type Answer = Response<Full<Bytes>>;

async fn asked(answer: impl Fn() -> Answer) -> Option<LoadReport> {
    let probe = OrcaProbe::new("/load?verbose=1").unwrap();
    probe.ask::<_, Full<Bytes>, _>(Answers(answer)).await
}

fn answer(status: StatusCode, header: Option<&str>, body: &str) -> Answer {
    let mut response = Response::new(Full::from(body.to_owned()));
    *response.status_mut() = status;
    if let Some(header) = header {
        let headers = response.headers_mut();
        headers.insert("endpoint-load-metrics", header.parse().unwrap());
    }
    response
}

#[tokio::test]
async fn a_report_is_in_the_header_or_in_the_body() {
    let (ok, down) = (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE);
    let header = Some("TEXT named_metrics.in_flight=7");
    let json = r#"{"active": 2, "queued": 1}"#;
    assert_eq!(asked(|| answer(ok, header, json)).await, Some(report(7)));
    assert_eq!(asked(|| answer(down, header, json)).await, Some(report(7)));
    assert_eq!(asked(|| answer(ok, None, json)).await, Some(report(3)));
    assert_eq!(asked(|| answer(down, None, json)).await, None);
    assert_eq!(asked(|| answer(ok, None, "<html>")).await, None);
    let long = json.to_owned() + &" ".repeat(10_000);
    assert_eq!(asked(|| answer(ok, None, &long)).await, None);
    assert_eq!(asked(|| answer(ok, header, &long)).await, Some(report(7)));
}

#[tokio::test]
async fn a_probe_asks_for_what_it_was_told_to() {
    let seen = Arc::new(Mutex::new(None));
    let noted = seen.clone();
    let service = tower::service_fn(move |request: Request<Full<Bytes>>| {
        *noted.lock().unwrap() = Some(request);
        ready(Err::<Answer, _>("down"))
    });
    let probe = OrcaProbe::new("/load?verbose=1").unwrap();
    let failing = probe.ask(service).await.unwrap();
    assert_eq!((failing.errors, failing.in_flight), (Some(1.0), None));
    let request = seen.lock().unwrap().take().unwrap();
    assert_eq!(
        (request.method().as_str(), request.uri().to_string()),
        ("GET", "/load?verbose=1".into())
    );
    assert_eq!(request.headers()["endpoint-load-metrics-format"], "text");
    OrcaProbe::new("no path").unwrap_err();
}

#[tokio::test]
async fn a_probe_that_is_refused_on_this_side_says_nothing_of_the_endpoint() {
    let refuses = |_: Request<Full<Bytes>>| {
        let rejected = Rejected::new(Reason::Overloaded, "too many");
        ready(Err::<Answer, BoxError>(rejected.into()))
    };
    let probe = OrcaProbe::new("/load").unwrap();
    assert_eq!(probe.ask(tower::service_fn(refuses)).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_probe_waits_until_its_service_is_ready() {
    let fake = Fake::new(0);
    fake.set_ready(false);
    let mut asked = pin!(OrcaProbe::new("/").unwrap().ask::<_, (), _>(fake.clone()));
    assert!(tokio::time::timeout(SECOND, &mut asked).await.is_err());
    assert_eq!(fake.calls(), 0);
    fake.set_ready(true);
    assert_eq!(asked.await, None, "it says nothing");
    assert_eq!(fake.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_allocate_nothing_for_probes() {
    let set = Endpoints::default();
    for at in 0..10 {
        let client = Answers(|| Response::new(Full::<Bytes>::default()));
        set.insert(Endpoint::new(at.to_string(), client));
    }
    let mut prober = pin!(set.probes(Probes::default(), |_, _| pending()));
    let mut service = Balance::adaptive(set.clone());
    set.set_strategy(Strategy::Prequal);
    let mut cx = Context::from_waker(Waker::noop());
    let mut hundred = || {
        for _ in 0..100 {
            assert!(Service::<Request<()>>::poll_ready(&mut service, &mut cx).is_ready());
            let response = pin!(service.call(Request::new(())));
            let Poll::Ready(Ok(_)) = response.poll(&mut cx) else {
                panic!("answers at once");
            };
        }
    };
    hundred();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(prober.as_mut().poll(&mut cx).is_pending());
    let before = CountingAllocator::count();
    hundred();
    assert_eq!(CountingAllocator::count() - before, 0);
}
