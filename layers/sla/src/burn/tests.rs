use proptest::{collection::vec, prelude::*};

use super::*;

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;

fn objective() -> Objective {
    Objective::success(0.999).unwrap()
}

fn one(bad: bool) -> Counts {
    let mut counts = Counts::default();
    counts.availability.count(bad);
    counts
}

/// A service that is asked at a steady pace, and its budgets in a period.
struct Service {
    budgets: ErrorBudgets,
    now: u64,
    pace: u64,
}

impl Service {
    fn new(period: Duration, pace: u64) -> Self {
        Self {
            budgets: ErrorBudgets::new(period),
            now: 0,
            pace,
        }
    }

    fn burn(&mut self) -> Burn {
        self.budgets.report(self.now, &objective())
    }

    /// Whether the fastest alert fires.
    fn pages(&mut self) -> bool {
        self.burn().availability.alerts[0].firing
    }

    fn serve(&mut self, time: u64, bad: bool) {
        let until = self.now + time;
        while self.now < until {
            self.budgets.add(self.now, &one(bad));
            self.now += self.pace;
        }
    }

    /// How long until the fastest alert does or does not fire, in nanoseconds.
    fn serve_until(&mut self, pages: bool, bad: bool) -> u64 {
        let from = self.now;
        while self.pages() != pages {
            self.budgets.add(self.now, &one(bad));
            self.now += self.pace;
            assert!(self.now - from < 2 * HOUR, "nothing happens");
        }
        self.now - from
    }
}

#[test]
fn a_total_outage_after_an_hour_of_steady_traffic_pages_after_52_seconds() {
    let mut service = Service::new(PERIOD, SECOND / 10);
    service.serve(HOUR, false);
    let taken = service.serve_until(true, true) as f64 / 1e9;
    // 14.4 x 0.1 % of an hour; the window is up to a bucket too long, which makes it 0.3 % later.
    assert!((51.84..52.1).contains(&taken), "{taken} s");
    let burn = service.burn();
    assert_eq!(burn.firing(), Some(AlertKind::Page));
    assert_eq!(burn.availability.firing(), Some(AlertKind::Page));
}

#[test]
fn with_all_windows_full_no_page_comes_before_those_52_seconds() {
    let mut service = Service::new(PERIOD, SECOND);
    service.serve(7 * HOUR, false);
    let from = service.now;
    while service.burn().firing() != Some(AlertKind::Page) {
        service.serve(SECOND, true);
    }
    let taken = (service.now - from) / SECOND;
    assert!((52..=62).contains(&taken), "{taken} s");
}

#[test]
fn a_steady_burn_of_1_never_pages_and_ends_at_exactly_the_period() {
    // One in ten is bad of which one in ten may be: each minute, for as long as it can be afforded.
    let objective = Objective::success(0.9).unwrap();
    let mut service = Service::new(PERIOD, 60 * SECOND);
    let day = 24 * HOUR;
    service.serve(30 * day, false);
    let from = service.now;
    let mut served = 0;
    let left = loop {
        service.serve(60 * SECOND, served % 10 == 0);
        served += 1;
        if served % 60 == 0 {
            let burn = service.budgets.report(service.now, &objective);
            assert_ne!(burn.firing(), Some(AlertKind::Page));
            if burn.availability.error_budget_left <= 1e-9 {
                break burn.availability.error_budget_left;
            }
        }
        assert!(service.now - from <= 32 * day, "it lasts for ever");
    };
    assert!(left > -0.01, "{left}");
    // A window is its whole buckets, of an hour, and the running one.
    let taken = (service.now - from) / HOUR;
    assert!((720..=721).contains(&taken), "{taken} h");
}

#[test]
fn errors_that_hover_at_the_burn_rate_do_not_make_an_alert_flap() {
    let mut service = Service::new(PERIOD, SECOND / 2);
    service.serve(HOUR, false);
    service.serve(60 * SECOND, true);
    let (mut random, mut fires, mut begins) = (7_u64, service.pages(), 0);
    for _ in 0..6 * 360 {
        for _ in 0..20 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // 14.4 x 0.1 %.
            service.serve(SECOND / 2, (random >> 33) % 10_000 < 144);
        }
        let before = std::mem::replace(&mut fires, service.pages());
        begins += u32::from(fires && !before);
    }
    // 43 times if it ended as soon as the short window is below.
    assert!((1..=25).contains(&begins), "{begins} times in six hours");
}

#[test]
fn a_period_of_half_an_hour_shows_the_same_1440_times_faster() {
    let mut service = Service::new(Duration::from_secs(1800), SECOND / 14_400);
    service.serve(HOUR / 1440, false);
    let taken = service.serve_until(true, true) as f64 / 1e9 * 1440.0;
    assert!((51.84..52.1).contains(&taken), "{taken} s");
    assert!((service.burn().period_seconds - 1800.0).abs() < 0.001);
}

#[test]
fn an_alert_ends_when_the_short_window_is_clean_though_the_long_one_is_not() {
    let mut service = Service::new(PERIOD, SECOND);
    service.serve(HOUR, false);
    service.serve(120 * SECOND, true);
    assert!(service.pages());
    let taken = service.serve_until(false, false) / SECOND;
    // The short window, of which a page needs some to be bad, and a fifth of it.
    assert!((350..=371).contains(&taken), "{taken} s");
    let alert = service.burn().availability.alerts[0];
    assert!(alert.long.burn_rate > alert.above, "{alert:?}");
    assert!(alert.short.burn_rate < alert.above, "{alert:?}");
    // A handful of errors more is not a reason to fire again.
    service.serve(2 * SECOND, true);
    assert!(!service.pages());
}

