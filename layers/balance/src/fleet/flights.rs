//! What is kept of the attempts in flight. No allocation once it has grown.

use crate::slot::Flight;

/// A slab: the place of an attempt that has ended is the next one's, and warm.
#[derive(Debug, Default)]
pub(super) struct Flights {
    all: Vec<Flight>,
    free: Vec<u32>,
}

impl Flights {
    #[inline]
    pub(super) fn start(&mut self, flight: Flight) -> u32 {
        if let Some(at) = self.free.pop() {
            self.all[at as usize] = flight;
            return at;
        }
        self.all.push(flight);
        // Room for all, so that an end never allocates.
        self.free.reserve(self.all.capacity());
        self.all.len() as u32 - 1
    }

    #[inline]
    pub(super) fn get(&self, at: u32) -> &Flight {
        &self.all[at as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, at: u32) -> &mut Flight {
        &mut self.all[at as usize]
    }

    /// Its place is free, and keeps what was known of it until the next one starts.
    #[inline]
    pub(super) fn end(&mut self, at: u32) {
        self.free.push(at);
    }
}
