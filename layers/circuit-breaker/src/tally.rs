//! What a closed circuit remembers.

use palisade_core::ratio::Ratio;

/// With fewer calls than this a window says nothing: one failure of one call is no rate.
const MINIMUM_CALLS: u32 = 10;

/// The largest window: 128 KiB, whatever number came out of a configuration file.
const MOST_CALLS: u32 = 1 << 20;

/// Counts outcomes until they are too bad. Counting is O(1), also over a window.
#[derive(Debug)]
pub(crate) enum Tally {
    /// Failures in a row.
    Row { limit: u32, failures: u32 },
    /// The share of failures among the last calls.
    Window {
        limit: Ratio,
        minimum: u32,
        calls: Window,
    },
}

impl Tally {
    pub(crate) fn row(limit: u32) -> Self {
        Self::Row {
            limit: limit.max(1),
            failures: 0,
        }
    }

    pub(crate) fn window(limit: Ratio, calls: u32) -> Self {
        let calls = Window::new(calls.clamp(1, MOST_CALLS));
        Self::Window {
            limit,
            minimum: MINIMUM_CALLS.min(calls.size),
            calls,
        }
    }

    /// A window says nothing before it has seen this many; a row needs no such thing.
    pub(crate) fn set_minimum(&mut self, minimum_calls: u32) {
        if let Self::Window { minimum, calls, .. } = self {
            *minimum = minimum_calls.clamp(1, calls.size);
        }
    }

    pub(crate) fn success(&mut self) {
        match self {
            Self::Row { failures, .. } => *failures = 0,
            Self::Window { calls, .. } => calls.push(false),
        }
    }

    pub(crate) fn failure(&mut self) {
        match self {
            Self::Row { failures, .. } => *failures = failures.saturating_add(1),
            Self::Window { calls, .. } => calls.push(true),
        }
    }

    /// A service that answers that it is busy is alive, so it is not on its way to be dead.
    pub(crate) fn overload(&mut self) {
        match self {
            Self::Row { .. } => {}
            Self::Window { calls, .. } => calls.push(true),
        }
    }

    pub(crate) fn is_too_bad(&self) -> bool {
        match self {
            Self::Row { limit, failures } => failures >= limit,
            Self::Window {
                limit,
                minimum,
                calls,
            } => calls.count >= *minimum && limit.reached(calls.failures, calls.count),
        }
    }

    /// Whether another success would change nothing.
    pub(crate) fn ignores_success(&self) -> bool {
        matches!(self, Self::Row { failures: 0, .. })
    }

    pub(crate) fn clear(&mut self) {
        match self {
            Self::Row { failures, .. } => *failures = 0,
            Self::Window { calls, .. } => calls.clear(),
        }
    }

    pub(crate) fn failures(&self) -> u32 {
        match self {
            Self::Row { failures, .. } => *failures,
            Self::Window { calls, .. } => calls.failures,
        }
    }

    /// The calls that the failures were counted among.
    pub(crate) fn calls(&self) -> u32 {
        match self {
            Self::Row { failures, .. } => *failures,
            Self::Window { calls, .. } => calls.count,
        }
    }
}

/// The last calls, one bit each, oldest overwritten first.
#[derive(Debug)]
pub(crate) struct Window {
    failed: Box<[u64]>,
    size: u32,
    next: u32,
    count: u32,
    failures: u32,
}

impl Window {
    fn new(size: u32) -> Self {
        Self {
            failed: vec![0; size.div_ceil(u64::BITS) as usize].into(),
            size,
            next: 0,
            count: 0,
            failures: 0,
        }
    }

    /// What was pushed is left where it is: nothing older than `count` calls is read.
    fn clear(&mut self) {
        self.count = 0;
        self.failures = 0;
    }

