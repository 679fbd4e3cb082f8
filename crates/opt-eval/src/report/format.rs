//! Numbers for people.

/// Three significant digits.
fn three(v: f64) -> String {
    match v.abs() {
        a if a < 9.995 => format!("{v:.2}"),
        a if a < 99.95 => format!("{v:.1}"),
        _ => format!("{v:.0}"),
    }
}

/// A value in the largest of units that leaves it at 1 or more; the last unit takes any size.
fn scaled(v: f64, step: f64, units: &[&str]) -> String {
    if !v.is_finite() {
        return v.to_string();
    }
    let (mut v, mut unit) = (v, 0);
    while unit + 1 < units.len() && v.abs() >= step - 0.5 {
        v /= step;
        unit += 1;
    }
    if v.abs() >= 1e6 {
        return format!("{v:.2e} {}", units[unit]);
    }
    format!("{} {}", three(v), units[unit])
        .trim_end()
        .to_string()
}

/// `1234` as `1,234`, `1234567` as `1.23 M`.
pub(crate) fn count(v: f64) -> String {
    if v.abs() < 9_999.5 && v.fract() == 0.0 {
        return crate::compare::thousands(v.abs() as u64);
    }
    scaled(v, 1e3, &["", "k", "M", "G", "T"])
}

/// Bytes in B, KiB, MiB and so on.
pub(crate) fn bytes(v: f64) -> String {
    if v.abs() < 1023.5 && v.fract() == 0.0 {
        return format!("{v} B");
    }
    scaled(v, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// Microseconds in ns, µs, ms or s.
pub(crate) fn microseconds(v: f64) -> String {
    if v != 0.0 && v.abs() < 0.9995 {
        return format!("{} ns", three(v * 1e3));
    }
    scaled(v, 1e3, &["µs", "ms", "s"])
}

/// A share as percent, with two decimals.
pub(crate) fn percent(v: f64) -> String {
    if v.is_finite() {
        format!("{:.2} %", v * 100.0)
    } else {
        v.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_their_borders() {
        let counts = [0., 9999., 10_000., 12_345., 999_600., 1_234_567., 2.5e9];
        let found = counts.map(count);
        assert_eq!(
            found,
            [
                "0", "9,999", "10.0 k", "12.3 k", "1.00 M", "1.23 M", "2.50 G"
            ]
        );
        let found = [0., 512., 1023., 1024., 1_048_000., 5e6].map(bytes);
        assert_eq!(
            found,
            ["0 B", "512 B", "1023 B", "1.00 KiB", "1023 KiB", "4.77 MiB"]
        );
        let found = [0., 0.25, 1., 12.34, 999.7, 1500., 2e6, 9e9].map(microseconds);
        assert_eq!(
            found,
            [
                "0.00 µs", "250 ns", "1.00 µs", "12.3 µs", "1.00 ms", "1.50 ms", "2.00 s", "9000 s"
            ]
        );
        assert_eq!(percent(0.98765), "98.77 %");
    }

    #[test]
    fn what_is_no_number_is_said_to_be_none() {
        for text in [count, bytes, microseconds, percent].map(|f| f(f64::NAN)) {
            assert_eq!(text, "NaN");
        }
        assert_eq!(bytes(f64::INFINITY), "inf");
        assert_eq!(microseconds(1e300), "1.00e294 s");
    }
}
