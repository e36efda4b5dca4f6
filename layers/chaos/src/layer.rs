use std::sync::Arc;

use http::HeaderName;
use tower_layer::Layer;

use crate::{Chaos, Fault, Handle, Secret, shared::Shared};

/// Lets faults strike what is further in.
///
/// ```
/// use http::StatusCode;
/// use palisade_chaos::{ChaosLayer, Fault, Ratio};
/// use tower::Layer;
///
/// let tenth = Ratio::new(0.1)?;
/// let chaos = ChaosLayer::new(42, [Fault::status(StatusCode::BAD_GATEWAY).share(tenth)]);
/// let service = chaos.layer("any service");
/// # assert!(format!("{service:?}").contains("any service"));
/// assert_eq!(chaos.handle().snapshot().faults.len(), 1);
/// # Ok::<(), palisade_core::ratio::InvalidRatio>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChaosLayer {
    shared: Arc<Shared>,
    settings: Settings,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) secret: Option<Secret>,
    pub(crate) mark: Option<HeaderName>,
}

impl ChaosLayer {
    /// These faults, switched on. With the same seed the same requests meet the same ones.
    pub fn new(seed: u64, faults: impl IntoIterator<Item = Fault>) -> Self {
        Self {
            shared: Arc::new(Shared::new("chaos".into(), seed, faults)),
            settings: Settings::default(),
        }
    }

    /// None, switched off: for a handle to change while requests come in.
    pub fn off(seed: u64) -> Self {
        Self::new(seed, [])
    }

    /// Lets requests ask for faults by name, whatever their share and window: `x-chaos: slow, reset`, together with
    /// `x-chaos-secret`. Otherwise none can.
    ///
    /// Only for faults that the layer has; their parameters are the layer's. While faults are on, both headers are taken
    /// out of every request.
    #[must_use]
    pub fn on_demand(mut self, secret: Secret) -> Self {
        self.settings.secret = Some(secret);
        self
    }

    /// Names what was done to an answer in this header; none otherwise.
    #[must_use]
    pub fn mark(mut self, header: HeaderName) -> Self {
        self.settings.mark = Some(header);
        self
    }

    /// Names the layer in metrics; `chaos` otherwise. The faults are this layer's own from here on: handles that were
    /// taken before are about others.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.shared = Arc::new(self.shared.renamed(name.into()));
        self
    }

    /// Looks at it and steers it from outside.
    pub fn handle(&self) -> Handle {
        Handle::new(self.shared.clone())
    }
}

impl<S> Layer<S> for ChaosLayer {
    type Service = Chaos<S>;

    fn layer(&self, inner: S) -> Chaos<S> {
        Chaos::new(inner, self.shared.clone(), self.settings.clone())
    }
}
