//! Whatever happens to requests, a circuit closes again once its service works.

use std::{collections::BTreeMap, time::Duration};

use palisade_circuit_breaker::{CircuitBreaker, CircuitState};
use palisade_core::{
    BoxError,
    gate::{Gate, Outlook},
    ratio::Ratio,
    reject::{Reason, Rejected},
    time::now,
};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::script::{Act, Backend, Trouble, is_on_purpose, perform};

const COOLDOWN: Duration = Duration::from_secs(5);

/// Doubled five times it is a cool-down, so that one cool-down later everything is due, leaks too.
const PROBE_TIMEOUT: Duration = Duration::from_nanos(COOLDOWN.as_nanos() as u64 / 32);

/// What is true right after a probe has met its trouble.
#[derive(Debug, PartialEq)]
enum After {
    Closed,
    Open,
    /// Half-open, or open and due, with room for the next probe.
    Room,
    /// Half-open, waiting for the probe.
    Full,
}

impl After {
    fn of(breaker: &CircuitBreaker) -> Self {
        let state = breaker.handle().snapshot().state;
        match (breaker.outlook(now()), state) {
            (Outlook::Admits, CircuitState::Closed) => Self::Closed,
            (Outlook::Refuses { until: Some(_) }, CircuitState::Open) => Self::Open,
            (Outlook::Refuses { until: None }, CircuitState::HalfOpen) => Self::Full,
            (Outlook::Probes, _) => Self::Room,
            other => panic!("{other:?}"),
        }
    }