#[test]
fn an_alert_goes_on_while_good_requests_dilute_the_long_window_only() {
    let mut service = Service::new(PERIOD, SECOND);
    service.serve(HOUR / 2, false);
    service.serve_until(true, true);
    service.serve(100 * SECOND, false);
    let alert = service.burn().availability.alerts[0];
    assert!(alert.long.burn_rate < alert.above, "{alert:?}");
    assert!(alert.firing);
}

#[test]
fn without_events_there_is_no_alert_and_the_whole_error_budget() {
    let mut service = Service::new(PERIOD, SECOND);
    for _ in 0..100 {
        let burn = service.burn();
        assert_eq!(burn.firing(), None);
        assert_eq!(burn.availability.error_budget_left, 1.0);
        let alerts = burn.availability.alerts.iter();
        assert!(alerts.clone().all(|alert| alert.long.burn_rate == 0.0));
        service.now += HOUR;
    }
}

#[test]
fn an_alert_ends_by_itself_when_nobody_asks_any_more() {
    let mut service = Service::new(PERIOD, SECOND);
    service.serve(200 * SECOND, true);
    assert!(service.pages());
    service.now += 301 * SECOND;
    assert!(service.pages(), "held");
    service.now += 70 * SECOND;
    assert!(!service.pages());
    service.now += 73 * HOUR;
    assert_eq!(service.burn().firing(), None);
    assert!(service.burn().availability.error_budget_left < 0.0);
    service.now += 31 * 24 * HOUR;
    assert_eq!(service.burn().availability.error_budget_left, 1.0);
}

#[test]
fn a_cold_service_pages_neither_before_a_minute_nor_before_50_requests() {
    let mut quick = Service::new(PERIOD, SECOND / 10);
    quick.now = 1234 * SECOND;
    assert_eq!(quick.serve_until(true, true), 60 * SECOND);
    let mut slow = Service::new(PERIOD, 2 * SECOND);
    assert_eq!(slow.serve_until(true, true), 100 * SECOND);
}

#[test]
fn a_slow_burn_is_a_ticket() {
    let mut service = Service::new(PERIOD, SECOND);
    // Four in a thousand: four times what may be.
    for second in 0..7 * 3600 {
        service.serve(SECOND, second % 250 == 0);
    }
    let burn = service.burn();
    assert_eq!(burn.firing(), Some(AlertKind::Ticket));
    let firing = burn.availability.alerts.map(|alert| alert.firing);
    assert_eq!(firing, [false, false, true, true]);
}

#[test]
fn the_error_budget_is_one_bad_request_in_a_thousand() {
    let mut service = Service::new(PERIOD, SECOND);
    service.serve(998 * SECOND, false);
    for left in [0.0, -0.998] {
        service.serve(SECOND, true);
        let found = service.burn().availability.error_budget_left;
        assert!((found - left).abs() < 0.01, "{found} {left}");
    }
}

#[test]
fn each_objective_spends_its_own_error_budget() {
    let objective = objective().within(Duration::from_secs(2), 0.9).unwrap();
    let mut budgets = ErrorBudgets::new(PERIOD);
    for at in 0..100 {
        let mut counts = one(false);
        counts.latency.count(at % 2 == 0);
        budgets.add(at * SECOND, &counts);
    }
    let burn = budgets.report(100 * SECOND, &objective);
    assert_eq!(burn.availability.error_budget_left, 1.0);
    let latency = burn.latency.unwrap();
    assert_eq!((latency.target, latency.limit_seconds), (0.9, Some(2.0)));
    assert!((latency.error_budget_left + 4.0).abs() < 1e-9);
    assert!((latency.alerts[0].long.burn_rate - 5.0).abs() < 1e-9);
    let names: Vec<_> = burn.error_budgets().map(|(name, _)| name).collect();
    assert_eq!(names, ["availability", "latency"]);
    // 5 is above 3 and 1, and neither 14.4 nor 6.
    assert_eq!(burn.firing(), Some(AlertKind::Ticket));
}

proptest! {
    #[test]
    fn windows_equal_a_recount_with_the_same_edges(
        events in vec((0..2 * HOUR, any::<bool>()), 1..100),
    ) {
        let mut budgets = ErrorBudgets::new(PERIOD);
        let (mut now, mut list) = (0, Vec::new());
        for (passed, bad) in events {
            now += passed;
            budgets.add(now, &one(bad));
            list.push((now, bad));
        }
        for rule in &RULES {
            let width = match rule.short.scale {
                Scale::Fine => 10,
                Scale::Middle => 300,
            } * SECOND;
            let mut ends = (0..=rule.short.buckets / HOLD).filter_map(|ago| (now / width).checked_sub(ago));
            let is_over = ends.all(|end| {
                let from = end.saturating_sub(rule.short.buckets) * width;
                let within = list.iter().filter(|(at, _)| *at >= from && *at < (end + 1) * width);
                let (all, bad) = within.fold((0, 0), |(all, bad), (_, is_bad)| (all + 1, bad + u32::from(*is_bad)));
                f64::from(bad) / f64::from(all.max(1)) / 0.001 < BELOW * rule.above
            });
            prop_assert_eq!(budgets.is_over(now, rule, 0.001, |counts| &counts.availability), is_over);
        }
        let burn = budgets.report(now, &objective());
        for alert in burn.availability.alerts {
            for rate in [alert.long, alert.short] {
                let window = rate.window_seconds as u64 * SECOND;
                let width = if window < 6 * HOUR { 10 } else { 300 } * SECOND;
                let oldest = (now / width * width).saturating_sub(window);
                let within = list.iter().filter(|(at, _)| *at >= oldest);
                prop_assert_eq!(rate.events, within.clone().count() as u64);
                prop_assert_eq!(rate.bad_events, within.filter(|(_, bad)| *bad).count() as u64);
            }
        }
    }
}
