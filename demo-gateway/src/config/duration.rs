//! Durations as people write them: `250ms`, `30s`, `5m`, `1h`, `30d`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de};

/// Reads a number and its unit.
pub fn parse(text: &str) -> Result<Duration, String> {
    let at = text.find(|char: char| char.is_ascii_alphabetic());
    let (number, unit) = text.split_at(at.unwrap_or(text.len()));
    let wrong = || {
        format!("`{text}` is not a duration such as \"250ms\", \"30s\", \"5m\", \"1h\" or \"30d\"")
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        "" if number == 0.0 => 0.0,
        _ => return Err(wrong()),
    };
    // A year is longer than anything here, and keeps sums of instants in range.
    if !(0.0..=366.0 * 86_400.0).contains(&seconds) {
        return Err(format!("`{text}` is not between 0 and a year"));
    }
    // To the microsecond: what lies below comes from the floating point.
    Ok(Duration::from_micros((seconds * 1e6).round() as u64))
}

pub(in crate::config) fn serialize<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let text = match duration.as_micros() {
        micros if micros % 1_000_000 == 0 => format!("{}s", duration.as_secs()),
        micros => format!("{}ms", micros as f64 / 1e3),
    };
    serializer.serialize_str(&text)
}

pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(de::Error::custom)
}

/// The same where there may be none.
pub(super) mod optional {
    use super::{Deserializer, Duration, Serializer};

    pub(in crate::config) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        // TOML knows no null.
        super::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_needs_its_unit() {
        let millis = |text| parse(text).map(|duration| duration.as_millis());
        for (text, expected) in [
            ("250ms", 250),
            ("1.5s", 1500),
            ("30s", 30_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("30d", 2_592_000_000),
            ("0", 0),
        ] {
            assert_eq!(millis(text), Ok(expected), "{text}");
        }
        for text in ["", "30", "s", "-1s", "1 year", "inf", "1e300h", "nans"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
