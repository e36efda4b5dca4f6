//! Whatever happens when: attempts, readiness, failures, streams and callers that leave.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use palisade_core::{BoxError, classify::Sse, ratio::Ratio, testing::Step, time};
use palisade_retry::{Budget, HedgeBody, HedgeLayer};
use proptest::{collection::vec, option, prelude::*};
use tokio::time::{Sleep, advance, sleep};
use tokio_test::task;
use tower::{Layer, Service};

use crate::hedge_support::{Act, Held, MILLI, Reply, Server, answers, fails, hangs, streams, with};

const DELAY: u64 = 100;

/// Is ready some time after it was asked, and has to be asked before each call.
struct Readies {
    inner: Server,
    pauses: Arc<Mutex<VecDeque<u64>>>,
    pause: Option<Pin<Box<Sleep>>>,
    is_ready: bool,
}

impl Clone for Readies {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            pauses: self.pauses.clone(),
            pause: None,
            is_ready: false,
        }
    }
}

impl Service<Request<HedgeBody<Full<Bytes>>>> for Readies {
    type Response = http::Response<Held>;
    type Error = BoxError;
    type Future = Reply<Held>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if !self.is_ready {
            let pauses = &self.pauses;
            let pause = self.pause.get_or_insert_with(|| {
                let millis = pauses.lock().unwrap().pop_front().unwrap_or(0);
                Box::pin(sleep(Duration::from_millis(millis)))
            });
            std::task::ready!(pause.as_mut().poll(cx));
            self.pause = None;
            self.is_ready = true;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<HedgeBody<Full<Bytes>>>) -> Reply<Held> {
        assert!(
            std::mem::take(&mut self.is_ready),
            "called without being ready"
        );
        self.inner.call(request)
    }
}

#[derive(Clone, Copy, Debug)]
enum Does {
    Answers(u64),
    Refuses(u64),
    Fails(u64),
    /// An error event, or an event.
    Streams(u64, bool),
    /// A comment, and no more.
    Stalls(u64),
    Hangs,
}

impl Does {
    fn act(self) -> Act {
        const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];
        match self {
            Self::Answers(after) => answers(after, 200),
            Self::Refuses(after) => answers(after, 500),
            Self::Fails(after) => fails(after, "broken"),
            Self::Streams(after, well) => streams(after, 200, EVENTS, move || {
                let event = if well {
                    "data: a\n\n"
                } else {
                    "event: error\n\n"
                };
                vec![Step::Data(": ping\n\n"), Step::Data(event), Step::Hang]
            }),
            Self::Stalls(after) => streams(after, 200, EVENTS, || {
                vec![Step::Data(": ping\n\n"), Step::Hang]
            }),
            Self::Hangs => hangs(),
        }
    }

    /// After what time it is known how it ended, and whether well.
    fn ends(self) -> Option<(u64, bool)> {
        match self {
            Self::Answers(after) => Some((after, true)),
            Self::Refuses(after) | Self::Fails(after) => Some((after, false)),
            Self::Streams(after, well) => Some((after, well)),
            Self::Stalls(_) | Self::Hangs => None,
        }
    }
}

fn does() -> impl Strategy<Value = Does> {
    let after = || 0..500_u64;
    prop_oneof![
        4 => after().prop_map(Does::Answers),
        2 => after().prop_map(Does::Refuses),
        2 => after().prop_map(Does::Fails),
        2 => (after(), any::<bool>()).prop_map(|(after, well)| Does::Streams(after, well)),
        1 => after().prop_map(Does::Stalls),
        1 => Just(Does::Hangs),
    ]
}

#[derive(Clone, Debug)]
struct Schedule {
    does: [Does; 3],
    /// Before the first attempt and before each hedge.
    pauses: [u64; 3],
    /// When the caller leaves.
    leaves: Option<u64>,
    body: &'static str,
}

fn schedule() -> impl Strategy<Value = Schedule> {
    (
        [does(), does(), does()],
        [Just(0).boxed(), (0..300_u64).boxed(), (0..300_u64).boxed()],
        option::weighted(0.3, 0..600_u64),
        prop_oneof![Just(""), Just("hello")],
    )
        .prop_map(|(does, pauses, leaves, body)| Schedule {
            does,
            pauses,
            leaves,
            body,
        })
}

