//! What is kept of the requests that have ended.

use std::time::Duration;

use crate::{
    burn::{Burn, Counts, ErrorBudgets, PERIOD},
    class::{Tally, Verdicts},
    histogram::Whole,
    indicators::{Event, Indicators},
    objective::Objective,
    ring::Ring,
    state::nanos,
    summary::{Gathered, Spans},
    trend::Totals,
};

/// The longest window of a summary, unless told otherwise.
const WINDOW: Duration = Duration::from_secs(300);
/// Beyond this a summary is not recent, and its buckets take more than 2.5 MB.
const LONGEST_WINDOW: Duration = Duration::from_secs(3600);
/// The buckets of a window, so that it is 3 % too long at most.
const BUCKETS: u32 = 30;
/// No bucket is longer than this.
const LONGEST_BUCKET: Duration = Duration::from_secs(10);

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The longest window of a summary.
    pub(crate) window: Duration,
    /// What error budgets are for.
    pub(crate) period: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            window: WINDOW,
            period: PERIOD,
        }
    }
}

/// Everything that was counted, in buckets of time. Its memory never grows.
#[derive(Debug)]
pub(crate) struct Kept {
    shape: Shape,
    since: u64,
    recent: Ring<Indicators<Whole>>,
    /// For twice as long, so that a window has one before it.
    totals: Ring<Totals>,
    budgets: ErrorBudgets,
    all: Tally,
}

impl Kept {
    pub(crate) fn new(mut shape: Shape, now: u64) -> Self {
        shape.window = shape.window.min(LONGEST_WINDOW);
        let width = nanos((shape.window / BUCKETS).min(LONGEST_BUCKET)).max(1);
        let buckets = nanos(shape.window).div_ceil(width);
        Self {
            shape,
            since: now,
            recent: Ring::new(width, buckets),
            totals: Ring::new(width, 2 * buckets),
            budgets: ErrorBudgets::new(shape.period),
            all: Tally::default(),
        }
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// All requests that have ended.
    pub(crate) fn verdicts(&self) -> Verdicts {
        self.all.verdicts()
    }

    /// Decides which alerts fire, and says why.
    pub(crate) fn burn(&mut self, now: u64, objective: &Objective) -> Burn {
        self.budgets.report(now, objective)
    }

    /// How long a bucket of error budgets is: an alert can begin or end once in it.
    pub(crate) fn tick(&self) -> Duration {
        Duration::from_nanos(self.budgets.fine().width())
    }

    /// The buckets of a window up to the longest.
    pub(crate) fn gather(&self, now: u64, window: Duration) -> Gathered {
        let width = self.recent.width();
        let window = nanos(window.min(self.shape.window)).max(width);
        let buckets = window.div_ceil(width);
        let running = now - self.recent.start(now);
        // Right after the start this is the window: a few seconds are not a rate.
        let covered = (buckets * width + running).min(now.saturating_sub(self.since));
        let whole = buckets * width;
        let start = (now - running).checked_sub(2 * whole);
        let is_known = start.is_some_and(|start| start >= self.since);
        let before = is_known.then(|| {
            let mut sum = Totals::default();
            for totals in self.totals.before(now, buckets) {
                sum.add(totals);
            }
            (sum, seconds(whole))
        });
        let spans = Spans {
            window: seconds(window),
            covered: seconds(covered.max(window)),
        };
        Gathered::new(self.recent.window(now, buckets), before, spans)
    }

    fn add(&mut self, at: u64, indicators: &Indicators<Whole>, counted: &Counted) {
        self.all.add(&indicators.tally);
        if let Some(bucket) = self.totals.at(at) {
            bucket.add(&Totals::of(indicators));
        }
        if let Some(bucket) = self.recent.at(at) {
            bucket.add(indicators);
        }
        if let Some(first) = counted.first {
            self.budgets.add(first, &counted.counts);
        }
    }

    fn event(&mut self, at: u64, event: &Event, objective: &Objective) {
        let (mut indicators, mut counted) = (Indicators::default(), Counted::default());
        indicators.count(event);
        counted.count(at, event, objective);
        self.add(at, &indicators, &counted);
    }
}

/// What one thread, or a few, have counted of the running bucket.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) objective: Objective,
    /// Inside of one bucket of every ring.
    from: u64,
    until: u64,
    empty: bool,
    indicators: Indicators<Whole>,
    counted: Counted,
}

