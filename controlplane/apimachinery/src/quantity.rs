//! Kubernetes quantities: exact decimal numbers with a suffix (`k8s.io/apimachinery/pkg/api/resource`).
//! Values are kept in billionths, as precise as upstream; more precise input is rounded up, larger input is capped.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

const NANOS: i128 = 1_000_000_000;
/// Upstream caps at 2^63-1.
const UNITS_MAX: i128 = i64::MAX as i128;
/// More digits than this change nothing but time.
const LEN_MAX: usize = 256;

/// Why a text is no quantity; the texts are upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum QuantityError {
    /// The shape is wrong.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// Two points, or no digit.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// No such suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// Which family of suffixes the text used, and the canonical text will use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    #[default]
    DecimalSi,
}

/// A quantity. Equality and order are those of the value, whatever the format.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl Quantity {
    /// A whole number.
    pub const fn new(units: i64, format: Format) -> Self {
        Self { nanos: units as i128 * NANOS, format }
    }

    /// Thousandths.
    pub const fn from_milli(milli: i64) -> Self {
        Self { nanos: milli as i128 * (NANOS / 1000), format: Format::DecimalSi }
    }

    /// Whole units, rounded up, as upstream's `Value`.
    pub fn value(&self) -> i64 {
        clamp(ceil_div(self.nanos, NANOS))
    }

    /// Thousandths, rounded up, as upstream's `MilliValue`.
    pub fn milli_value(&self) -> i64 {
        clamp(ceil_div(self.nanos, NANOS / 1000))
    }

    /// Rounds up to thousandths, as the API does with resource lists.
    #[must_use]
    pub fn round_up_milli(self) -> Self {
        let step = NANOS / 1000;
        Self { nanos: ceil_div(self.nanos, step) * step, ..self }
    }

    /// -1, 0 or 1.
    pub const fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// True for zero.
    pub const fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is a whole number.
    pub const fn is_whole(&self) -> bool {
        self.nanos % NANOS == 0
    }

    /// The family of suffixes.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The sum, in the format of `self` unless that is zero.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: cap(self.nanos.saturating_add(other.nanos)), format }
    }

    /// The difference, in the format of `self` unless that is zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.plus(Self { nanos: -other.nanos, ..other })
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Away from zero for positive numbers and for negative ones, as upstream's rounding does.
fn ceil_div(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    if value % by == 0 { quotient } else { quotient + value.signum() }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn cap(nanos: i128) -> i128 {
    nanos.clamp(-UNITS_MAX * NANOS, UNITS_MAX * NANOS)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() || text.len() > LEN_MAX {
            return Err(QuantityError::Format);
        }
        let (negative, unsigned) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end =
            unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        check_shape(number, suffix)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(QuantityError::Numeric);
        }
        let (scale, format) = read_suffix(suffix)?;
        let nanos = cap(scaled(whole, fraction, scale));
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

fn check_shape(number: &str, suffix: &str) -> Result<(), QuantityError> {
    let letters = suffix.trim_end_matches(|c: char| c.is_ascii_digit());
    let letters = letters.strip_suffix(['+', '-']).unwrap_or(letters);
    if number.is_empty() || !letters.bytes().all(|byte| b"eEinumkKMGTP".contains(&byte)) {
        return Err(QuantityError::Format);
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

fn read_suffix(suffix: &str) -> Result<(Scale, Format), QuantityError> {
    let decimal = |exponent| Ok((Scale::Ten(exponent), Format::DecimalSi));
    let binary = |bits| Ok((Scale::Two(bits), Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        suffix => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            let exponent = exponent.parse().map_err(|_| QuantityError::Suffix)?;
            Ok((Scale::Ten(exponent), Format::DecimalExponent))
        }
    }
}

/// `whole.fraction × scale` in billionths, rounded up; saturates far above the cap.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let (exponent, factor) = match scale {
        Scale::Ten(exponent) => (exponent.clamp(-64, 64), 1),
        Scale::Two(bits) => (0, 1i128 << bits),
    };
    let digits = whole.bytes().chain(fraction.bytes()).map(|byte| i128::from(byte - b'0'));
    // How many digits of the text stand before the point once the value is in billionths.
    let kept = i64::try_from(whole.len()).unwrap_or(i64::MAX) + i64::from(exponent) + 9;
    let mut value: i128 = 0;
    let mut rest = false;
    let mut seen: i64 = 0;
    if factor == 1 {
        for digit in digits {
            if seen < kept {
                value = value.saturating_mul(10).saturating_add(digit);
            } else {
                rest |= digit != 0;
            }
            seen += 1;
        }
        while seen < kept {
            value = value.saturating_mul(10);
            seen += 1;
        }
        return value.saturating_add(i128::from(rest && kept >= 0) + i128::from(rest && kept < 0));
    }
    // Binary suffixes: multiply first, so that 0.5Gi stays exact; digits beyond eighteen only round.
    let mut places: u32 = 0;
    for (index, digit) in digits.enumerate() {
        let in_fraction = index >= whole.len();
        if in_fraction && places >= 18 {
            rest |= digit != 0;
            continue;
        }
        value = value.saturating_mul(10).saturating_add(digit);
        places += u32::from(in_fraction);
    }
    let units = value.saturating_mul(factor);
    if units == i128::MAX {
        return i128::MAX;
    }
    let divisor = 10i128.pow(places);
    let whole = (units / divisor).saturating_mul(NANOS);
    let left = (units % divisor).saturating_mul(NANOS);
    let nanos = ceil_div(left, divisor);
    whole.saturating_add(nanos).saturating_add(i128::from(rest && left % divisor == 0))
}

impl fmt::Display for Quantity {
    /// Upstream's canonical text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANOS;
        if self.format == Format::BinarySi && !small && self.is_whole() {
            let (mut amount, mut times) = (self.nanos / NANOS, 0);
            while amount % 1024 == 0 {
                amount /= 1024;
                times += 1;
            }
            let suffix = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][times];
            return write!(f, "{amount}{suffix}");
        }
        let (mut amount, mut exponent) = (self.nanos, -9);
        while amount % 1000 == 0 && exponent < 18 {
            amount /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return match exponent {
                0 => write!(f, "{amount}"),
                exponent => write!(f, "{amount}e{exponent}"),
            };
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            18 => "E",
            _ => "",
        };
        write!(f, "{amount}{suffix}")
    }
}

