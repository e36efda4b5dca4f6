//! Dates as answers show them.

use std::time::{Duration, SystemTime};

use palisade::time::wall_clock;

/// The present after RFC 3339, in UTC, to the millisecond.
pub(crate) fn timestamp() -> String {
    rfc3339(wall_clock())
}

pub(crate) fn rfc3339(date: SystemTime) -> String {
    let since = date.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Milliseconds since 1970, as JavaScript has them.
pub(crate) fn unix_ms(date: SystemTime) -> u64 {
    let since = date.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// The date so many days after 1970-01-01, by Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Years that begin in March, so that the leap day is the last.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// Reads a date after RFC 3339, of any zone.
pub(crate) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.split_at_checked(10)?;
    let (time, rest) = rest.strip_prefix(['T', 't', ' '])?.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let end = rest.find(|char: char| !char.is_ascii_digit())?;
            (
                rest.get(..end).filter(|digits| !digits.is_empty())?,
                &rest[end..],
            )
        }
        None => ("0", rest),
    };
    let offset = match zone {
        "Z" | "z" => 0,
        zone => {
            let (sign, zone) = zone.split_at_checked(1)?;
            let [hours, minutes] = numbers(zone, ':', [2, 2])?;
            let offset = i64::try_from(hours * 3600 + minutes * 60).ok()?;
            match sign {
                "+" if hours < 24 && minutes < 60 => offset,
                "-" if hours < 24 && minutes < 60 => -offset,
                _ => return None,
            }
        }
    };
    // A leap second counts as the next one.
    if hour > 23 || minute > 59 || second > 60 || year < 1970 {
        return None;
    }
    let days = days(year, month, day)?;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    let seconds = seconds.checked_add_signed(-offset)?;
    // To the nanosecond: more digits say nothing.
    let digits = format!("{fraction:0<9}");
    let nanos = digits.get(..9)?.parse().ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))
}

/// So many numbers of so many digits.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[u64; N]> {
    let mut parts = text.split(between);
    let mut numbers = [0; N];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// The days from 1970-01-01 to a date that there is: what [`civil`] takes back.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted / 400, shifted % 400);
    let month_of_year = (month + 9) % 12;
    let day_of_year = (153 * month_of_year + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    (civil(days) == (year, month, day)).then_some(days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_around_leap_days_are_right() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_164_799, "2024-02-28T23:59:59.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            let date = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(rfc3339(date), expected);
            assert_eq!(parse_rfc3339(expected), Some(date));
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        // Counted one by one, from the rule for leap years.
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..200_000 {
            assert_eq!(civil(days), (year, month, day));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > last {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn every_day_is_read_as_it_is_written() {
        for day in 0..60_000 {
            let date = SystemTime::UNIX_EPOCH + Duration::from_millis(day * 86_400_000 + 987);
            assert_eq!(parse_rfc3339(&rfc3339(date)), Some(date));
        }
    }

    #[test]
    fn dates_are_read_in_any_zone_and_those_that_are_none_are_not() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_348_800);
        for text in [
            "2026-11-22T12:00:00Z",
            "2026-11-22t12:00:00.000z",
            "2026-11-22 12:00:00+00:00",
            "2026-11-22T14:30:00+02:30",
            "2026-11-21T23:00:00-13:00",
        ] {
            assert_eq!(parse_rfc3339(text), Some(noon), "{text}");
        }
        assert_eq!(
            parse_rfc3339("2026-11-22T12:00:00.1234567891Z"),
            Some(noon + Duration::from_nanos(123_456_789))
        );
        for text in [
            "",
            "2026-11-22",
            "2026-11-22T12:00:00",
            "2026-11-22T12:00:00.Z",
            "2026-11-22T12:00Z",
            "2026-02-29T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T12:00:00+24:00",
            "2026-11-22T12:00:00Zulu",
            "2026-11-2\u{fc}T12:00:00Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
            "+026-11-22T12:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
