//! Parts of a data set.

use std::collections::BTreeMap;
use std::sync::Arc;

use opt_core::random::Philox;

use crate::{Dataset, Error, ErrorKind, Result, Tensor, class_labels};

/// Some examples of a data set, by index, without copying them.
///
/// ```
/// use opt_core::Tensor;
/// use opt_data::{Dataset, Subset, TensorDataset};
///
/// let data = TensorDataset::new(vec![Tensor::new([4], [10f32, 11., 12., 13.])?])?;
/// let odd = Subset::new(&data, vec![3, 1])?;
/// assert_eq!(odd.batch(&[0, 1])?[0].to_vec::<f32>()?, [13., 11.]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Subset<D> {
    source: D,
    indices: Arc<[usize]>,
}

impl<D: Dataset> Subset<D> {
    /// The examples of `source` with these indices, in this order; an index may come twice.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if there are no indices; [`ErrorKind::InvalidArgument`] if one is out
    /// of range.
    pub fn new(source: D, indices: impl Into<Arc<[usize]>>) -> Result<Subset<D>> {
        let indices = indices.into();
        if indices.is_empty() {
            return Err(Error::new(ErrorKind::Data, "a subset of no examples"));
        }
        let len = source.len();
        if let Some(bad) = indices.iter().find(|&&i| i >= len) {
            return Err(Error::invalid(format!(
                "example {bad} of a data set of {len}"
            )));
        }
        Ok(Subset { source, indices })
    }

    /// The indices in the source.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    /// The data set that this is a part of.
    pub fn source(&self) -> &D {
        &self.source
    }

    fn index(&self, i: usize) -> Result<usize> {
        let found = self.indices.get(i).copied();
        found.ok_or_else(|| {
            Error::invalid(format!("example {i} of a subset of {}", self.indices.len()))
        })
    }
}

impl<D: Dataset> Dataset for Subset<D> {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn get(&self, index: usize) -> Result<Vec<Tensor>> {
        self.source.get(self.index(index)?)
    }

    fn batch(&self, indices: &[usize]) -> Result<Vec<Tensor>> {
        let indices: Vec<usize> = indices
            .iter()
            .map(|&i| self.index(i))
            .collect::<Result<_>>()?;
        self.source.batch(&indices)
    }
}

/// Splits a data set at random into what stays and what is held out, such as a training and a
/// validation part: `round(fraction * len)` examples are held out, at least one on either side.
/// Both parts keep the order of the source.
///
/// ```
/// use opt_data::{Dataset, digits, split};
///
/// let train = digits()?.train;
/// let (train, validation) = split(train, 0.1, 0)?;
/// assert_eq!((train.len(), validation.len()), (1293, 144));
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] if `fraction` is not inside (0, 1); [`ErrorKind::Data`] if there
/// are fewer than two examples.
pub fn split<D: Dataset + Clone>(
    data: D,
    fraction: f64,
    seed: u64,
) -> Result<(Subset<D>, Subset<D>)> {
    let len = data.len();
    let held = held_out(len, fraction)?;
    let mut is_held = vec![false; len];
    for &i in &Philox::new(seed).permutation(0, len)[..held] {
        is_held[i] = true;
    }
    parts(data, &is_held)
}

/// As [`split`], but each class of the label field keeps its share on both sides, to within one
/// example (largest remainders). A class with a single example stays.
///
/// # Errors
/// As [`split`]; if the label field does not exist or is not an `i64` scalar an example, or no
/// class has two examples.
pub fn split_stratified<D: Dataset + Clone>(
    data: D,
    label_field: usize,
    fraction: f64,
    seed: u64,
) -> Result<(Subset<D>, Subset<D>)> {
    let len = data.len();
    let held = held_out(len, fraction)?;
    let mut classes: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (i, label) in class_labels(&data, label_field)?.into_iter().enumerate() {
        classes.entry(label).or_default().push(i);
    }
    if classes.values().all(|members| members.len() < 2) {
        let message = "no class has two examples, so none can be held out";
        return Err(Error::new(ErrorKind::Data, message));
    }
    // Every class gives the floor of its share; the classes with the largest remainders one more,
    // until the total is met.
    let mut quota: Vec<(i64, usize, f64)> = classes
        .iter()
        .map(|(&label, members)| {
            let share = members.len() as f64 * held as f64 / len as f64;
            (label, share.floor() as usize, share.fract())
        })
        .collect();
    quota.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
    let mut left = held - quota.iter().map(|q| q.1).sum::<usize>();
    for (label, count, _) in &mut quota {
        if left == 0 {
            break;
        }
        if classes[label].len() > *count + 1 {
            *count += 1;
            left -= 1;
        }
    }
    let random = Philox::new(seed);
    let mut is_held = vec![false; len];
    for (label, count, _) in quota {
        let members = &classes[&label];
        for &j in &random.permutation(label as u64, members.len())[..count] {
            is_held[members[j]] = true;
        }
    }
    parts(data, &is_held)
}

