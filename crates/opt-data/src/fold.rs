//! Folds for cross-validation.

use std::collections::HashMap;

use opt_core::random::Philox;

use crate::{Dataset, Error, ErrorKind, Result, Subset, class_labels};

/// One way to divide a data set: each example is in exactly one of the two parts, and both are in
/// the order of the data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// Indices of the examples to train on.
    pub train: Vec<usize>,
    /// Indices of the examples that are held out.
    pub test: Vec<usize>,
}

impl Fold {
    /// The two parts of a data set, training part first, without copying examples.
    ///
    /// # Errors
    /// If an index is out of range: the fold is of a larger data set.
    pub fn of<D: Dataset + Clone>(&self, data: D) -> Result<(Subset<D>, Subset<D>)> {
        let train = Subset::new(data.clone(), self.train.clone())?;
        Ok((train, Subset::new(data, self.test.clone())?))
    }
}

/// Divides a data set into `k` folds of as equal size as can be; each is held out once
/// (scikit-learn's `KFold`).
///
/// The first `len % k` folds have `len / k + 1` examples, the others `len / k`. Without
/// [`KFold::shuffled`] a fold is a run of neighbours.
///
/// ```
/// use opt_data::{Dataset, KFold, digits};
///
/// let data = digits()?.train;
/// for fold in KFold::new(5)?.shuffled(0).split(&data)? {
///     let (train, test) = fold.of(&data)?;
///     assert_eq!(train.len() + test.len(), data.len());
/// }
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KFold {
    k: usize,
    seed: Option<u64>,
}

impl KFold {
    /// A division into `k` folds.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if `k` is below 2.
    pub fn new(k: usize) -> Result<KFold> {
        if k < 2 {
            return Err(Error::invalid(format!(
                "expected at least 2 folds, found {k}"
            )));
        }
        Ok(KFold { k, seed: None })
    }

    /// Draws the members of the folds at random, as a function of the seed.
    #[must_use]
    pub fn shuffled(mut self, seed: u64) -> KFold {
        self.seed = Some(seed);
        self
    }

    /// The folds of a data set.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if there are fewer examples than folds.
    pub fn split(&self, data: &dyn Dataset) -> Result<Vec<Fold>> {
        let len = data.len();
        if len < self.k {
            return Err(Error::new(
                ErrorKind::Data,
                format!("{len} examples cannot be divided into {} folds", self.k),
            ));
        }
        let order = match self.seed {
            Some(seed) => Philox::new(seed).permutation(0, len),
            None => (0..len).collect(),
        };
        let (size, larger) = (len / self.k, len % self.k);
        let mut fold_of = vec![0; len];
        let mut rest = &order[..];
        for fold in 0..self.k {
            let (members, others) = rest.split_at(size + usize::from(fold < larger));
            members.iter().for_each(|&i| fold_of[i] = fold);
            rest = others;
        }
        Ok(folds(&fold_of, self.k))
    }
}

/// Divides a data set into `k` folds in which each class has its share (scikit-learn's
/// `StratifiedKFold`).
///
/// Sizes of folds differ by at most one, and so do the counts of each class. Classes are dealt out
/// in the order in which they first occur, so names of classes do not matter.
///
/// ```
/// use opt_data::{StratifiedKFold, class_counts, digits};
///
/// let data = digits()?.train;
/// let folds = StratifiedKFold::new(5)?.shuffled(0).split(&data, 1)?;
/// let (_, test) = folds[0].of(&data)?;
/// let (all, held) = (class_counts(&data, 1, 10)?, class_counts(&test, 1, 10)?);
/// assert!(all.iter().zip(held).all(|(&all, held)| held == all / 5 || held == all / 5 + 1));
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StratifiedKFold(KFold);

impl StratifiedKFold {
    /// A division into `k` folds.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if `k` is below 2.
    pub fn new(k: usize) -> Result<StratifiedKFold> {
        KFold::new(k).map(StratifiedKFold)
    }

    /// Draws the members of the folds at random, as a function of the seed. Otherwise the examples
    /// of a class that are in the same fold are neighbours among those of the class.
    #[must_use]
    pub fn shuffled(self, seed: u64) -> StratifiedKFold {
        StratifiedKFold(self.0.shuffled(seed))
    }

