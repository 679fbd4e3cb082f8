//! Medians and percentiles.

/// The percentile `q` in `[0, 100]`, linear between the two nearest values (numpy's default);
/// nothing of no values.
pub(crate) fn percentile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let place = q / 100.0 * last as f64;
    let below = (place.floor() as usize).min(last);
    let above = (below + 1).min(last);
    Some(sorted[below] + (place - below as f64) * (sorted[above] - sorted[below]))
}

/// The value in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    percentile(values, 50.0)
}

/// Whether two losses agree within a tolerance relative to them, or to `least` if that is more.
/// What is not finite agrees with nothing.
pub(crate) fn agree(a: f64, b: f64, least: f64, tolerance: f64) -> bool {
    a.is_finite() && (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numpys() {
        // numpy.percentile([15, 20, 35, 40, 50], [0, 10, 40, 50, 90, 100])
        let values = [50.0, 15.0, 40.0, 20.0, 35.0];
        for (q, expected) in [
            (0.0, 15.0),
            (10.0, 17.0),
            (40.0, 29.0),
            (50.0, 35.0),
            (90.0, 46.0),
            (100.0, 50.0),
        ] {
            assert_eq!(percentile(&values, q), Some(expected), "{q}");
        }
        assert_eq!(median(&[1.0, 4.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn agreement_is_relative_and_finite() {
        assert!(agree(2.0, 2.0019, 0.0, 1e-3));
        assert!(!agree(2.0, 2.003, 0.0, 1e-3));
        assert!(agree(0.0, 0.0, 0.0, 1e-3));
        assert!(!agree(f64::NAN, f64::NAN, 1.0, 1e-3));
        assert!(!agree(f64::INFINITY, f64::INFINITY, 1.0, 1e-3));
        assert!(agree(0.001, 0.002, 1.0, 1e-2) && !agree(0.001, 0.02, 1.0, 1e-2));
    }
}