impl Running {
    pub(crate) fn new(objective: Objective) -> Self {
        Self {
            objective,
            from: 0,
            until: 0,
            empty: true,
            indicators: Indicators::default(),
            counted: Counted::default(),
        }
    }

    /// Counts it, unless this is not its bucket.
    #[inline]
    pub(crate) fn count(&mut self, at: u64, event: &Event) -> bool {
        let here = self.from <= at && at < self.until;
        if here {
            self.add(at, event);
        }
        here
    }

    /// Counts what is not of this bucket, which ends when it is of a later one.
    #[cold]
    pub(crate) fn turn(&mut self, at: u64, event: &Event, kept: &mut Kept) {
        if at < self.from {
            // Late: its thread was held up between the clock and here.
            return kept.event(at, event, &self.objective);
        }
        self.drain(kept);
        let (recent, fine) = (&kept.recent, kept.budgets.fine());
        let (recent_from, fine_from) = (recent.start(at), fine.start(at));
        self.from = recent_from.max(fine_from);
        self.until = (recent_from.saturating_add(recent.width()))
            .min(fine_from.saturating_add(fine.width()));
        self.add(at, event);
    }

    /// Hands over what was counted.
    pub(crate) fn drain(&mut self, kept: &mut Kept) {
        if self.empty {
            return;
        }
        kept.add(self.from, &self.indicators, &self.counted);
        *self = Self {
            from: self.from,
            until: self.until,
            ..Self::new(self.objective)
        };
    }

    /// Starts again from nothing, in no bucket yet.
    pub(crate) fn forget(&mut self) {
        *self = Self::new(self.objective);
    }

    #[inline]
    fn add(&mut self, at: u64, event: &Event) {
        self.empty = false;
        self.indicators.count(event);
        self.counted.count(at, event, &self.objective);
    }
}

/// What the objectives make of the requests of one fine bucket.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    first: Option<u64>,
    counts: Counts,
}