/// One request, polled only when it is woken.
async fn play(
    layer: &HedgeLayer<Sse>,
    most: usize,
    schedule: &Schedule,
) -> Result<(), TestCaseError> {
    let server = Server::new(schedule.does.map(Does::act));
    let mut service = layer.layer(Readies {
        inner: server.clone(),
        pauses: Arc::new(Mutex::new(schedule.pauses.into_iter().collect())),
        pause: None,
        is_ready: false,
    });
    std::future::poll_fn(|cx| service.poll_ready(cx))
        .await
        .unwrap();
    let start = time::now();
    let mut call = task::spawn(service.call(with(Method::PUT, schedule.body)));
    let last = schedule.leaves.unwrap_or(1500);
    let (mut answer, mut first_poll) = (None, true);
    for millis in 0..=last {
        if (std::mem::take(&mut first_poll) || call.is_woken())
            && let Poll::Ready(ended) = call.poll()
        {
            answer = Some((millis, ended));
            break;
        }
        prop_assert!(server.alive() <= server.times().len().min(most));
        if millis < last {
            advance(MILLI).await;
        }
    }

    // When each attempt that was sent ended, or would have.
    let times = server.times();
    prop_assert!((1..=most).contains(&times.len()));
    prop_assert_eq!(times[0], 0);
    prop_assert!(
        times
            .windows(2)
            .all(|two| two[1] - two[0] >= u128::from(DELAY))
    );
    let ends: Vec<_> = (schedule.does.iter().zip(&times))
        .map(|(does, &at)| does.ends().map(|(after, well)| (at as u64 + after, well)))
        .collect();
    let won = ends
        .iter()
        .flatten()
        .filter(|end| end.1)
        .map(|end| end.0)
        .min();
    match answer {
        Some((millis, ended)) => {
            let is_well = ended.as_ref().is_ok_and(|answer| {
                // An error event, when it is the last, is handed on as well.
                answer.status() == 200 && won == Some(millis)
            });
            let held = usize::from(ended.is_ok());
            prop_assert_eq!(server.alive(), held, "losers are dropped with the answer");
            if is_well {
                prop_assert!(ends.iter().flatten().all(|end| !end.1 || end.0 >= millis));
            } else {
                // All that were sent had failed by then, and the last of them just now.
                prop_assert!(
                    ends.iter().all(|end| end.is_some_and(|end| !end.1)),
                    "{:?}",
                    ends
                );
                prop_assert_eq!(ends.iter().flatten().map(|end| end.0).max(), Some(millis));
            }
        }
        None => prop_assert!(won.is_none_or(|won| won > last), "{:?} {}", ends, last),
    }
    let millis = (time::now() - start).as_millis();
    prop_assert!(millis <= u128::from(last));
    drop(call);
    prop_assert_eq!(server.alive(), 0);
    advance(Duration::from_secs(1)).await;
    prop_assert_eq!(server.times(), times, "nothing is sent afterwards");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn one_answer_few_attempts_and_nothing_left_behind(
        most in 2_usize..=3,
        schedules in vec(schedule(), 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let layer = HedgeLayer::new(Duration::from_millis(DELAY))
                .at_most(Ratio::new(1.0).unwrap())
                .attempts(most)
                .classify(Sse);
            for schedule in &schedules {
                play(&layer, most, schedule).await?;
            }
            let seen = layer.handle().snapshot();
            prop_assert_eq!(seen.won + seen.lost, seen.sent);
            prop_assert!(seen.sent <= schedules.len() as u64);
            Ok(())
        })?;
    }

    #[test]
    fn a_budget_is_never_overspent(
        reserve in 0_u32..4,
        share in 0.05_f64..=1.0,
        schedules in vec(schedule(), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let start = time::now();
            let budget = Budget::percent(0).reserve(reserve);
            let layer = HedgeLayer::new(Duration::from_millis(DELAY))
                .at_most(Ratio::new(share).unwrap())
                .budget(budget.clone())
                .attempts(3)
                .classify(Sse);
            for (at, schedule) in schedules.iter().enumerate() {
                play(&layer, 3, schedule).await?;
                let sent = layer.handle().snapshot().sent;
                prop_assert!(sent as f64 <= share * (at + 1) as f64 + 1e-6);
                // Its floor is one in a second.
                let floor = (time::now() - start).as_secs();
                prop_assert!(sent <= u64::from(reserve) + floor);
            }
            Ok(())
        })?;
    }
}
