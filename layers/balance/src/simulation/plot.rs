//! Reports for people: a table with bars, and a picture.

use std::fmt::{self, Write};

use super::{Policy, Report};

/// So many signs are the longest bar.
const BAR: usize = 24;
const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Reports of one scenario as a table, with p99 as bars whose length grows with its logarithm.
///
/// Where one of them is of the [queue oracle](Policy::Queues), p99 is compared with it.
pub fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    // A `String` takes everything.
    let _ = write_table(&mut text, reports);
    text
}

fn write_table(text: &mut String, reports: &[Report]) -> fmt::Result {
    let Some(first) = reports.first() else {
        return Ok(());
    };
    let gateways = gateways(first);
    writeln!(
        text,
        "{}, {gateways}, load {}, seed {}: {} requests, seconds\n",
        first.workload, first.load, first.seed, first.requests
    )?;
    let oracle = oracle(reports);
    let scale = Scale::of(reports);
    let names = reports.iter().map(|report| report.policy.to_string().len());
    let wide = names.max().unwrap_or(0);
    writeln!(
        text,
        "{:wide$} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "p50", "p90", "p99", "p99.9", "errors", "oracle"
    )?;
    for report in reports {
        let latency = report.latency;
        let ratio = oracle.map_or(String::new(), |oracle| {
            format!("x{}", figure(latency.p99 / oracle))
        });
        writeln!(
            text,
            "{:wide$} {:>8} {:>8} {:>8} {:>8} {:>8} {ratio:>8} {}",
            report.policy.to_string(),
            figure(latency.p50),
            figure(latency.p90),
            figure(latency.p99),
            figure(latency.p999),
            percent(report.errors()),
            bar(scale.part(latency.p99)),
        )?;
    }
    if reports.iter().any(is_troubled) {
        write_troubles(text, reports, wide)?;
    }
    Ok(())
}

fn write_troubles(text: &mut String, reports: &[Report], wide: usize) -> fmt::Result {
    let most = reports
        .iter()
        .flat_map(|report| &report.timeline)
        .map(|moment| moment.to_troubled)
        .fold(0.0, f64::max);
    writeln!(
        text,
        "\n{:wide$} {:>8} {:>8}  share of the endpoint in trouble, at most {}",
        "",
        "found",
        "back",
        percent(most)
    )?;
    let after = |seconds: Option<f64>| seconds.map_or("-".into(), |after| format!("{after:.1} s"));
    for report in reports {
        let shares = report.timeline.iter().map(|moment| moment.to_troubled);
        let line: String = shares
            .map(|share| LEVELS[((share / most * 8.0) as usize).min(7)])
            .collect();
        writeln!(
            text,
            "{:wide$} {:>8} {:>8}  {line}",
            report.policy.to_string(),
            after(report.detected),
            after(report.recovered),
        )?;
    }
    Ok(())
}

fn gateways(report: &Report) -> String {
    match report.gateways {
        1 => "1 gateway".into(),
        many => format!("{many} gateways"),
    }
}

fn is_troubled(report: &Report) -> bool {
    report
        .timeline
        .iter()
        .any(|moment| moment.to_troubled > 0.0)
}

fn oracle(reports: &[Report]) -> Option<f64> {
    let mut reports = reports.iter();
    let oracle = reports.find(|report| report.policy == Policy::Queues)?;
    Some(oracle.latency.p99).filter(|&p99| p99 > 0.0)
}

/// Three digits that count.
fn figure(number: f64) -> String {
    match number {
        number if number >= 99.95 => format!("{number:.0}"),
        number if number >= 9.995 => format!("{number:.1}"),
        number if number >= 0.0995 => format!("{number:.2}"),
        number => format!("{number:.3}"),
    }
}

fn percent(part: f64) -> String {
    format!("{:.2} %", part * 100.0)
}

/// Logarithmic, as what collapses is hundreds of times as slow as what does not.
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    fn of(reports: &[Report]) -> Self {
        let p99 = reports.iter().map(|report| report.latency.p99.max(1e-6));
        let (least, most) = p99.fold((f64::INFINITY, 0.0f64), |(least, most), p99| {
            (least.min(p99), most.max(p99))
        });
        // The shortest is an eighth of the longest, unless nearly all are alike.
        Self {
            least: least / 2.0,
            most: most.max(least * 2.0),
        }
    }

    fn part(&self, p99: f64) -> f64 {
        let part = (p99.max(1e-6) / self.least).ln() / (self.most / self.least).ln();
        part.clamp(0.0, 1.0)
    }
}

fn bar(part: f64) -> String {
    let eighths = ((part * (BAR * 8) as f64) as usize).max(1);
    let mut bar: String = std::iter::repeat_n(EIGHTHS[7], eighths / 8).collect();
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8 - 1]);
    }
    bar
}

/// Reports of one scenario as a picture: p99 as bars, and the mean over the course of the run as lines.
pub fn svg(reports: &[Report]) -> String {
    let mut text = String::new();
    // A `String` takes everything.
    let _ = write_svg(&mut text, reports);
    text
}