    fn push(&mut self, failed: bool) {
        let (word, bit) = (self.next / u64::BITS, 1 << (self.next % u64::BITS));
        let word = &mut self.failed[word as usize];
        if self.count == self.size {
            self.failures -= u32::from(*word & bit != 0);
        } else {
            self.count += 1;
        }
        self.failures += u32::from(failed);
        *word = if failed { *word | bit } else { *word & !bit };
        self.next = (self.next + 1) % self.size;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn after_100_successes_a_window_of_100_at_half_is_too_bad_on_the_50th_failure() {
        let mut tally = Tally::window(Ratio::HALF, 100);
        (0..100).for_each(|_| tally.success());
        (0..49).for_each(|_| tally.failure());
        assert!(!tally.is_too_bad());
        tally.failure();
        assert!(tally.is_too_bad());
    }

    #[test]
    fn an_empty_window_says_nothing_before_the_tenth_call() {
        let mut tally = Tally::window(Ratio::HALF, 100);
        (0..9).for_each(|_| tally.failure());
        assert!(!tally.is_too_bad());
        tally.success();
        assert!(tally.is_too_bad());
    }

    #[test]
    fn the_minimum_of_calls_is_never_more_than_the_window_holds() {
        let mut small = Tally::window(Ratio::HALF, 3);
        small.set_minimum(100);
        (0..2).for_each(|_| small.failure());
        assert!(!small.is_too_bad());
        small.failure();
        assert!(small.is_too_bad());

        small.clear();
        small.set_minimum(0);
        assert!(!small.is_too_bad(), "nothing was counted");
        small.failure();
        assert!(small.is_too_bad());
    }

    #[test]
    fn numbers_out_of_reason_are_brought_into_it() {
        let mut row = Tally::row(0);
        row.success();
        assert!(!row.is_too_bad(), "a success opens nothing");
        for calls in [0, u32::MAX] {
            let mut tally = Tally::window(Ratio::HALF, calls);
            (0..20).for_each(|_| tally.failure());
            assert!(tally.is_too_bad());
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Success,
        Failure,
        Overload,
        Clear,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            60 => Just(Event::Success),
            60 => Just(Event::Failure),
            20 => Just(Event::Overload),
            1 => Just(Event::Clear),
        ];
        prop::collection::vec(event, 0..600)
    }

    fn tell(tally: &mut Tally, event: Event) {
        match event {
            Event::Success => tally.success(),
            Event::Failure => tally.failure(),
            Event::Overload => tally.overload(),
            Event::Clear => tally.clear(),
        }
    }

    proptest! {
        #[test]
        fn a_window_equals_a_list_of_its_last_calls(
            size in 1_u32..200,
            minimum in 0_u32..200,
            share in 0.01_f64..=1.0,
            events in events(),
        ) {
            let mut tally = Tally::window(Ratio::new(share).unwrap(), size);
            tally.set_minimum(minimum);
            let mut list = Vec::new();
            for event in events {
                tell(&mut tally, event);
                match event {
                    Event::Clear => list.clear(),
                    Event::Success => list.push(false),
                    Event::Failure | Event::Overload => list.push(true),
                }
                let last = &list[list.len().saturating_sub(size as usize)..];
                let failures = last.iter().filter(|&&failed| failed).count();
                prop_assert_eq!(tally.failures() as usize, failures);
                prop_assert_eq!(tally.calls() as usize, last.len());
                let enough = last.len() >= minimum.clamp(1, size) as usize;
                let too_bad = enough && failures as f64 / last.len() as f64 >= share;
                prop_assert_eq!(tally.is_too_bad(), too_bad);
            }
        }

        #[test]
        fn a_row_equals_the_failures_since_the_last_success(limit in 1_u32..20, events in events()) {
            let mut tally = Tally::row(limit);
            let mut list = Vec::new();
            for event in events {
                tell(&mut tally, event);
                list.push(event);
                let since = list.iter().rev().take_while(|event| {
                    !matches!(event, Event::Success | Event::Clear)
                });
                let failures = since.filter(|event| matches!(event, Event::Failure)).count();
                prop_assert_eq!(tally.failures() as usize, failures);
                prop_assert_eq!(tally.is_too_bad(), failures >= limit as usize);
                prop_assert_eq!(tally.ignores_success(), failures == 0);
            }
        }
    }
}
