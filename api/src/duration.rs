//! Durations as Gateway API writes them (GEP-2257): "500ms", "1h30m", "2s500ms".
//!
//! Whatever comes from outside is at most [`LONGEST`]: a time plus a duration panics where it overflows.

use std::ops::RangeInclusive;
use std::time::Duration;

/// The longest duration there is, 45 years: what four parts of five digits can say.
pub const LONGEST: Duration = Duration::from_secs(4 * 99_999 * 3600);
/// How long a sidecar's drain may take.
pub const DRAIN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// The form that GEP-2257 allows, also used as the schema's pattern.
pub const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// Parses a duration of one to four parts, each of one to five digits and a unit of `h`, `m`, `s` or `ms`.
///
/// # Errors
/// Says what is not a duration, and what one looks like.
pub fn parse(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let unit = [
            ("ms", Duration::from_millis(1)),
            ("h", Duration::from_secs(3600)),
            ("m", Duration::from_secs(60)),
            ("s", Duration::from_secs(1)),
        ]
        .into_iter()
        .find_map(|(name, unit)| Some((tail.strip_prefix(name)?, unit)));
        parts += 1;
        match (number.parse::<u32>(), unit) {
            (Ok(number), Some((tail, unit))) if digits <= 5 && parts <= 4 => {
                total += unit * number;
                rest = tail;
            }
            _ => {
                return Err(format!(
                    "{text:?} is not a duration like \"500ms\", \"10s\" or \"1m30s\""
                ));
            }
        }
    }
    if parts == 0 {
        return Err("a duration is empty; write \"500ms\", \"10s\" or \"1m30s\"".to_owned());
    }
    Ok(total)
}

/// Parses a duration that must be in a range.
///
/// # Errors
/// As of [`parse`], and when it is not in the range.
pub fn parse_within(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let value = parse(text)?;
    match range.contains(&value) {
        true => Ok(value),
        false => Err(format!(
            "{text} is not between {:?} and {:?}",
            range.start(),
            range.end()
        )),
    }
}

/// Milliseconds as another program says them. More than [`LONGEST`] is that.
pub fn from_millis(millis: u64) -> Duration {
    Duration::from_millis(millis).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, from_millis, parse, parse_within};
    use std::time::{Duration, Instant, SystemTime};

    #[test]
    fn the_longest_overflows_no_clock() {
        assert_eq!(parse("99999h99999h99999h99999h").unwrap(), LONGEST);
        assert_eq!(from_millis(u64::MAX), LONGEST);
        assert_eq!(from_millis(25), Duration::from_millis(25));
        assert!(Instant::now().checked_add(2 * LONGEST).is_some());
        assert!(SystemTime::now().checked_add(2 * LONGEST).is_some());
    }

    #[test]
    fn a_range_has_both_ends() {
        let range = || Duration::from_secs(1)..=Duration::from_secs(60);
        for (text, taken) in [("999ms", false), ("1s", true), ("1m", true), ("1m1ms", false)] {
            assert_eq!(parse_within(text, range()).is_ok(), taken, "{text}");
        }
    }

    #[test]
    fn gep_2257() {
        assert_eq!(parse("0s").unwrap(), Duration::ZERO);
        assert_eq!(parse("25ms").unwrap(), Duration::from_millis(25));
        assert_eq!(parse("1h30m5s").unwrap(), Duration::from_secs(5405));
        for wrong in ["", "1", "s", "1.5s", "-1s", "1d", "123456s", "1s1s1s1s1s", "1 s"] {
            assert!(parse(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
