//! What a layer, its services and its handles share.

use std::{
    cell::LazyCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use palisade_core::{head::RequestHead, time};
use tokio::time::Instant;

use crate::{
    Mode,
    demand::Demand,
    draw::Draw,
    error::Injected,
    fault::{Fault, Kind},
    injection::Injection,
    metrics::Metric,
};

/// What a layer, its services and its handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    layer: Arc<str>,
    /// A [`Mode`] as a number: all that is looked at while nothing is to happen.
    mode: AtomicU8,
    params: ArcSwap<Params>,
    /// Requests since the faults were switched on: the sequence that draws follow.
    requests: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Params {
    pub(crate) seed: u64,
    since: Instant,
    pub(crate) faults: Arc<[Arc<Armed>]>,
}

/// A fault in use.
#[derive(Debug)]
pub(crate) struct Armed {
    layer: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) fault: Fault,
    pub(crate) armed: AtomicBool,
    pub(crate) struck: AtomicU64,
    pub(crate) shadowed: AtomicU64,
    metric: Metric,
}

impl Armed {
    /// Counts that it has happened.
    pub(crate) fn strike(&self) {
        self.struck.fetch_add(1, Relaxed);
        self.metric.struck();
    }

    /// Counts that it would have happened.
    fn shadow(&self) {
        self.shadowed.fetch_add(1, Relaxed);
        self.metric.shadowed();
    }

    pub(crate) fn injected(&self) -> Injected {
        let fault = self.name.clone();
        Injected { fault }
    }
}

impl Shared {
    pub(crate) fn new(layer: Arc<str>, seed: u64, faults: impl IntoIterator<Item = Fault>) -> Self {
        let faults = arm(&layer, faults);
        Self {
            layer,
            mode: AtomicU8::new(if faults.is_empty() { OFF } else { ON }),
            params: ArcSwap::from_pointee(Params {
                seed,
                since: time::now(),
                faults,
            }),
            requests: AtomicU64::new(0),
        }
    }

    /// The same under another name, from the start.
    pub(crate) fn renamed(&self, layer: Arc<str>) -> Self {
        let params = self.params.load();
        let faults = params.faults.iter().map(|armed| armed.fault.clone());
        let renamed = Self::new(layer, params.seed, faults);
        renamed.mode.store(self.mode.load(Relaxed), Relaxed);
        renamed
    }

    #[inline]
    pub(crate) fn is_off(&self) -> bool {
        self.mode.load(Relaxed) == OFF
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.mode.load(Relaxed) {
            OFF => Mode::Off,
            SHADOW => Mode::Shadow,
            _ => Mode::On,
        }
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        let number = match mode {
            Mode::Off => OFF,
            Mode::Shadow => SHADOW,
            Mode::On => ON,
        };
        // Before anybody looks at what begins anew.
        if self.is_off() {
            self.restart();
        }
        self.mode.store(number, Relaxed);
    }

    /// Begins the sequence of draws and all windows anew.
    pub(crate) fn restart(&self) {
        self.replace(|params| (params.seed, params.faults.clone()));
    }

    pub(crate) fn reseed(&self, seed: u64) {
        self.replace(|params| (seed, params.faults.clone()));
    }

    pub(crate) fn set(&self, faults: impl IntoIterator<Item = Fault>) {
        let faults = arm(&self.layer, faults);
        self.replace(|params| (params.seed, faults.clone()));
    }

    /// Of two that replace at once, the second sees what the first has done.
    fn replace(&self, next: impl Fn(&Params) -> (u64, Arc<[Arc<Armed>]>)) {
        let since = time::now();
        self.params.rcu(|params| {
            let (seed, faults) = next(params);
            Params {
                seed,
                since,
                faults,
            }
        });
        self.requests.store(0, Relaxed);
    }

    pub(crate) fn params(&self) -> Arc<Params> {
        self.params.load_full()
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// What happens to this request: mostly nothing.
    pub(crate) fn decide(
        &self,
        head: &RequestHead<'_>,
        is_grpc: bool,
        demand: Option<&Demand>,
    ) -> Option<Injection> {
        let request = self.requests.fetch_add(1, Relaxed);
        let params = self.params.load();
        let on = LazyCell::new(|| time::now().saturating_duration_since(params.since));
        let (shadow, mut injection) = (self.mode() == Mode::Shadow, None);
        for (at, armed) in params.faults.iter().enumerate() {
            armed.metric.register(&armed.layer, &armed.name);
            if !armed.armed.load(Relaxed) {
                continue;
            }
            let mut draw = Draw::new(params.seed, request, at as u64);
            let demanded = demand.is_some_and(|demand| demand.names(&armed.name));
            let strikes = demanded || armed.fault.strikes(|| draw.share(), || *on);
            if !strikes || !armed.fault.allows(head, is_grpc) {
                continue;
            }
            if shadow {
                armed.shadow();
                continue;
            }
            let injection: &mut Injection = injection.get_or_insert_default();
            match &armed.fault.kind {
                Kind::Latency(delay) => injection.delay(armed, delay.draw(&mut draw)),
                Kind::Ends(ends) => injection.end(armed, ends),
                Kind::Cuts(cuts) => injection.cut(armed, *cuts),
            }
        }
        injection
    }
}

const OFF: u8 = 0;
const SHADOW: u8 = 1;
const ON: u8 = 2;

fn arm(layer: &Arc<str>, faults: impl IntoIterator<Item = Fault>) -> Arc<[Arc<Armed>]> {
    let faults = faults.into_iter().map(|fault| {
        Arc::new(Armed {
            layer: layer.clone(),
            name: fault.name().into(),
            fault,
            armed: AtomicBool::new(true),
            struck: AtomicU64::new(0),
            shadowed: AtomicU64::new(0),
            metric: Metric::default(),
        })
    });
    faults.collect()
}
