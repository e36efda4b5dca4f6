use std::{error::Error, fmt, io, iter, sync::Arc};

/// A failure that was made on purpose.
///
/// ```
/// use palisade_chaos::Injected;
///
/// let real = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
/// assert!(Injected::find(&real).is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    pub(crate) fault: Arc<str>,
}

impl Injected {
    /// Finds it in an error or in what caused it.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        // What `io::Error` wraps is a cause too, which its own `source` skips.
        let mut chain = iter::successors(Some(error), |&error| {
            match error.downcast_ref::<io::Error>() {
                Some(error) => error.get_ref().map(|error| error as _),
                None => error.source(),
            }
        });
        chain.find_map(|error| error.downcast_ref())
    }

    /// The name of the fault.
    pub fn fault(&self) -> &str {
        &self.fault
    }
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the fault {} was injected", self.fault)
    }
}

impl Error for Injected {}

/// No fault has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSuchFault(pub(crate) String);

impl fmt::Display for NoSuchFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no fault is named {:?}", self.0)
    }
}

impl Error for NoSuchFault {}
