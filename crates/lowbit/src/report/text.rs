//! Numbers as people read them.

/// A real in at most `digits` significant digits, without trailing zeros; powers of ten where it is
/// very great or small.
pub fn significant(x: f64, digits: usize) -> String {
    if x == 0.0 {
        return "0".into();
    }
    if !x.is_finite() {
        return if x.is_nan() {
            "NaN".into()
        } else if x > 0.0 {
            "∞".into()
        } else {
            "−∞".into()
        };
    }
    let scientific = format!("{:.*e}", digits.saturating_sub(1), x);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let text = if (-4..6).contains(&exponent) {
        trimmed(&format!("{:.*}", (digits as i32 - 1 - exponent).max(0) as usize, x))
    } else {
        format!("{}e{exponent}", trimmed(mantissa))
    };
    text.replace('-', "−")
}

fn trimmed(number: &str) -> String {
    match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.').into(),
        false => number.into(),
    }
}

/// A real in three digits.
pub fn number(x: f64) -> String {
    significant(x, 3)
}

/// A number and its unit, which no line break parts.
fn with(number: &str, unit: &str) -> String {
    format!("{number}\u{a0}{unit}")
}

/// A count in decimal units: `12.7 M`.
pub fn count(n: u64) -> String {
    let (x, unit) = scaled(n);
    if unit.is_empty() { x } else { with(&x, unit) }
}

/// A size in decimal units: `12.7 kB`.
pub fn bytes(n: u64) -> String {
    let (x, unit) = scaled(n);
    with(&x, &format!("{unit}B"))
}

fn scaled(n: u64) -> (String, &'static str) {
    let x = n as f64;
    let (divisor, unit) = match x {
        x if x >= 1e9 => (1e9, "G"),
        x if x >= 1e6 => (1e6, "M"),
        x if x >= 1e4 => (1e3, "k"),
        _ => return (n.to_string(), ""),
    };
    (format!("{:.1}", x / divisor), unit)
}

/// A share as a percentage with two decimals.
pub fn percent(share: f64) -> String {
    with(&format!("{:.2}", 100.0 * share), "%")
}

/// A share as a percentage in two digits.
pub fn rate(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        p if p > 0.0 && p < 0.01 => with("<\u{a0}0.01", "%"),
        p if p > 0.0 && p < 0.1 => with(&format!("{p:.3}"), "%"),
        p if p > 0.0 && p < 1.0 => with(&format!("{p:.2}"), "%"),
        p if p > 0.0 && p < 10.0 => with(&format!("{p:.1}"), "%"),
        p => with(&format!("{p:.0}"), "%"),
    }
}

/// A ratio in decibel; `exact` where nothing was lost.
pub fn decibel(db: f64) -> String {
    if db == f64::INFINITY { "exact".into() } else { format!("{db:.1}").replace('-', "−") }
}

/// A time in ms, or in µs where it is short.
pub fn milliseconds(ms: f64) -> String {
    if ms < 1.0 { with(&number(1e3 * ms), "µs") } else { with(&number(ms), "ms") }
}

/// The text in at most `most` characters: the beginning and, behind an ellipsis, the end, which
/// tells names of one model apart.
pub fn short(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.into();
    }
    let tail = most * 2 / 3;
    let head: String = text.chars().take(most - tail - 1).collect();
    let tail: String = text.chars().skip(length - tail).collect();
    format!("{head}…{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (x, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (-0.25, "−0.25"),
            (0.012_345, "0.0123"),
            (1234.5, "1234"),
            (99_999.0, "99999"),
            (1.5e6, "1.5e6"),
            (-2e-7, "−2e−7"),
            (9.999e-5, "0.0001"),
            (100.0, "100"),
            (f64::INFINITY, "∞"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(x), text, "{x}");
        }
        for (found, text) in [
            (bytes(999), "999 B"),
            (bytes(12_730_000), "12.7 MB"),
            (count(400), "400"),
            (count(41_000_000), "41.0 M"),
            (decibel(f64::INFINITY), "exact"),
            (decibel(-1.25), "−1.2"),
            (milliseconds(0.25), "250 µs"),
            (milliseconds(12.0), "12 ms"),
            (percent(0.5), "50.00 %"),
            (rate(0.0), "0 %"),
            (rate(1e-9), "< 0.01 %"),
            (rate(0.000_123), "0.012 %"),
            (rate(0.008), "0.80 %"),
            (rate(0.04), "4.0 %"),
            (rate(0.986), "99 %"),
        ] {
            assert_eq!(found.replace('\u{a0}', " "), text);
        }
    }

    #[test]
    fn long_names_keep_their_ends() {
        for (name, most, expected) in
            [("conv1", 8, "conv1"), ("/layer1/conv1/Conv", 9, "/l…1/Conv"), ("ääääääää", 5, "ä…äää")]
        {
            assert_eq!(short(name, most), expected);
        }
    }
}
