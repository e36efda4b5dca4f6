//! A circuit for each key.

mod destination;
mod gate;
mod handle;
mod layer;
mod table;

pub use self::{
    destination::{Destination, destination},
    gate::{KeyedCall, KeyedCircuitBreaker},
    handle::{KeyedHandle, KeyedSnapshot},
    layer::KeyedCircuitBreakerLayer,
};
