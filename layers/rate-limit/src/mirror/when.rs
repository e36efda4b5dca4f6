//! The ways in which services write when a quota resets.

use std::time::{Duration, SystemTime};

/// From here on a number of seconds is a date: 2001, which is 31 years as a delay.
const EPOCH_SECONDS: u128 = 1_000_000_000;

/// From here on a date is in milliseconds: 2001, which is the year 33 658 in seconds.
const EPOCH_MILLIS: u128 = 1_000_000_000_000;

const NANOS: u128 = 1_000_000_000;

/// How long until a reset: seconds, seconds or milliseconds since 1970, a duration of Go, or a date of RFC 3339 or of
/// HTTP. Dates are read against `present`; one that is past is no delay at all.
pub(super) fn delay(text: &str, present: impl FnOnce() -> SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Some((whole, nanos)) = decimal(text) {
        return match whole {
            EPOCH_MILLIS.. => until(Duration::from_millis(u64::try_from(whole).ok()?), present()),
            EPOCH_SECONDS.. => {
                let seconds = Duration::from_secs(u64::try_from(whole).ok()?);
                until(seconds + Duration::from_nanos(nanos), present())
            }
            _ => Some(Duration::new(whole as u64, nanos as u32)),
        };
    }
    if let Some(delay) = go_duration(text) {
        return Some(delay);
    }
    if let Some(date) = rfc3339(text) {
        return until(date, present());
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(present()).unwrap_or_default())
}

fn until(since_1970: Duration, present: SystemTime) -> Option<Duration> {
    let date = SystemTime::UNIX_EPOCH.checked_add(since_1970)?;
    Some(date.duration_since(present).unwrap_or_default())
}

/// Digits, with or without a fraction, as a number and its billionths.
fn decimal(text: &str) -> Option<(u128, u64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if whole.len() > 18 || !digits(whole) || !digits(fraction) {
        return None;
    }
    Some((whole.parse().ok()?, billionths(fraction)))
}

/// `1m2.5s`, `6ms`: numbers with a unit each, as Go's `time.Duration` is written. Zero needs no unit.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|char: char| !char.is_ascii_digit() && char != '.')?;
        let (number, unit_on) = rest.split_at(end);
        let (whole, fraction) = decimal(number)?;
        let end = unit_on.find(|char: char| char.is_ascii_digit());
        let (unit, next) = unit_on.split_at(end.unwrap_or(unit_on.len()));
        let scale = match unit {
            "h" => 3600 * NANOS,
            "m" => 60 * NANOS,
            "s" => NANOS,
            "ms" => 1_000_000,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1000,
            "ns" => 1,
            _ => return None,
        };
        nanos = nanos
            .checked_add(whole.checked_mul(scale)?)?
            .checked_add(u128::from(fraction) * scale / NANOS)?;
        rest = next;
    }
    let seconds = u64::try_from(nanos / NANOS).ok()?;
    (!text.is_empty()).then(|| Duration::new(seconds, (nanos % NANOS) as u32))
}

/// `2026-11-22T06:35:00.5+01:00`, since 1970; of dates before, nothing.
fn rfc3339(text: &str) -> Option<Duration> {
    let (date, time) = text.split_at_checked(10)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let time = time.strip_prefix(['T', 't', ' '])?;
    let (clock, rest) = time.split_at_checked(8)?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|char: char| !char.is_ascii_digit())?),
        None => ("0", rest),
    };
    let east = match zone {
        "Z" | "z" => 0,
        _ => {
            let [hours, minutes] = numbers(zone.get(1..)?, ':', [2, 2])?;
            let minutes = (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)?;
            match zone.as_bytes()[0] {
                b'+' => minutes * 60,
                b'-' => -minutes * 60,
                _ => return None,
            }
        }
    };
    // A leap second is the one after it.
    if hour > 23 || minute > 59 || second > 60 || !digits(fraction) {
        return None;
    }
    let seconds = days(year, month, day)? * 86_400 + hour * 3600 + minute * 60 + second - east;
    let seconds = u64::try_from(seconds).ok()?;
    Some(Duration::new(seconds, billionths(fraction) as u32))
}

