//! What to do when most endpoints are out.

/// What happens while fewer than half of three or more endpoints may be picked. Set by
/// [`Endpoints::set_panic`](crate::Endpoints::set_panic).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Panic {
    /// What speaks against endpoints is advice: those that were ejected, and those whose gates have opened by
    /// themselves, are picked at the price of a failure.
    ///
    /// For services of which some requests still work when most endpoints fail.
    #[default]
    UseAll,
    /// Requests are refused at once, but for those that probe an endpoint which is due.
    ///
    /// For services that fail as a whole, and come back sooner when they are left alone.
    Refuse,
}