    /// With a row of one failure.
    fn expected(act: Act) -> Self {
        let has_data = act.frames > 0;
        match act.trouble {
            // A passed probe only leaves a closed circuit by a failure.
            Trouble::Nothing => Self::Closed,
            Trouble::BadGateway
            | Trouble::Busy(_)
            | Trouble::NotReached
            | Trouble::ErrorOfService
            | Trouble::ErrorOfBody
            | Trouble::CallerLeavesBeforeHeadLate => Self::Open,
            Trouble::NotFound
            | Trouble::RefusedInside
            | Trouble::PanicInStart
            | Trouble::PanicInCall
            | Trouble::PanicInPoll
            | Trouble::PanicInHead
            | Trouble::CallerLeavesBeforePoll
            | Trouble::CallerLeavesBeforeHead
            | Trouble::CallerLeavesAfterHead => Self::Room,
            Trouble::HangsInHead | Trouble::LeakBeforePoll | Trouble::LeakBeforeHead => Self::Full,
            // The judge sees the data before the breaker hears of it.
            Trouble::PanicInData if has_data => Self::Room,
            Trouble::PanicInData => Self::Closed,
            Trouble::PanicInFrame
            | Trouble::PanicInEnd
            | Trouble::PanicInUsage
            | Trouble::CallerLeavesInBody
                if !has_data =>
            {
                Self::Room
            }
            Trouble::HangsInBody | Trouble::LeakInBody if !has_data => Self::Full,
            Trouble::PanicInFrame
            | Trouble::PanicInEnd
            | Trouble::PanicInUsage
            | Trouble::CallerLeavesInBody
            | Trouble::HangsInBody
            | Trouble::LeakInBody => Self::Closed,
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

fn quick(breaker: CircuitBreaker) -> CircuitBreaker {
    breaker
        .probes(1)
        .longest_cooldown(COOLDOWN)
        .probe_timeout(PROBE_TIMEOUT)
}

/// Waits for a request that may have panicked on purpose, and not for one that hangs.
async fn join(task: JoinHandle<Result<(), BoxError>>, patience: Duration, context: &str) {
    if let Ok(Err(error)) = timeout(patience, task).await {
        let panic = error.try_into_panic().expect("nobody aborts it");
        assert!(is_on_purpose(&*panic), "{context}: another panic");
    }
}

/// One cool-down later exactly one probe is admitted, and its success closes the circuit.
async fn assert_not_wedged(breaker: &CircuitBreaker, backend: &Backend, context: &str) {
    let state = || breaker.handle().snapshot().state;
    let failing = Act::new(Trouble::BadGateway);
    for _ in 0..100 {
        if state() != CircuitState::Closed {
            break;
        }
        perform(backend.service(breaker), failing).await.unwrap();
    }
    assert_ne!(state(), CircuitState::Closed, "{context}: does not open");
    // And a fifth, which is the jitter.
    sleep(COOLDOWN + COOLDOWN / 5).await;

    let before = backend.calls();
    let healthy = Act::new(Trouble::Nothing);
    let requests = [(); 5].map(|()| tokio::spawn(perform(backend.service(breaker), healthy)));
    let mut passed = 0;
    for request in requests {
        match request.await.expect("healthy") {
            Ok(()) => passed += 1,
            Err(error) => {
                let reason = Rejected::find(&*error).map(Rejected::reason);
                assert_eq!(reason, Some(Reason::CircuitOpen), "{context}");
            }
        }
    }
    assert_eq!(passed, 1, "{context}: probes admitted");
    assert_eq!(
        state(),
        CircuitState::Closed,
        "{context}: after its success"
    );
    let after = perform(backend.service(breaker), healthy).await;
    assert!(after.is_ok(), "{context}: {after:?}");
    assert_eq!(backend.calls() - before, 2, "{context}: calls");
    assert_eq!(backend.calls_while_open(), 0, "{context}: calls while open");
}

#[test]
fn whatever_happens_to_a_probe_it_is_over_for_the_circuit_at_once_or_after_its_timeout() {
    for trouble in Trouble::ALL {
        for frames in [0, 1] {
            let act = Act {
                frames,
                ..Act::new(trouble)
            };
            runtime().block_on(async {
                let context = format!("{act:?}");
                let breaker = quick(CircuitBreaker::consecutive(1, COOLDOWN)).jitter(None);
                let backend = Backend::behind(&breaker);
                let failing = Act::new(Trouble::BadGateway);
                perform(backend.service(&breaker), failing).await.unwrap();
                sleep(COOLDOWN).await;

                let request = tokio::spawn(perform(backend.service(&breaker), act));
                // Those that hang are looked at while the circuit still waits for them.
                let patience = match trouble {
                    Trouble::HangsInHead | Trouble::HangsInBody => PROBE_TIMEOUT / 2,
                    _ => COOLDOWN * 2,
                };
                join(request, patience, &context).await;
                let after = After::of(&breaker);
                assert_eq!(after, After::expected(act), "{context}");
                if after == After::Full {
                    sleep(PROBE_TIMEOUT).await;
                    assert_eq!(After::of(&breaker), After::Room, "{context}");
                }
                assert_not_wedged(&breaker, &backend, &context).await;
            });
        }
    }
}

#[test]
fn whatever_happens_in_a_closed_circuit_it_still_opens_and_closes() {
    for trouble in Trouble::ALL {
        runtime().block_on(async {
            let context = format!("{trouble:?}");
            let breaker = quick(CircuitBreaker::window(Ratio::HALF, 8, COOLDOWN));
            let backend = Backend::behind(&breaker);
            let act = Act::new(trouble);
            let requests = [(); 20].map(|()| tokio::spawn(perform(backend.service(&breaker), act)));
            for request in requests {
                join(request, COOLDOWN * 2, &context).await;
            }
            assert_not_wedged(&breaker, &backend, &context).await;
        });
    }
}

/// Marsaglia's xorshift64, with a seed that is spread first.
struct Dice(u64);

impl Dice {
    fn seeded(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }

    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }

    fn breaker(&mut self) -> CircuitBreaker {
        let breaker = match self.below(4) {
            0 => CircuitBreaker::consecutive(1 + self.below(3) as u32, COOLDOWN),
            1 => CircuitBreaker::window(Ratio::HALF, 2 + self.below(8) as u32, COOLDOWN),
            2 => {
                let span = Duration::from_secs(1 + self.below(10));
                CircuitBreaker::time_window(Ratio::HALF, span, COOLDOWN)
            }
            _ => CircuitBreaker::consecutive(1 + self.below(3) as u32, COOLDOWN)
                .slow_calls(Ratio::HALF, Duration::from_millis(500 + self.below(2_000))),
        };
        match self.below(2) {
            0 => quick(breaker).jitter(None),
            _ => quick(breaker),
        }
    }

    fn act(&mut self) -> Act {
        let trouble = match self.below(3) {
            0 => Trouble::Nothing,
            1 => [Trouble::BadGateway, Trouble::Busy(self.below(5))][self.below(2) as usize],
            _ => Trouble::ALL[self.below(Trouble::ALL.len() as u64) as usize],
        };
        Act {
            trouble,
            latency: self.millis(150),
            frames: self.below(3) as u32,
        }
    }
}

/// One mix of requests; tells what became of its probes.
fn play(seed: u64) -> BTreeMap<Trouble, u32> {
    let context = format!("seed {seed}");
    let mut dice = Dice::seeded(seed);
    runtime().block_on(async {
        let breaker = dice.breaker();
        let backend = Backend::behind(&breaker);
        let mut requests = Vec::new();
        for _ in 0..20 + dice.below(40) {
            let (at, act) = (dice.millis(30_000), dice.act());
            let service = backend.service(&breaker);
            requests.push(tokio::spawn(async move {
                sleep(at).await;
                perform(service, act).await
            }));
        }
        if dice.below(4) == 0 {
            let (handle, open) = (breaker.handle(), dice.below(2) == 0);
            let (at, pause) = (dice.millis(20_000), dice.millis(5_000));
            requests.push(tokio::spawn(async move {
                sleep(at).await;
                match open {
                    true => handle.force_open(),
                    false => handle.force_closed(),
                }
                sleep(pause).await;
                handle.release();
                Ok(())
            }));
        }
        // Those that hang do so for ever.
        sleep(Duration::from_secs(60)).await;
        for request in requests {
            join(request, Duration::ZERO, &context).await;
        }
        assert_not_wedged(&breaker, &backend, &context).await;
        backend.probes()
    })
}

#[test]
fn fifteen_hundred_mixes_of_panics_cancellations_errors_leaks_and_refusals_wedge_nothing() {
    let mut probes = BTreeMap::<Trouble, u32>::new();
    for seed in 0..1500 {
        for (trouble, count) in play(seed) {
            *probes.entry(trouble).or_default() += count;
        }
    }
    for trouble in Trouble::ALL {
        // Panics there come before a request is a probe.
        if trouble != Trouble::PanicInStart {
            let count = probes.get(&trouble).copied().unwrap_or_default();
            assert!(count >= 20, "{trouble:?} met {count} probes only");
        }
    }
}