/// Days since 1970 of a day of the Gregorian calendar: years begin in March, so that a leap day is their last.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=longest).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * month + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

fn numbers<const N: usize>(text: &str, between: char, lengths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(between);
    let mut numbers = [0; N];
    for (number, length) in numbers.iter_mut().zip(lengths) {
        let part = parts.next()?;
        if part.len() != length || !digits(part) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// What comes after the point, in billionths; more digits than nine say nothing more.
fn billionths(fraction: &str) -> u64 {
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    digits.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'))
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn read(text: &str) -> Option<Duration> {
        delay(text, || SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[test]
    fn each_way_to_say_when_is_read() {
        for (text, millis) in [
            ("0", 0),
            ("60", 60_000),
            (" 1.5 ", 1500),
            ("999999999", 999_999_999_000),
            ("1700000010", 10_000),
            ("1700000010.250", 10_250),
            ("1700000010250", 10_250),
            ("1699999999", 0),
            ("1m2.5s", 62_500),
            ("6ms", 6),
            ("6m0s", 360_000),
            ("1h1ns", 3_600_000),
            ("8.64s", 8640),
            ("2000us", 2),
            ("2000\u{b5}s", 2),
            ("2023-11-14T22:13:30Z", 10_000),
            ("2023-11-14t22:13:30.5z", 10_500),
            ("2023-11-14 23:13:30+01:00", 10_000),
            ("2023-11-14T17:43:30-04:30", 10_000),
            ("2023-11-14T22:13:19Z", 0),
            ("Tue, 14 Nov 2023 22:13:30 GMT", 10_000),
            ("Tue, 14 Nov 2023 22:13:10 GMT", 0),
        ] {
            let said = read(text).map(|delay| delay.as_millis());
            assert_eq!(said, Some(millis), "{text}");
        }
    }

    #[test]
    fn what_says_no_time_is_no_delay() {
        for text in [
            "",
            "-1",
            "soon",
            "1.",
            ".5",
            "1,5",
            "1e3",
            "s",
            "5 s",
            "-5s",
            "1.2.3s",
            "1d",
            "99999999999999999999",
            "999999999999999999h",
            "2023-11-14",
            "2023-11-14T22:13Z",
            "2023-11-14T22:13:30",
            "2023-02-29T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "2023-11-31T00:00:00Z",
            "2023-11-14T24:00:00Z",
            "2023-11-14T22:13:30+24:00",
            "2023-11-14T22:13:30.Z",
            "1969-12-31T23:59:59Z",
            "2023-11-14T22:13:30\u{e9}1:00",
            "+023-11-14T22:13:30Z",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        // Day by day through two leap centuries, which the formula must not know of.
        let mut counted = 0;
        for year in 1970..2410 {
            for month in 1..=12 {
                for day in 1..=31 {
                    if let Some(days) = days(year, month, day) {
                        assert_eq!(days, counted, "{year}-{month}-{day}");
                        counted += 1;
                    }
                }
            }
        }
        assert_eq!(counted, 440 * 365 + 107);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", near in "[0-9TZ:.+-]{0,30}", go in "[0-9.hmsnuµ]{0,20}") {
            for text in [text, near, go] {
                let _ = read(&text);
            }
        }

        #[test]
        fn a_date_of_http_and_one_of_rfc_3339_mean_the_same(seconds in 0..4_000_000_000_u64) {
            let date = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW + seconds);
            let http = httpdate::HttpDate::from(date).to_string();
            let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
            let month = 1 + months.iter().position(|month| *month == &http[8..11]).unwrap();
            let rfc = format!("{}-{month:02}-{}T{}Z", &http[12..16], &http[5..7], &http[17..25]);
            prop_assert_eq!(read(&http), Some(Duration::from_secs(seconds)));
            prop_assert_eq!(read(&rfc), read(&http), "{}", rfc);
        }
    }
}
