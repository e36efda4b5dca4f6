//! Who is told when something breaks: rules for Prometheus, and messages for those who have none.

mod notify;
mod payload;
mod queue;
pub mod rules;

pub(crate) use self::notify::Notifier;
