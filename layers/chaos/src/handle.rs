use std::sync::{Arc, atomic::Ordering::Relaxed};

use crate::{error::NoSuchFault, fault::Fault, shared::Shared};

/// Looks at faults and steers them from outside. Clones are about the same faults.
///
/// ```
/// use palisade_chaos::{ChaosLayer, Fault, Mode};
///
/// let chaos = ChaosLayer::off(42);
/// let handle = chaos.handle();
/// handle.set([Fault::reset(), Fault::hang()]);
/// handle.disarm("hang")?;
/// handle.enable();
/// assert_eq!(handle.snapshot().mode, Mode::On);
/// assert_eq!(handle.snapshot().faults[0].struck, 0);
/// handle.disable();
/// # Ok::<(), palisade_chaos::NoSuchFault>(())
/// ```
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// Whether faults strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// None does, none is drawn, and nothing is counted.
    Off,
    /// They are drawn and counted, and none strikes.
    Shadow,
    /// They do.
    On,
}

/// Faults at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Whether they strike.
    pub mode: Mode,
    /// What they are drawn by.
    pub seed: u64,
    /// Requests that came since they were last switched on or changed.
    pub requests: u64,
    /// In their order.
    pub faults: Vec<FaultSnapshot>,
}

/// A fault at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultSnapshot {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it may strike.
    pub armed: bool,
    /// How often it did: a latency when the wait began, one of bodies when the body got so far.
    pub struck: u64,
    /// How often it would have been tried, in shadow mode.
    pub shadowed: u64,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The counts of now. They are read one after the other, while requests go on.
    pub fn snapshot(&self) -> Snapshot {
        let params = self.shared.params();
        let faults = params.faults.iter().map(|armed| FaultSnapshot {
            name: armed.name.clone(),
            armed: armed.armed.load(Relaxed),
            struck: armed.struck.load(Relaxed),
            shadowed: armed.shadowed.load(Relaxed),
        });
        Snapshot {
            mode: self.shared.mode(),
            seed: params.seed,
            requests: self.shared.requests(),
            faults: faults.collect(),
        }
    }

    /// Lets faults strike. If they were off, the sequence of draws and all windows begin anew.
    pub fn enable(&self) {
        self.shared.set_mode(Mode::On);
    }

    /// Lets nothing strike any more. What has struck a request before goes on for it.
    pub fn disable(&self) {
        self.shared.set_mode(Mode::Off);
    }

    /// Only counts what would strike.
    pub fn shadow(&self) {
        self.shared.set_mode(Mode::Shadow);
    }

    /// Replaces all faults, and with them the counts. The sequence of draws and all windows begin anew; off stays off.
    pub fn set(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.set(faults);
    }

    /// Draws by another seed. The sequence of draws and all windows begin anew.
    pub fn reseed(&self, seed: u64) {
        self.shared.reseed(seed);
    }

    /// Lets the faults of this name strike.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn arm(&self, fault: &str) -> Result<(), NoSuchFault> {
        self.switch(fault, true)
    }

    /// Lets the faults of this name strike no more; the others draw as before.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn disarm(&self, fault: &str) -> Result<(), NoSuchFault> {
        self.switch(fault, false)
    }

    fn switch(&self, fault: &str, armed: bool) -> Result<(), NoSuchFault> {
        let params = self.shared.params();
        let named = params.faults.iter().filter(|each| *each.name == *fault);
        let many = named.map(|each| each.armed.store(armed, Relaxed)).count();
        match many {
            0 => Err(NoSuchFault(fault.into())),
            _ => Ok(()),
        }
    }
}
