//! What the circuits of one layer have in common.

use std::{
    borrow::Cow,
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use palisade_core::settle::End;

use crate::{metrics::Meters, settings::Mode};

const DEFAULT_NAME: &str = "circuit_breaker";

type Ignore = Box<dyn Fn(&End) -> bool + Send + Sync>;

pub(crate) struct Common {
    name: OnceLock<Cow<'static, str>>,
    ignore: OnceLock<Ignore>,
    shadow: AtomicBool,
    pub(crate) meters: Meters,
}

impl Common {
    pub(crate) fn new() -> Self {
        Self {
            name: OnceLock::new(),
            ignore: OnceLock::new(),
            shadow: AtomicBool::new(false),
            meters: Meters::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.name.get().map_or(DEFAULT_NAME, |name| name)
    }

    /// The first name stays.
    pub(crate) fn set_name(&self, name: Cow<'static, str>) {
        let _ = self.name.set(name);
    }

    /// The first stays.
    pub(crate) fn set_ignore(&self, ignore: impl Fn(&End) -> bool + Send + Sync + 'static) {
        let _ = self.ignore.set(Box::new(ignore));
    }

    /// Calls what the user has set.
    pub(crate) fn ignores(&self, end: &End) -> bool {
        // While a panic unwinds another would abort.
        let ignore = self.ignore.get().filter(|_| !thread::panicking());
        ignore.is_some_and(|ignore| ignore(end))
    }

    pub(crate) fn is_shadow(&self) -> bool {
        self.shadow.load(Ordering::Relaxed)
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.is_shadow() {
            true => Mode::Shadow,
            false => Mode::Enforce,
        }
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.shadow.store(mode == Mode::Shadow, Ordering::Relaxed);
    }

    pub(crate) fn register(&self) {
        self.meters.register(|| self.name());
    }
}

impl fmt::Debug for Common {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Common")
            .field("name", &self.name())
            .field("mode", &self.mode())
            .finish_non_exhaustive()
    }
}