impl Counted {
    fn count(&mut self, at: u64, event: &Event, objective: &Objective) {
        let Event::End(ended) = event else { return };
        let counts = ended.counts(objective);
        if counts.is_empty() {
            return;
        }
        self.first = Some(self.first.map_or(at, |first| first.min(at)));
        self.counts.add(&counts);
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{class::Class, indicators::Ended};

    const SECOND: u64 = 1_000_000_000;

    fn end(class: Class) -> Event {
        Event::End(Ended {
            class,
            usage: None,
            first_data: None,
            total: 5_000_000,
            gaps: None,
        })
    }

    fn objective() -> Objective {
        Objective::success(0.9).unwrap()
    }

    #[derive(Clone, Debug)]
    struct Step {
        passed: u64,
        late: u64,
        stripe: usize,
        class: Class,
        read: bool,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let class = prop::sample::select(Class::ALL.to_vec());
        let passed = prop_oneof![0..SECOND, 0..30 * SECOND];
        let step = (passed, 0..20 * SECOND, 0..3_usize, class, any::<bool>());
        let step = step.prop_map(|(passed, late, stripe, class, read)| Step {
            passed,
            late,
            stripe,
            class,
            read,
        });
        vec(step, 1..150)
    }

    proptest! {
        #[test]
        fn counts_equal_a_recount_with_the_same_edges(
            steps in steps(),
            span in prop_oneof![Just(300_u64), Just(40), 1_u64..4000],
            period in prop_oneof![Just(2_592_000_u64), 300_u64..5_000_000],
        ) {
            let shape = Shape {
                window: Duration::from_secs(span),
                period: Duration::from_secs(period),
            };
            let mut kept = Kept::new(shape, 0);
            let mut stripes = [(); 3].map(|()| Running::new(objective()));
            let mut list = Vec::new();
            let recount = |list: &[(u64, Class)], oldest| {
                let mut tally = Tally::default();
                let within = list.iter().filter(|(at, _)| *at >= oldest);
                within.for_each(|(_, class)| tally.count(*class));
                tally.verdicts()
            };
            let mut now = 0;
            let span = span.min(3600) * SECOND;
            let width = (span / 30).min(10 * SECOND);
            let fine = period * SECOND / (30 * 24 * 360);
            for step in steps {
                now += step.passed;
                let at = now.saturating_sub(step.late.min(span));
                let stripe = &mut stripes[step.stripe];
                if !stripe.count(at, &end(step.class)) {
                    stripe.turn(at, &end(step.class), &mut kept);
                }
                list.push((at, step.class));
                if !step.read {
                    continue;
                }
                stripes.iter_mut().for_each(|stripe| stripe.drain(&mut kept));
                for window in [span, span / 2, span / 30] {
                    let buckets = window.div_ceil(width);
                    let oldest = (now / width).saturating_sub(buckets) * width;
                    let gathered = kept.gather(now, Duration::from_nanos(window));
                    prop_assert_eq!(gathered.verdicts(), recount(&list, oldest));
                    let Spans { window: asked, covered } = gathered.spans;
                    prop_assert!(covered >= asked);
                    prop_assert!(covered <= seconds(window + 2 * width));
                    let earlier = (now / width).saturating_sub(2 * buckets) * width;
                    let (all, now) = (recount(&list, earlier), recount(&list, oldest));
                    if let Some((before, _)) = gathered.before {
                        let expected = (all.good() - now.good(), all.bad() - now.bad());
                        prop_assert_eq!((before.good, before.bad), expected);
                    }
                }
                for alert in kept.burn(now, &objective()).availability.alerts {
                    for rate in [alert.long, alert.short] {
                        let (width, buckets) = match rate.window {
                            "5m" => (fine, 30),
                            "30m" => (fine, 180),
                            "1h" => (fine, 360),
                            "2h" => (fine, 720),
                            "6h" => (30 * fine, 72),
                            "1d" => (30 * fine, 288),
                            _ => (30 * fine, 864),
                        };
                        let oldest = (now / width).saturating_sub(buckets) * width;
                        let expected = recount(&list, oldest);
                        prop_assert_eq!(rate.events, expected.good() + expected.bad());
                        prop_assert_eq!(rate.bad_events, expected.bad());
                    }
                }
            }
            stripes.iter_mut().for_each(|stripe| stripe.drain(&mut kept));
            prop_assert_eq!(kept.verdicts(), recount(&list, 0));
        }
    }

    #[test]
    fn rates_are_per_window_at_first_and_then_per_time_that_is_covered() {
        let kept = Kept::new(Shape::default(), 0);
        let spans = |now: u64, window| {
            let spans = kept.gather(now * SECOND, Duration::from_secs(window)).spans;
            (spans.window, spans.covered)
        };
        assert_eq!(spans(3, 300), (300.0, 300.0));
        assert_eq!(spans(305, 300), (300.0, 305.0));
        assert_eq!(spans(1007, 300), (300.0, 307.0));
        assert_eq!(spans(1007, 10), (10.0, 17.0));
        assert_eq!(spans(1007, 900), (300.0, 307.0), "no more than is kept");
        assert_eq!(spans(1007, 0), (10.0, 17.0), "no less than a bucket");
        let reset = Kept::new(Shape::default(), 1000 * SECOND);
        let spans = reset.gather(1007 * SECOND, Duration::from_secs(10)).spans;
        let spans = (spans.window, spans.covered);
        assert_eq!(spans, (10.0, 10.0), "what was forgotten is not covered");
    }

    #[test]
    fn a_bucket_takes_10_kib() {
        assert!(size_of::<Indicators<Whole>>() <= 10_600);
    }

    #[test]
    fn what_came_before_is_known_once_there_was_such_a_window() {
        let kept = Kept::new(Shape::default(), 0);
        let known = |now: u64, window| {
            let gathered = kept.gather(now * SECOND, Duration::from_secs(window));
            gathered.before.is_some()
        };
        assert!(!known(19, 10) && known(20, 10));
        assert!(!known(599, 300) && known(600, 300));
    }

    #[test]
    fn any_shape_is_possible() {
        for window in [Duration::ZERO, Duration::from_nanos(7), Duration::MAX] {
            for period in [Duration::ZERO, Duration::from_nanos(7), Duration::MAX] {
                let mut kept = Kept::new(Shape { window, period }, 0);
                let mut running = Running::new(objective());
                running.turn(SECOND, &end(Class::Success), &mut kept);
                running.drain(&mut kept);
                assert_eq!(kept.gather(SECOND, window).verdicts().success, 1);
                assert_eq!(kept.burn(SECOND, &objective()).availability.events, 1);
            }
        }
    }
}
