use std::{fmt, sync::Arc};

use palisade_core::{key::Key, time};

use super::gate::Keyed;
use crate::{CircuitState, Handle, Mode, Saved, Settings};

/// Looks at the circuits of keys and steers them from outside. Clones are about the same circuits.
///
/// ```
/// use palisade_circuit_breaker::{KeyedCircuitBreaker, Saved, SavedState, Settings, destination};
/// use palisade_core::key::Key;
///
/// let handle = KeyedCircuitBreaker::new(Settings::five_in_a_row(), destination()).handle();
/// let mut saved = Saved::default();
/// saved.state = SavedState::ForcedOpen;
/// assert!(handle.restore(&Key::from("a.example"), &saved));
/// assert_eq!((handle.snapshot().keys, handle.snapshot().open), (1, 1));
/// for (key, circuit) in handle.circuits() {
///     assert_eq!((key, circuit.save().state), (Key::from("a.example"), SavedState::ForcedOpen));
/// }
/// ```
#[derive(Clone)]
pub struct KeyedHandle {
    keyed: Arc<Keyed>,
}

/// The circuits of keys at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyedSnapshot {
    /// Keys that have a circuit.
    pub keys: usize,
    /// The most that can have one.
    pub capacity: usize,
    /// Circuits that are open.
    pub open: usize,
    /// Circuits that are half-open.
    pub half_open: usize,
    /// Circuits that were forgotten, for others or because nobody asked for them.
    pub evicted_total: u64,
    /// Whether they refuse.
    pub mode: Mode,
}

impl KeyedHandle {
    pub(super) fn new(keyed: Arc<Keyed>) -> Self {
        Self { keyed }
    }

    /// The name that the breaker was given, `circuit_breaker` if none.
    pub fn name(&self) -> &str {
        self.keyed.common.name()
    }

    /// How many circuits there are. Looks at each, and keeps newcomers waiting meanwhile.
    pub fn snapshot(&self) -> KeyedSnapshot {
        let table = self.keyed.read();
        let mut snapshot = KeyedSnapshot {
            keys: 0,
            capacity: table.capacity,
            open: 0,
            half_open: 0,
            evicted_total: table.evicted,
            mode: self.keyed.common.mode(),
        };
        for seat in table.seats() {
            snapshot.keys += 1;
            match seat.shared.look(|circuit| circuit.state()) {
                CircuitState::Closed => {}
                CircuitState::Open => snapshot.open += 1,
                CircuitState::HalfOpen => snapshot.half_open += 1,
            }
        }
        snapshot
    }

    /// The circuit of a key, if it has one: of no effect once the circuit is forgotten, which one that is forced never
    /// is.
    pub fn circuit(&self, key: &Key<'_>) -> Option<Handle> {
        let table = self.keyed.read();
        let seat = table.find(key)?;
        Some(Handle::new(seat.shared.clone()))
    }

    /// All keys that have a circuit, with it.
    pub fn circuits(&self) -> Vec<(Key<'static>, Handle)> {
        let table = self.keyed.read();
        let seats = table.seats();
        seats
            .map(|seat| (seat.key.clone(), Handle::new(seat.shared.clone())))
            .collect()
    }

    /// Gives a key the circuit that was saved: whether there was room for it, which there is unless as many others are
    /// forced.
    pub fn restore(&self, key: &Key<'_>, saved: &Saved) -> bool {
        let circuit = self.keyed.circuit(key, time::now());
        let Some(shared) = circuit else {
            return false;
        };
        Handle::new(shared).restore(saved);
        true
    }

    /// Forgets the circuit of a key: whether there was one.
    pub fn forget(&self, key: &Key<'_>) -> bool {
        self.keyed.write().forget(key)
    }

    /// The settings of circuits to come.
    pub fn settings(&self) -> Settings {
        self.keyed.read().settings.clone()
    }

    /// Goes by other settings, in circuits to come and in those that are there: [`Handle::update`].
    pub fn update(&self, settings: Settings) {
        let mut table = self.keyed.write();
        table.settings = settings.clone().reasonable();
        for seat in table.seats() {
            Handle::new(seat.shared.clone()).update(settings.clone());
        }
    }

    /// Refuses from now on, or only counts what it would refuse.
    pub fn set_mode(&self, mode: Mode) {
        self.keyed.common.set_mode(mode);
    }
}

impl fmt::Debug for KeyedHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedHandle")
            .field("name", &self.name())
            .field("snapshot", &self.snapshot())
            .finish()
    }
}
