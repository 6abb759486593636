//! Kubernetes quantities as integers. Pure.

/// Powers of ten that are looked at; quantities beyond overflow 64 bits anyway.
const EXPONENT_MAX: u32 = 24;

/// Thousandths of the quantity, rounded up; `None` when it is no quantity or does not fit.
pub(crate) fn parse_milli(text: &str) -> Option<i64> {
    let (negative, text) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(12)];
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (numerator, denominator) = scale(suffix)?;
    let numerator = digits.checked_mul(numerator)?.checked_mul(1000)?;
    let denominator = denominator.checked_mul(10i128.pow(u32::try_from(fraction.len()).ok()?))?;
    let milli = numerator.checked_add(denominator - 1)? / denominator;
    i64::try_from(if negative { -milli } else { milli }).ok()
}

/// Whole units of the quantity, rounded up.
pub(crate) fn parse_units(text: &str) -> Option<i64> {
    let milli = parse_units_wide(text)?;
    i64::try_from(milli).ok()
}

fn parse_units_wide(text: &str) -> Option<i128> {
    if let Some(milli) = parse_milli(text) {
        return Some((i128::from(milli) + 999).div_euclid(1000));
    }
    // Above 9 PB thousandths leave 64 bits; such sizes carry no fraction worth keeping.
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (numerator, denominator) = scale(&text[end..])?;
    text[..end].parse::<i128>().ok()?.checked_mul(numerator).map(|n| n / denominator)
}

fn scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (10i128.pow(12), 1),
        "P" => (10i128.pow(15), 1),
        "E" => (10i128.pow(18), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => return exponent(suffix.strip_prefix(['e', 'E'])?),
    })
}

fn exponent(text: &str) -> Option<(i128, i128)> {
    let (down, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let power = digits.parse::<u32>().ok().filter(|p| *p <= EXPONENT_MAX)?;
    let factor = 10i128.pow(power);
    Some(if down { (1, factor) } else { (factor, 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, milli) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.1", Some(100)),
            ("1500u", Some(2)),
            ("2Ki", Some(2_048_000)),
            ("1e3", Some(1_000_000)),
            ("1E", Some(1_000_000_000_000_000_000).filter(|_| false)),
            ("", None),
            ("x", None),
            ("1x", None),
            ("-1", Some(-1000)),
        ] {
            assert_eq!(parse_milli(text), milli, "{text}");
        }
        assert_eq!(parse_units("1Ei"), Some(1 << 60));
        assert_eq!(parse_units("128974848"), Some(128_974_848));
        assert_eq!(parse_units("1.5Gi"), Some(1_610_612_736));
    }
}
