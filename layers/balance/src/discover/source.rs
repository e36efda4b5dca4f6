use std::{
    error::Error,
    fmt,
    future::{Future, pending},
};

use palisade_core::BoxError;
use tokio::sync::watch;

use super::Target;

/// Gives whole lists of targets, one after the other.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_balance::discover::{Source, Target};
/// use palisade_core::BoxError;
///
/// struct Registry {
///     asked: bool,
/// }
///
/// impl Source for Registry {
///     async fn next(&mut self) -> Result<Vec<Target>, BoxError> {
///         if self.asked {
///             tokio::time::sleep(Duration::from_secs(10)).await;
///         }
///         let list = ask_the_registry().await?;
///         self.asked = true;
///         Ok(list)
///     }
/// }
/// # async fn ask_the_registry() -> Result<Vec<Target>, BoxError> { Ok(vec![Target::new("10.0.0.1:80")]) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// # let mut registry = Registry { asked: false };
/// # assert_eq!(registry.next().await.unwrap().len(), 1);
/// # assert_eq!(registry.next().await.unwrap().len(), 1);
/// # }
/// ```
pub trait Source: Send {
    /// The first list as soon as it is known, and each later one when it may differ or is due.
    ///
    /// # Errors
    ///
    /// When no list could be had; it is asked again a while later.
    ///
    /// # Cancellation
    ///
    /// The future may be dropped while it waits, and no list may be lost by that.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Target>, BoxError>> + Send;

    /// What it is called in metrics, unless said otherwise.
    fn kind(&self) -> &'static str {
        "custom"
    }

    /// What an empty list of it means, unless said otherwise.
    fn empty(&self) -> Empty {
        Empty::Doubted
    }
}

/// What an empty list means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Empty {
    /// That there are no endpoints: all are removed.
    Believed,
    /// That something is wrong with the list: the last one stays.
    Doubted,
}

/// A list is empty, and the last one was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmptyList;

impl fmt::Display for EmptyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the list of targets is empty, and the last one stays")
    }
}

impl Error for EmptyList {}

/// One list that never changes.
#[derive(Clone, Debug)]
pub struct Fixed(Option<Vec<Target>>);

impl Fixed {
    /// Gives this list.
    pub fn new(targets: impl IntoIterator<Item = Target>) -> Self {
        Self(Some(targets.into_iter().collect()))
    }
}

impl Source for Fixed {
    async fn next(&mut self) -> Result<Vec<Target>, BoxError> {
        match self.0.take() {
            Some(targets) => Ok(targets),
            None => pending().await,
        }
    }

    fn kind(&self) -> &'static str {
        "fixed"
    }

    fn empty(&self) -> Empty {
        Empty::Believed
    }
}

/// The list that a `tokio::sync::watch` holds. When its sender is gone, the last one stays.
#[derive(Clone, Debug)]
pub struct Live {
    receiver: watch::Receiver<Vec<Target>>,
}

impl Live {
    /// Gives what the channel holds now and then each change of it.
    pub fn new(mut receiver: watch::Receiver<Vec<Target>>) -> Self {
        receiver.mark_changed();
        Self { receiver }
    }
}

impl Source for Live {
    async fn next(&mut self) -> Result<Vec<Target>, BoxError> {
        match self.receiver.changed().await {
            Ok(()) => Ok(self.receiver.borrow_and_update().clone()),
            Err(_) => pending().await,
        }
    }

    fn kind(&self) -> &'static str {
        "live"
    }

    fn empty(&self) -> Empty {
        Empty::Believed
    }
}
