//! What became of each request of a run.

use super::{jobs::Job, world::World};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Pending,
    Answered,
    Failed,
    /// Its caller did not wait any longer.
    GivenUp,
    /// No endpoint could be picked.
    Unplaced,
}

/// One request. Times are nanoseconds since it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) arrives: u64,
    /// Where it went; `u32::MAX` for nowhere.
    pub(super) endpoint: u32,
    pub(super) fate: Fate,
    pub(super) first: u64,
    pub(super) end: u64,
}

#[derive(Debug)]
pub(super) struct Record {
    pub(super) entries: Vec<Entry>,
    pub(super) endpoints: usize,
    /// How long the run takes, in nanoseconds.
    pub(super) whole: f64,
    pub(super) probes: u64,
}

impl Record {
    pub(super) fn new(world: &World) -> Self {
        let entry = |job: &Job| Entry {
            arrives: job.arrives,
            endpoint: u32::MAX,
            fate: Fate::Pending,
            first: 0,
            end: 0,
        };
        Self {
            entries: world.jobs.iter().map(entry).collect(),
            endpoints: world.servers.len(),
            whole: world.whole,
            probes: 0,
        }
    }

    pub(super) fn sent(&mut self, number: u32, endpoint: usize) {
        self.entries[number as usize].endpoint = endpoint as u32;
    }

    pub(super) fn note(&mut self, number: u32, job: &Job, first: u64, end: u64, fate: Fate) {
        let entry = &mut self.entries[number as usize];
        debug_assert_eq!(entry.fate, Fate::Pending, "a request is over once");
        entry.fate = fate;
        entry.first = first.min(end) - job.arrives;
        entry.end = end - job.arrives;
    }
}
