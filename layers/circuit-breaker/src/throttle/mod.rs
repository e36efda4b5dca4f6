//! Refuses a share of the requests.

mod error;
mod gate;
mod handle;
mod layer;
mod meter;
mod metrics;
mod settings;
mod shared;

pub use self::{
    error::Throttled,
    gate::{Throttle, ThrottledCall},
    handle::{ThrottleHandle, ThrottleSnapshot},
    layer::ThrottleLayer,
    settings::ThrottleSettings,
};
