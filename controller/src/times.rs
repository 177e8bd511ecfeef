//! Times in the texts of requests and answers.

use crate::excerpt::excerpt;
use std::time::{SystemTime, UNIX_EPOCH};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, PrimitiveDateTime};

/// A time in microseconds of Unix time. Without a zone it is UTC, and a date alone is its midnight.
///
/// # Errors
/// The text is no time.
pub(crate) fn parse(text: &str) -> Result<i64, String> {
    let with_zone = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    let utc = |text: &str| {
        let utc = with_zone(&format!("{text}Z"))?;
        Some(PrimitiveDateTime::new(utc.date(), utc.time()).assume_utc())
    };
    let time = with_zone(text)
        .or_else(|| utc(text))
        .or_else(|| utc(&format!("{text}T00:00:00")));
    let time = time.ok_or_else(|| format!("'{}' is not a time such as 2026-11-30T10:00:00Z", excerpt(text)))?;
    i64::try_from(time.unix_timestamp_nanos() / 1000).map_err(|_| "a time is out of range".to_owned())
}

/// As [`parse`], in whole seconds. Times before 1970 are 0.
pub(crate) fn parse_seconds(text: &str) -> Result<u64, String> {
    Ok(u64::try_from(parse(text)? / 1_000_000).unwrap_or_default())
}

/// The present time in seconds of Unix time.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Seconds of Unix time as text; empty if no year has the time.
pub(crate) fn text(seconds: u64) -> String {
    let time = i64::try_from(seconds)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_and_without_zone() {
        for (written, seconds) in [
            ("1970-01-02T00:00:01Z", 86_401),
            ("1970-01-02T02:00:01+02:00", 86_401),
            ("1970-01-02T00:00:01.5", 86_401),
            ("1970-01-02", 86_400),
            ("1960-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(parse_seconds(written), Ok(seconds), "{written}");
        }
        for bad in ["", "yesterday", "1970-13-01", "1970-01-02T25:00:00Z"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
        assert_eq!(text(86_401), "1970-01-02T00:00:01Z");
        assert_eq!(text(u64::MAX), "");
    }
}
