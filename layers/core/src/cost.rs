//! How much work a request is expected to be.

/// In the extensions of a request: how much work it is, where not all are alike. For language models, tokens.
///
/// Only ratios matter, so any unit does as long as all requests of a service have the same.
///
/// ```
/// use palisade_core::cost::Cost;
///
/// assert_eq!(Cost::new(1200.0).map(Cost::get), Some(1200.0));
/// assert_eq!(Cost::new(0.0), None);
/// assert_eq!(Cost::new(f64::NAN), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Cost(f64);

impl Cost {
    /// `None` unless it is above zero and finite.
    pub fn new(units: f64) -> Option<Self> {
        (units > 0.0 && units.is_finite()).then_some(Self(units))
    }

    /// The units.
    pub fn get(self) -> f64 {
        self.0
    }
}
