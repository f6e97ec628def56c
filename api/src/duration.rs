//! Durations as Gateway API writes them (GEP-2257): "500ms", "1h30m", "2s500ms".

use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::parse;
    use std::time::Duration;

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