/// The canonical text of a quantity's text.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    Ok(text.parse::<Quantity>()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_texts_are_upstreams() {
        let cases = [
            ("0", "0"),
            ("0Gi", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("+1", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("512Ki", "512Ki"),
            ("1023", "1023"),
            ("100Mi", "100Mi"),
            ("0.5Ki", "512"),
            ("1000", "1k"),
            ("1000000", "1M"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e6", "12e6"),
            ("100e-3", "100e-3"),
            ("1e0", "1"),
            ("0.1m", "100u"),
            ("0.0000000001", "1n"),
            ("1.0000000001", "1000000001n"),
            ("-1.5", "-1500m"),
            ("9223372036854775807", "9223372036854775807"),
            ("9223372036854775808", "9223372036854775807"),
            ("16Ei", "9223372036854775807"),
            ("1e40", "9223372036854775807"),
            ("1e-40", "1e-9"),
            ("0.3Mi", "314572800m"),
            ("1.1Gi", "1181116006400m"),
        ];
        for (text, want) in cases {
            assert_eq!(canonical(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        let cases = [
            ("", QuantityError::Format),
            ("x", QuantityError::Format),
            ("1x", QuantityError::Format),
            ("1 ", QuantityError::Format),
            ("1Gi ", QuantityError::Format),
            ("--1", QuantityError::Format),
            ("1.2.3", QuantityError::Numeric),
            (".", QuantityError::Numeric),
            ("1mi", QuantityError::Suffix),
            ("1K", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
        ];
        for (text, want) in cases {
            assert_eq!(canonical(text), Err(want), "{text}");
        }
    }

    #[test]
    fn values_round_up_and_add() {
        let of = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(of("1.1").value(), 2);
        assert_eq!(of("1.1").milli_value(), 1100);
        assert_eq!(of("0.1m").milli_value(), 1);
        assert_eq!(of("0.1m").round_up_milli().to_string(), "1m");
        assert_eq!(of("1Gi").plus(of("1")).to_string(), "1073741825");
        assert_eq!(of("1Gi").minus(of("512Mi")).to_string(), "512Mi");
        assert_eq!(of("0").plus(of("512Mi")).to_string(), "512Mi");
        assert!(of("1000Mi") < of("1Gi") && of("1024Mi") == of("1Gi"));
    }

    proptest! {
        #[test]
        fn the_canonical_text_keeps_the_value(text in "[+-]?[0-9]{0,12}[.]?[0-9]{0,12}(n|u|m||k|M|G|Ki|Mi|Gi|e[0-9]|E-[0-9])|\\PC{0,12}") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                let again: Quantity = quantity.to_string().parse().unwrap();
                prop_assert_eq!(again, quantity);
                prop_assert_eq!(again.to_string(), quantity.to_string());
            }
        }
    }
}
