//! The embedded handwritten digits.

use crate::{Csv, Dataset, Result, TensorDataset};

/// The training and the test part of a data set.
#[derive(Debug, Clone)]
pub struct TrainTest {
    /// What models, scalers and thresholds are fitted on.
    pub train: TensorDataset,
    /// What the final figures are measured on, once.
    pub test: TensorDataset,
}

impl TrainTest {
    /// Splits by position: examples whose index is divisible by `n` are the test part
    /// ([`split_every`](crate::split_every)).
    ///
    /// # Errors
    /// If `n` is below 2, or there are fewer than two examples.
    pub fn every(data: &TensorDataset, n: usize) -> Result<TrainTest> {
        let (train, test) = crate::split_every(data, n)?;
        Ok(TrainTest {
            train: data.select(train.indices())?,
            test: data.select(test.indices())?,
        })
    }
}

/// 1,797 real handwritten digits, compiled into the crate: `f32` images `[1, 8, 8]` with pixels
/// in 0..=16 (scale them with [`Scale`](crate::Scale) or a fitted transform) and labels 0..=9;
/// 1,437 to train on and 360 to test (every index divisible by 5).
///
/// Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
/// Learning Repository, 1998, <https://doi.org/10.24432/C50P49>, the test part; licensed
/// [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/).
///
/// ```
/// use opt_data::{Dataset, digits};
///
/// let digits = digits()?;
/// assert_eq!((digits.train.len(), digits.test.len()), (1437, 360));
/// assert_eq!(digits.test.fields()[0].shape(), [360, 1, 8, 8]);
/// assert_eq!(digits.test.classes(1)?, 10);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// If memory cannot be had; the content is tested.
pub fn digits() -> Result<TrainTest> {
    let csv: &[u8] = include_bytes!("../data/digits.csv.gz");
    let all = Csv::new()
        .shape([1, 8, 8])
        .classes(10)
        .read_from(csv, "digits.csv.gz")?;
    debug_assert_eq!(all.len(), 1797);
    TrainTest::every(&all, 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_are_all_there() {
        let digits = digits().unwrap();
        assert_eq!((digits.train.len(), digits.test.len()), (1437, 360));
        let mut counts = [0; 10];
        for part in [&digits.train, &digits.test] {
            let x = part.fields()[0].to_vec::<f32>().unwrap();
            assert!(
                x.iter()
                    .all(|v| (0.0..=16.0).contains(v) && v.fract() == 0.0)
            );
            for &label in part.labels(1).unwrap() {
                counts[label as usize] += 1;
            }
        }
        // Class sizes as scikit-learn's `load_digits` documents them.
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }

    #[test]
    fn line_zero_is_the_first_test_image() {
        let digits = digits().unwrap();
        let first = digits.test.get(0).unwrap();
        assert_eq!(first[1].item().unwrap(), 0.0);
        assert_eq!(
            first[0].to_vec::<f32>().unwrap()[..8],
            [0., 0., 5., 13., 9., 1., 0., 0.]
        );
        assert_eq!(digits.train.labels(1).unwrap()[..4], [1, 2, 3, 4]);
    }
}