    /// The folds of a data set with a class label in a field. A class with fewer examples than
    /// there are folds is in as many folds as it has examples.
    ///
    /// # Errors
    /// As [`class_labels`]; [`ErrorKind::Data`] if every class has fewer examples than there are
    /// folds.
    pub fn split(&self, data: &dyn Dataset, label_field: usize) -> Result<Vec<Fold>> {
        let KFold { k, seed } = self.0;
        let labels = class_labels(data, label_field)?;
        let mut members: Vec<Vec<usize>> = Vec::new();
        let mut class_of = HashMap::new();
        for (i, &label) in labels.iter().enumerate() {
            let class = *class_of.entry(label).or_insert(members.len());
            if class == members.len() {
                members.push(Vec::new());
            }
            members[class].push(i);
        }
        let most = members.iter().map(Vec::len).max().unwrap_or(0);
        if most < k {
            return Err(Error::new(
                ErrorKind::Data,
                format!("{k} folds need a class of at least {k} examples, the largest has {most}"),
            ));
        }
        let mut fold_of = vec![0; labels.len()];
        // Examples sorted by class are dealt out in turn, so neither folds nor classes within
        // folds differ by more than one.
        let mut next = 0;
        for (class, members) in members.iter().enumerate() {
            let mut dealt: Vec<usize> = (0..members.len()).map(|i| (next + i) % k).collect();
            dealt.sort_unstable();
            next += members.len();
            let order = match seed {
                Some(seed) => Philox::new(seed).permutation(class as u64, members.len()),
                None => (0..members.len()).collect(),
            };
            for (fold, i) in dealt.into_iter().zip(order) {
                fold_of[members[i]] = fold;
            }
        }
        Ok(folds(&fold_of, k))
    }
}

fn folds(fold_of: &[usize], k: usize) -> Vec<Fold> {
    let fold = |fold: usize| {
        let (test, train) = (0..fold_of.len()).partition(|&i| fold_of[i] == fold);
        Fold { train, test }
    };
    (0..k).map(fold).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tensor, TensorDataset};
    use proptest::prelude::*;

    fn data(labels: &[i64]) -> TensorDataset {
        TensorDataset::new(vec![Tensor::new([labels.len()], labels).unwrap()]).unwrap()
    }

    fn tests(folds: &[Fold]) -> Vec<&[usize]> {
        folds.iter().map(|f| &f.test[..]).collect()
    }

    #[test]
    fn plain_folds_are_runs_and_the_first_are_larger() {
        let folds = KFold::new(3).unwrap().split(&data(&[0; 8])).unwrap();
        assert_eq!(tests(&folds), [&[0, 1, 2][..], &[3, 4, 5], &[6, 7]]);
        assert_eq!(folds[1].train, [0, 1, 2, 6, 7]);
        let (train, test) = folds[1].of(data(&[0; 8])).unwrap();
        assert_eq!((train.len(), test.len()), (5, 3));
        assert!(folds[1].of(data(&[0; 7])).is_err());
    }

    #[test]
    fn shuffling_depends_on_the_seed_alone() {
        let labels: Vec<i64> = (0..40).map(|i| i % 3).collect();
        let data = data(&labels);
        let plain = |seed| KFold::new(4).unwrap().shuffled(seed).split(&data).unwrap();
        let stratified = |seed| {
            let folds = StratifiedKFold::new(4).unwrap().shuffled(seed);
            folds.split(&data, 0).unwrap()
        };
        assert_eq!(plain(1), plain(1));
        assert_ne!(plain(1), plain(2));
        assert_eq!(stratified(1), stratified(1));
        assert_ne!(stratified(1), stratified(2));
    }

    #[test]
    fn bad_arguments_are_errors() {
        assert!(KFold::new(1).is_err());
        assert!(StratifiedKFold::new(0).is_err());
        let few = data(&[0, 1, 1]);
        let error = KFold::new(4).unwrap().split(&few).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        let three = StratifiedKFold::new(3).unwrap();
        let error = three.split(&few, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "3 folds need a class of at least 3 examples, the largest has 2"
        );
        assert!(three.split(&few, 1).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn folds_are_partitions_of_equal_size_and_balance(
            labels in prop::collection::vec(-2i64..3, 2..60),
            k in 2usize..7,
            seed in prop::option::of(any::<u64>()),
        ) {
            let data = data(&labels);
            let mut plain = KFold::new(k).unwrap();
            let mut stratified = StratifiedKFold::new(k).unwrap();
            if let Some(seed) = seed {
                plain = plain.shuffled(seed);
                stratified = stratified.shuffled(seed);
            }
            let enough = (-2..3).any(|c| labels.iter().filter(|&&l| l == c).count() >= k);
            let balanced = stratified.split(&data, 0);
            prop_assert_eq!(balanced.is_ok(), enough);
            let all = [plain.split(&data).ok(), balanced.ok()];
            for (by_class, folds) in all.into_iter().enumerate() {
                let Some(folds) = folds else { continue };
                let mut held: Vec<usize> = folds.iter().flat_map(|f| f.test.clone()).collect();
                held.sort_unstable();
                prop_assert!(held.into_iter().eq(0..labels.len()));
                let differ = |counts: Vec<usize>| counts.iter().max().unwrap() - counts.iter().min().unwrap();
                prop_assert!(differ(folds.iter().map(|f| f.test.len()).collect()) <= 1);
                for fold in &folds {
                    let mut both = [&fold.train[..], &fold.test].concat();
                    both.sort_unstable();
                    prop_assert!(both.into_iter().eq(0..labels.len()));
                    prop_assert!(fold.train.is_sorted() && fold.test.is_sorted());
                }
                if by_class == 1 {
                    for class in -2..3 {
                        let count = |f: &Fold| f.test.iter().filter(|&&i| labels[i] == class).count();
                        prop_assert!(differ(folds.iter().map(count).collect()) <= 1);
                    }
                }
            }
        }
    }
}