const WIDTH: usize = 760;
const ROW: usize = 22;
const LEFT: usize = 190;
const RIGHT: usize = 120;
const COURSE: usize = 220;

fn write_svg(text: &mut String, reports: &[Report]) -> fmt::Result {
    let bars = 40 + ROW * reports.len();
    let height = bars + COURSE + 70;
    writeln!(
        text,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">
<rect width="{WIDTH}" height="{height}" fill="white"/>"#
    )?;
    if let Some(first) = reports.first() {
        let title = escape(&first.workload);
        writeln!(
            text,
            r#"<text x="10" y="22" font-size="15">{title}: p99 in seconds, {}, load {}, seed {}</text>"#,
            gateways(first),
            first.load,
            first.seed
        )?;
        write_bars(text, reports)?;
        write_course(text, reports, bars + 40)?;
    }
    writeln!(text, "</svg>")
}

fn write_bars(text: &mut String, reports: &[Report]) -> fmt::Result {
    let scale = Scale::of(reports);
    for (row, report) in reports.iter().enumerate() {
        let y = 40 + row * ROW;
        let wide = scale.part(report.latency.p99) * (WIDTH - LEFT - RIGHT) as f64;
        let (name, p99) = (report.policy.to_string(), figure(report.latency.p99));
        let errors = match report.errors() {
            0.0 => String::new(),
            errors => format!(", {} errors", percent(errors)),
        };
        writeln!(
            text,
            r#"<text x="{}" y="{}" text-anchor="end">{name}</text><rect x="{LEFT}" y="{}" width="{wide:.1}" height="{}" fill="{}"/><text x="{:.1}" y="{}">{p99}{errors}</text>"#,
            LEFT - 8,
            y + 15,
            y + 3,
            ROW - 6,
            colour(row),
            LEFT as f64 + wide + 6.0,
            y + 15,
        )?;
    }
    Ok(())
}

fn write_course(text: &mut String, reports: &[Report], top: usize) -> fmt::Result {
    let moments = || reports.iter().flat_map(|report| &report.timeline);
    let most = moments().map(|moment| moment.mean).fold(1e-6, f64::max);
    let least = moments()
        .map(|moment| moment.mean)
        .filter(|mean| *mean > 0.0)
        .fold(most, f64::min);
    let last = moments().map(|moment| moment.at).fold(1e-6, f64::max);
    writeln!(
        text,
        r#"<text x="10" y="{}" font-size="15">mean by the time at which requests come: {} to {} s, logarithmic, over {last:.0} s</text>"#,
        top,
        figure(least),
        figure(most),
    )?;
    let range = (most / least).ln().max(1e-6);
    for (row, report) in reports.iter().enumerate() {
        let points: Vec<_> = report
            .timeline
            .iter()
            .map(|moment| {
                let x = 10.0 + moment.at / last * (WIDTH - 20) as f64;
                let high = (moment.mean.max(least) / least).ln() / range;
                let y = top as f64 + 10.0 + (1.0 - high) * COURSE as f64;
                format!("{x:.1},{y:.1}")
            })
            .collect();
        writeln!(
            text,
            r#"<polyline fill="none" stroke="{}" stroke-width="1.5" points="{}"/>"#,
            colour(row),
            points.join(" ")
        )?;
    }
    Ok(())
}

/// Told apart by people who see colours differently, too: Okabe and Ito.
fn colour(row: usize) -> &'static str {
    const COLOURS: [&str; 8] = [
        "#000000", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#b8a800",
    ];
    COLOURS[row % COLOURS.len()]
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Strategy,
        simulation::{Scenario, Workload, run},
    };

    fn reports() -> Vec<Report> {
        let workload = Workload {
            name: "<a & b>".into(),
            ..Workload::named("blackhole-middle").unwrap()
        };
        let scenario = Scenario::of(workload).requests(2_000);
        let policies = [
            Policy::Queues,
            Policy::Ours(Strategy::Adaptive),
            Policy::InFlight,
        ];
        policies
            .map(|policy| run(&scenario, policy).unwrap())
            .into()
    }

    #[test]
    fn a_table_has_a_line_for_each_policy_and_compares_it_with_the_oracle() {
        let reports = reports();
        let text = table(&reports);
        let line = |name: &str| {
            let mut lines = text.lines();
            lines.find(|line| line.starts_with(name)).unwrap()
        };
        assert!(line("oracle ").contains("x1.00"), "{text}");
        assert!(line("p2c_in_flight ").contains(" %"), "{text}");
        assert!(text.contains("share of the endpoint in trouble"), "{text}");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn a_picture_has_a_bar_and_a_line_for_each_policy_and_says_nothing_twice() {
        let text = svg(&reports());
        assert_eq!(text.matches("<polyline").count(), 3);
        assert_eq!(text.matches("<rect").count(), 4);
        assert!(text.contains("&lt;a &amp; b&gt;"));
        assert!(!text.contains("NaN"));
        assert!(svg(&[]).ends_with("</svg>\n"));
    }
}
