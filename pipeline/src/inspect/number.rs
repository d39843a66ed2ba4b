//! Numbers as text, for tables and axes.

/// Four significant digits: `3.142`, `0.05`, `12345`, `4.00e-5`.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        value.to_string()
    } else if size == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e7).contains(&size) {
        format!("{value:.2e}")
    } else {
        let whole_digits = size.log10().floor() as i32 + 1;
        trim(&format!("{value:.*}", (4 - whole_digits).max(0) as usize))
    }
}

/// A number on an axis that spans `span`, with as many decimals as its ticks need.
pub fn tick(value: f64, span: f64) -> String {
    if span < 1e-3 && value != 0.0 {
        return format!("{value:.1e}");
    }
    // An axis has six steps at most, so a step is no smaller than this.
    let smallest_step = span / 6.0;
    let decimals = (-smallest_step.log10().floor()).clamp(0.0, 6.0) as usize;
    if smallest_step >= 1e5 {
        format!("{}M", trim(&format!("{:.2}", value / 1e6)))
    } else if smallest_step >= 1e3 {
        format!("{}k", trim(&format!("{:.1}", value / 1e3)))
    } else {
        let text = format!("{value:.decimals$}");
        let is_zero = text.bytes().all(|byte| matches!(byte, b'-' | b'0' | b'.'));
        if is_zero { "0".to_owned() } else { text }
    }
}

/// A duration: `8.2 s`, `3m 05s`, `2h 07m`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
    }
}

/// Cuts zeros, and then a point, off the end of a decimal number.
fn trim(text: &str) -> String {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_significant_digits() {
        let cases = [
            (0.0, "0"),
            (2.71949, "2.719"),
            (-0.05, "-0.05"),
            (0.99999, "1"),
            (123_456.7, "123457"),
            (4e-5, "4.00e-5"),
            (f64::NAN, "NaN"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn ticks_have_the_decimals_of_their_axis() {
        let cases = [
            (0.1 + 0.2, 0.9, "0.3"),
            (2.5, 3.0, "2.5"),
            (5.0, 30.0, "5"),
            (-1e-17, 1.0, "0"),
            (15_000.0, 20_000.0, "15k"),
            (2e-5, 1e-4, "2.0e-5"),
        ];
        for (value, span, text) in cases {
            assert_eq!(tick(value, span), text);
        }
    }

    #[test]
    fn durations_change_their_unit() {
        assert_eq!(duration(8.23), "8.2 s");
        assert_eq!(duration(185.0), "3m 05s");
        assert_eq!(duration(7620.0), "2h 07m");
    }
}
