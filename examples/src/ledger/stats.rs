//! Means and their errors.

/// The figures of one name, one a division.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// The name.
    pub name: &'static str,
    /// The figures, in the order of the divisions.
    pub values: Vec<f64>,
}

/// A mean with its spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The mean.
    pub mean: f64,
    /// The standard error of the mean: the sample's standard deviation over the root of its size.
    pub error: f64,
    /// The lowest figure.
    pub least: f64,
    /// The highest figure.
    pub most: f64,
}

impl Series {
    /// No figures yet.
    pub fn new(name: &'static str) -> Series {
        Series {
            name,
            values: Vec::new(),
        }
    }

    /// Mean, standard error and range.
    pub fn summary(&self) -> Summary {
        summary(&self.values)
    }

    /// The mean.
    pub fn mean(&self) -> f64 {
        self.summary().mean
    }
}

fn summary(values: &[f64]) -> Summary {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    Summary {
        mean,
        error: (squares / (n - 1.0) / n).sqrt(),
        least: values.iter().copied().fold(f64::INFINITY, f64::min),
        most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}

/// Differences of two figures on the same divisions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    /// Their mean.
    pub mean: f64,
    /// The standard error of their mean.
    pub error: f64,
}

impl Paired {
    /// `a - b`.
    pub fn of(a: &Series, b: &Series) -> Paired {
        let pairs = a.values.iter().zip(&b.values);
        let differences: Vec<f64> = pairs.map(|(a, b)| a - b).collect();
        let Summary { mean, error, .. } = summary(&differences);
        Paired { mean, error }
    }

    /// Whether the mean is below 0 by more than two standard errors.
    pub fn is_below(&self) -> bool {
        self.mean < -2.0 * self.error
    }

    /// Whether the mean is above 0 by more than two standard errors.
    pub fn is_above(&self) -> bool {
        self.mean > 2.0 * self.error
    }
}

impl std::fmt::Display for Paired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:+.2} ± {:.2}", self.mean, self.error)
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ± {:.2}", self.mean, self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairing_takes_out_what_divisions_share() {
        let series = |values: [f64; 4]| Series {
            name: "x",
            values: values.into(),
        };
        let (a, b) = (series([1.0, 5.0, 3.0, 9.0]), series([2.0, 6.1, 4.0, 9.9]));
        let summary = a.summary();
        assert_eq!((summary.mean, summary.least, summary.most), (4.5, 1.0, 9.0));
        // The sample variance is 35 / 3.
        assert!((summary.error - (35.0f64 / 12.0).sqrt()).abs() < 1e-12);
        let paired = Paired::of(&a, &b);
        assert!((paired.mean + 1.0).abs() < 1e-12);
        assert!((paired.error - (0.02f64 / 12.0).sqrt()).abs() < 1e-12);
        assert!(paired.is_below() && !paired.is_above());
        assert_eq!(paired.to_string(), "-1.00 ± 0.04");
    }
}
