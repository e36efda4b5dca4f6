//! The other side of a limit: a client that learns a service's quotas from its answers, and goes by them.

mod fields;
mod gate;
mod handle;
mod known;
mod layer;
mod ledger;
mod metrics;
mod queue;
mod shared;
mod table;
mod told;
mod when;

pub use self::{
    gate::{QuotaMirror, Sent},
    handle::{MirrorHandle, Mirrored, MirroredQuota},
    known::QuotaUnit,
    layer::QuotaMirrorLayer,
};
