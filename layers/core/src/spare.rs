//! Memory that one request leaves to the next.
//!
//! What a request carries along is moved with each layer that its future and its answer pass through. Behind a pointer
//! that is eight bytes, whatever it is; and with memory that was there before, it is no allocation either.

use std::{cell::RefCell, fmt, ops::Deref, pin::Pin, thread::LocalKey};

/// What a thread keeps of one kind.
pub type Shelf<T> = RefCell<Vec<Pin<Box<T>>>>;

/// A thread keeps no more than this of one kind: what a burst has needed is given back.
const MOST: usize = 64;

/// Something that is made once and used by one request after the other.
///
/// ```
/// use std::{cell::RefCell, pin::Pin, thread::LocalKey};
///
/// use palisade_core::spare::{Reuse, Shelf, Spare};
///
/// #[derive(Default)]
/// struct Notes {
///     text: String,
/// }
///
/// impl Reuse for Notes {
///     fn shelf() -> &'static LocalKey<Shelf<Self>> {
///         thread_local!(static SHELF: Shelf<Notes> = const { RefCell::new(Vec::new()) });
///         &SHELF
///     }
///
///     fn clear(mut self: Pin<&mut Self>) {
///         self.text.clear();
///     }
/// }
///
/// let mut notes = Spare::<Notes>::new();
/// notes.get().text.push_str("hello");
/// drop(notes);
/// // The same one, which still has its memory.
/// let again = Spare::<Notes>::new();
/// assert_eq!((again.text.len(), again.text.capacity() >= 5), (0, true));
/// ```
pub trait Reuse: Default + 'static {
    /// Where a thread keeps them.
    fn shelf() -> &'static LocalKey<Shelf<Self>>;

    /// Forgets what one request has put in: the next begins as with a default one, or finds what it would put in itself.
    fn clear(self: Pin<&mut Self>);
}

/// One that is in use. Dropped, it is cleared and left to the next that this thread needs.
pub struct Spare<T: Reuse>(Option<Pin<Box<T>>>);

impl<T: Reuse> Spare<T> {
    /// One that was left, or a new one.
    #[inline]
    pub fn new() -> Self {
        // Without a shelf while the thread ends.
        let left = T::shelf().try_with(|shelf| shelf.borrow_mut().pop());
        let left = left.ok().flatten();
        Self(Some(left.unwrap_or_else(|| Box::pin(T::default()))))
    }

    /// To be changed.
    #[inline]
    pub fn get(&mut self) -> &mut T
    where
        T: Unpin,
    {
        self.pin().get_mut()
    }

    /// To be changed where it is.
    #[inline]
    pub fn pin(&mut self) -> Pin<&mut T> {
        self.0.as_mut().expect("there until the drop").as_mut()
    }
}

impl<T: Reuse> Default for Spare<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Reuse> Deref for Spare<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.0.as_ref().expect("there until the drop")
    }
}

impl<T: Reuse> Drop for Spare<T> {
    #[inline]
    fn drop(&mut self) {
        let Some(mut used) = self.0.take() else {
            return;
        };
        used.as_mut().clear();
        let _ = T::shelf().try_with(|shelf| {
            let mut shelf = shelf.borrow_mut();
            if shelf.len() < MOST {
                shelf.push(used);
            }
        });
    }
}

impl<T: Reuse + fmt::Debug> fmt::Debug for Spare<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[derive(Default)]
    struct Number {
        is: u32,
    }

    impl Reuse for Number {
        fn shelf() -> &'static LocalKey<Shelf<Self>> {
            thread_local!(static SHELF: Shelf<Number> = const { RefCell::new(Vec::new()) });
            &SHELF
        }

        fn clear(mut self: Pin<&mut Self>) {
            assert_ne!(self.is, 13, "on purpose");
            self.is = 0;
        }
    }

    fn kept() -> usize {
        Number::shelf().with(|shelf| shelf.borrow().len())
    }

    fn at(number: &Spare<Number>) -> *const Number {
        &raw const **number
    }

    #[test]
    fn the_next_one_gets_the_memory_and_nothing_that_was_in_it() {
        let mut number = Spare::<Number>::new();
        number.get().is = 7;
        let before = at(&number);
        drop(number);
        let next = Spare::<Number>::new();
        assert_eq!((at(&next), next.is), (before, 0));
        // Two at a time are two.
        assert_ne!(at(&Spare::new()), at(&next));
    }

    #[test]
    fn a_thread_keeps_no_more_than_it_may_after_a_burst() {
        let burst: Vec<_> = (0..2 * MOST).map(|_| Spare::<Number>::new()).collect();
        assert_eq!(kept(), 0);
        drop(burst);
        assert_eq!(kept(), MOST);
    }

    #[test]
    fn it_stays_with_the_thread_that_drops_it() {
        let number = Spare::<Number>::new();
        let there = thread::spawn(move || {
            drop(number);
            kept()
        });
        assert_eq!((there.join().unwrap(), kept()), (1, 0));
    }

    #[test]
    fn one_that_cannot_be_cleared_is_not_used_again() {
        let thread = thread::spawn(|| {
            let mut number = Spare::<Number>::new();
            number.get().is = 13;
            let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(number)));
            (broken.is_err(), kept())
        });
        assert_eq!(thread.join().unwrap(), (true, 0));
    }

    #[test]
    fn it_can_be_dropped_while_its_thread_ends() {
        struct Last(Option<Spare<Number>>);

        impl Drop for Last {
            fn drop(&mut self) {
                drop(self.0.take());
                drop(Spare::<Number>::new());
            }
        }

        thread_local!(static LAST: RefCell<Last> = const { RefCell::new(Last(None)) });
        let thread = thread::spawn(|| {
            // Before the shelf, so that it is dropped after it.
            LAST.with(|last| last.borrow_mut().0 = None);
            LAST.with(|last| last.borrow_mut().0 = Some(Spare::new()));
        });
        assert!(thread.join().is_ok());
    }
}
