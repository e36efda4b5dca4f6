//! Why a dimension cannot be added.

use std::{error::Error, fmt};

use super::DIMENSIONS;

/// A dimension cannot be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidDimension(pub(super) Kind, pub(super) Box<str>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Known,
    TooMany,
}

impl fmt::Display for InvalidDimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(kind, name) = self;
        match kind {
            Kind::Known => write!(f, "dimension {name:?} has labels already"),
            Kind::TooMany => write!(f, "dimension {name:?} is one more than {DIMENSIONS}"),
        }
    }
}

impl Error for InvalidDimension {}
