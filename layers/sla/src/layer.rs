use std::{sync::Arc, time::Duration};

use palisade_core::{
    classify::{Classify, Http},
    gate::{GateLayer, Gated},
    head::RequestHead,
};
use tower_layer::Layer;

use crate::{
    compliance::Targets, gate::Sla, handle::Handle, labels::InvalidDimension, objective::Objective,
};

/// Puts an [`Sla`] in front of a service.
///
/// A layer and its clones count together, also when axum applies the layer to many routes.
#[derive(Clone, Debug)]
pub struct SlaLayer<C = Http> {
    layer: GateLayer<Sla, C>,
}

impl SlaLayer {
    /// Measures against this objective, over 30 days, and summarises up to 5 minutes.
    pub fn new(objective: Objective) -> Self {
        Self {
            layer: GateLayer::new(Sla::new(objective)),
        }
    }
}

impl<C: Classify> SlaLayer<C> {
    /// Judges how requests end with `classify` instead of by HTTP status.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> SlaLayer<D> {
        SlaLayer {
            layer: self.layer.classify(classify),
        }
    }

    /// The name in snapshots and metrics instead of `sla`; metrics take it with the first request.
    #[must_use]
    pub fn named(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|sla| sla.named(name))
    }

    /// Holds summaries against these targets instead of the defaults.
    #[must_use]
    pub fn targets(self, targets: Targets) -> Self {
        self.with(|sla| sla.targets(targets))
    }

    /// Summarises windows of up to this, as [`Sla::longest_window`].
    #[must_use]
    pub fn longest_window(self, window: Duration) -> Self {
        self.with(|sla| sla.longest_window(window))
    }

    /// Gives error budgets for this period, as [`Sla::period`].
    #[must_use]
    pub fn period(self, period: Duration) -> Self {
        self.with(|sla| sla.period(period))
    }

    /// Counts requests also by what `read` finds in their head, as [`Sla::by`].
    ///
    /// # Errors
    ///
    /// Fails when the dimension has been given a way to read its labels before, or is the ninth.
    pub fn by<F>(self, dimension: &str, read: F) -> Result<Self, InvalidDimension>
    where
        F: for<'a> Fn(&RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    {
        self.gate().clone().by(dimension, read)?;
        Ok(self)
    }

    /// Gives dimensions that are added from now on so many labels instead of 32, as [`Sla::most_labels`].
    #[must_use]
    pub fn most_labels(self, most: usize) -> Self {
        self.with(|sla| sla.most_labels(most))
    }

    /// Asks this how many requests wait to be served, whenever a summary is made.
    #[must_use]
    pub fn queue_depth(self, depth: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.with(|sla| sla.queue_depth(depth))
    }

    /// Has [`Handle::publish`] tell of each label, too, as [`Sla::publish_labels`].
    #[cfg(feature = "metrics")]
    #[must_use]
    pub fn publish_labels(self) -> Self {
        self.with(Sla::publish_labels)
    }

    /// What counts, to be put into other layers or fused with other gates.
    pub fn gate(&self) -> &Sla {
        self.layer.gate()
    }

    /// Reports what was measured.
    pub fn handle(&self) -> Handle {
        self.gate().handle()
    }

    /// Clones of a gate share its state, so the layer has what is set here.
    fn with(self, set: impl FnOnce(Sla) -> Sla) -> Self {
        set(self.gate().clone());
        self
    }
}

impl<S, C: Classify> Layer<S> for SlaLayer<C> {
    type Service = Gated<S, Sla, C>;

    fn layer(&self, inner: S) -> Self::Service {
        self.layer.layer(inner)
    }
}