/// Splits by position: examples whose index is divisible by `n` are held out, the rest stays. A
/// split that needs no seed and never changes; that of the embedded digits has `n` 5.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] if `n` is below 2; [`ErrorKind::Data`] if there are fewer than
/// two examples.
pub fn split_every<D: Dataset + Clone>(data: D, n: usize) -> Result<(Subset<D>, Subset<D>)> {
    if n < 2 {
        return Err(Error::invalid(format!(
            "expected n of at least 2, found {n}"
        )));
    }
    let is_held: Vec<bool> = (0..data.len()).map(|i| i % n == 0).collect();
    parts(data, &is_held)
}

fn held_out(len: usize, fraction: f64) -> Result<usize> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::invalid(format!(
            "expected a fraction between 0 and 1, found {fraction}"
        )));
    }
    if len < 2 {
        return Err(Error::new(
            ErrorKind::Data,
            format!("{len} examples cannot be split in two"),
        ));
    }
    Ok(((len as f64 * fraction).round() as usize).clamp(1, len - 1))
}

fn parts<D: Dataset + Clone>(data: D, is_held: &[bool]) -> Result<(Subset<D>, Subset<D>)> {
    let pick =
        |held: bool| -> Vec<usize> { (0..is_held.len()).filter(|&i| is_held[i] == held).collect() };
    let rest = Subset::new(data.clone(), pick(false))?;
    Ok((rest, Subset::new(data, pick(true))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorDataset;
    use proptest::prelude::*;

    fn numbered(labels: &[i64]) -> TensorDataset {
        let x: Vec<f32> = (0..labels.len()).map(|v| v as f32).collect();
        TensorDataset::new(vec![
            Tensor::new([labels.len()], x).unwrap(),
            Tensor::new([labels.len()], labels).unwrap(),
        ])
        .unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn parts_are_a_partition_and_classes_keep_their_share(
            labels in prop::collection::vec(0i64..4, 2..80),
            fraction in 0.05f64..0.95,
            seed: u64,
        ) {
            let count = |class: i64| labels.iter().filter(|&&l| l == class).count();
            prop_assume!((0..4).any(|class| count(class) > 1));
            let data = numbered(&labels);
            let plain = split(&data, fraction, seed).unwrap();
            let stratified = split_stratified(&data, 1, fraction, seed).unwrap();
            for (rest, held) in [&plain, &stratified] {
                let mut all: Vec<usize> = rest.indices().iter().chain(held.indices()).copied().collect();
                all.sort_unstable();
                prop_assert!(all.into_iter().eq(0..labels.len()));
            }
            let share = stratified.1.len() as f64 / labels.len() as f64;
            for class in 0..4 {
                let total = count(class);
                let held = stratified.1.indices().iter().filter(|&&i| labels[i] == class).count();
                // One for the remainder, and one more where a class of one example stays.
                prop_assert!((held as f64 - share * total as f64).abs() < 2.0);
                prop_assert!(total == 0 || held < total);
            }
        }
    }

    #[test]
    fn a_split_depends_on_the_seed_alone() {
        let data = numbered(&[0; 50]);
        let held = |seed| split(&data, 0.3, seed).unwrap().1.indices().to_vec();
        assert_eq!(held(1), held(1));
        assert_ne!(held(1), held(2));
        assert_eq!(held(1).len(), 15);
    }

    #[test]
    fn split_every_holds_out_the_multiples() {
        let data = numbered(&[0; 7]);
        let (rest, held) = split_every(&data, 3).unwrap();
        assert_eq!(held.indices(), [0, 3, 6]);
        assert_eq!(rest.indices(), [1, 2, 4, 5]);
        assert_eq!(
            rest.batch(&[3, 0]).unwrap()[0].to_vec::<f32>().unwrap(),
            [5., 1.]
        );
        assert_eq!(rest.get(2).unwrap()[0].item().unwrap(), 4.0);
        assert!(rest.get(4).is_err());
    }

    #[test]
    fn bad_arguments_are_errors() {
        let data = numbered(&[0, 1, 0]);
        for fraction in [0.0, 1.0, -0.5, f64::NAN] {
            let kind = split(&data, fraction, 0).unwrap_err().kind();
            assert_eq!(kind, ErrorKind::InvalidArgument);
        }
        assert_eq!(
            split(numbered(&[0]), 0.5, 0).unwrap_err().kind(),
            ErrorKind::Data
        );
        assert_eq!(
            split_every(numbered(&[0]), 2).unwrap_err().kind(),
            ErrorKind::Data
        );
        assert!(split_every(&data, 1).is_err());
        assert!(split_stratified(&data, 7, 0.5, 0).is_err());
        assert_eq!(
            split_stratified(&data, 0, 0.5, 0).unwrap_err().kind(),
            ErrorKind::DType
        );
        let singles = split_stratified(numbered(&[0, 1, 2]), 1, 0.5, 0);
        assert_eq!(singles.unwrap_err().kind(), ErrorKind::Data);
        assert_eq!(
            Subset::new(&data, vec![]).unwrap_err().kind(),
            ErrorKind::Data
        );
        assert!(Subset::new(&data, vec![3]).is_err());
    }
}
