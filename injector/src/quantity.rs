//! Kubernetes quantities ("10m", "64Mi", "1.5", "2e3"): read well enough to refuse a wrong one, and to compare two.

/// The quantity as a number, in thousandths of its unit, rounded up.
///
/// # Errors
/// Says what is not a quantity, and what one looks like.
pub(crate) fn parse(text: &str) -> Result<u128, String> {
    let wrong = || format!("{text:?} is not a Kubernetes quantity like \"100m\" or \"64Mi\"");
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 15 || fraction.len() > 9 {
        return Err(wrong());
    }
    // Both parts are at most 15 digits, or empty.
    let parse = |digits: &str| digits.parse::<u128>().unwrap_or(0);
    let denominator = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
    let mantissa = parse(whole) * denominator + parse(fraction);
    let (factor, divisor) = factor(suffix).ok_or_else(wrong)?;
    // 25 digits times at most 10^18 times 1000 would not fit: such a quantity is no container's.
    let value = mantissa
        .checked_mul(factor)
        .and_then(|v| v.checked_mul(1000))
        .ok_or_else(wrong)?;
    Ok(value.div_ceil(denominator * divisor))
}

fn factor(suffix: &str) -> Option<(u128, u128)> {
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']).filter(|e| !e.is_empty()) {
        let exponent: i32 = exponent.parse().ok().filter(|e| (-9..=18).contains(e))?;
        let power = 10u128.pow(exponent.unsigned_abs());
        return Some(if exponent < 0 { (1, power) } else { (power, 1) });
    }
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1000u128.pow(2), 1),
        "G" => (1000u128.pow(3), 1),
        "T" => (1000u128.pow(4), 1),
        "P" => (1000u128.pow(5), 1),
        "E" => (1000u128.pow(6), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::parse;

    #[test]
    fn quantities() {
        assert_eq!(parse("100m").unwrap(), 100);
        assert_eq!(parse("1").unwrap(), 1000);
        assert_eq!(parse("1.5").unwrap(), 1500);
        assert_eq!(parse(".5").unwrap(), 500);
        assert_eq!(parse("64Mi").unwrap(), 64 * 1024 * 1024 * 1000);
        assert_eq!(parse("2e3").unwrap(), 2_000_000);
        assert_eq!(parse("1e-3").unwrap(), 1);
        assert_eq!(parse("1E").unwrap(), 10u128.pow(21));
        for wrong in [
            "",
            ".",
            "Mi",
            "64MB",
            "64mi",
            "-1",
            "1.2.3",
            "1 Gi",
            "lots",
            "e3",
            "9e99",
            "99999999999999999",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
