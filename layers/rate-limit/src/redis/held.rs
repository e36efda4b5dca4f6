//! Places in flight that this process holds, for the upkeep to renew.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Sent at once.
const CHUNK: usize = 500;

#[derive(Debug, Default)]
pub(super) struct Held(Mutex<HashMap<Vec<u8>, HashMap<u64, u64>>>);

impl Held {
    pub(super) fn insert(&self, key: Vec<u8>, ticket: u64, places: u64) {
        self.lock().entry(key).or_default().insert(ticket, places);
    }

    pub(super) fn remove(&self, key: &[u8], ticket: u64) {
        let mut held = self.lock();
        if let Some(tickets) = held.get_mut(key) {
            tickets.remove(&ticket);
            if tickets.is_empty() {
                held.remove(key);
            }
        }
    }

    pub(super) fn forget(&self, key: &[u8]) {
        self.lock().remove(key);
    }

    /// Keys, each with some of its tickets as a script reads them.
    pub(super) fn all(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        for (key, tickets) in &*self.lock() {
            let tickets: Vec<_> = tickets.iter().collect();
            for chunk in tickets.chunks(CHUNK) {
                let mut places = Vec::with_capacity(chunk.len() * 16);
                for (ticket, count) in chunk {
                    places.extend(ticket.to_be_bytes());
                    places.extend((**count as f64).to_le_bytes());
                }
                all.push((key.clone(), places));
            }
        }
        all
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, HashMap<u64, u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
