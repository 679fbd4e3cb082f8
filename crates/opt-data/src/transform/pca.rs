//! Principal components.

use super::statistics::{Missing, each_batch, map_rows};
use super::{Transform, check_examples, eigen};
use crate::{Dataset, Error, ErrorKind, Result, ResultExt, Tensor};

/// How many principal components are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Keep {
    /// All: as many as there are features or examples, whichever are fewer.
    All,
    /// A number.
    Components(usize),
    /// As few as explain more than this share of the variance, inside (0, 1).
    Variance(f64),
}

/// Principal component analysis (Pearson 1901, Hotelling 1933; scikit-learn's `PCA`): projects
/// examples on the orthogonal directions of the largest variance. A field `[N, ..shape]` becomes
/// `[N, k]`.
///
/// The sign of a component is such that its entry of the largest magnitude is positive. Features
/// are centred and not scaled; put a [`Standardize`](crate::Standardize) before if their units
/// differ. Directions are eigenvectors of a covariance: those with less than about 1e-12 of the
/// largest variance are rounding.
///
/// ```
/// use opt_data::{Keep, Pca, digits};
///
/// let digits = digits()?;
/// let pca = Pca::fit(&digits.train, 0, Keep::Variance(0.9))?;
/// assert_eq!(pca.len(), 21);
/// let test = digits.test.map(0, &pca)?;
/// assert_eq!(test.fields()[0].shape(), [360, 21]);
/// assert_eq!(pca.inverse(&test.fields()[0])?.shape(), [360, 1, 8, 8]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Pca {
    mean: Vec<f64>,
    /// By row.
    components: Vec<f64>,
    variance: Vec<f64>,
    ratio: Vec<f64>,
    singular: Vec<f64>,
    whiten: bool,
    shape: Vec<usize>,
}

impl Pca {
    /// Fits the components on a field of the training part: for `N` examples of `D` features, by
    /// the eigenvectors of the smaller of the `D x D` covariance matrix and the `N x N` matrix of
    /// inner products, in `f64`. Memory is taken for that matrix, and in the second case for a
    /// copy of the field.
    ///
    /// # Errors
    /// As [`Standardize::fit`](crate::Standardize::fit); [`ErrorKind::Data`] if there are fewer
    /// than two examples or no variance; [`ErrorKind::InvalidArgument`] if more components are
    /// asked for than there are, or the share of the variance is not inside (0, 1).
    pub fn fit(train: &dyn Dataset, field: usize, keep: Keep) -> Result<Pca> {
        if let Keep::Variance(share) = keep
            && !(share > 0.0 && share < 1.0)
        {
            return Err(Error::invalid(format!(
                "expected a share of the variance inside (0, 1), found {share}"
            )));
        }
        let n = train.len();
        if n == 1 {
            let message = "expected at least two examples, found one";
            return Err(Error::new(ErrorKind::Data, message).at(format!("field {field}")));
        }
        let mut mean: Vec<f64> = Vec::new();
        let shape = each_batch(train, field, Missing::Refused, |start, x, example| {
            let width: usize = example.iter().product();
            mean.resize(width, 0.0);
            for (i, row) in x.chunks_exact(width).enumerate() {
                for (mean, &value) in mean.iter_mut().zip(row) {
                    *mean += (f64::from(value) - *mean) / (start + i + 1) as f64;
                }
            }
            Ok(())
        })?;
        let d = mean.len();
        let most = n.min(d);
        let wanted = match keep {
            Keep::Components(k) if k == 0 || k > most => {
                return Err(Error::invalid(format!(
                    "expected to keep 1 to {most} components ({n} examples of {d} features), \
                     found {k}"
                )));
            }
            Keep::Components(k) => k,
            Keep::All | Keep::Variance(_) => most,
        };
        let (mut values, vectors) = match d <= n {
            true => covariance(train, field, &mean)?,
            false => inner_products(train, field, &mean, wanted)?,
        };
        // Rounding makes zeros negative.
        values.iter_mut().for_each(|v| *v = v.max(0.0));
        let total: f64 = values.iter().sum();
        if total == 0.0 {
            let message = "all examples are equal: there is no variance to explain";
            return Err(Error::new(ErrorKind::Data, message).at(format!("field {field}")));
        }
        let ratio: Vec<f64> = values.iter().map(|v| v / total).collect();
        let k = match keep {
            Keep::Variance(share) => {
                let mut sum = 0.0;
                let below = ratio.iter().take_while(|&&r| {
                    sum += r;
                    sum <= share
                });
                (below.count() + 1).min(vectors.len() / d)
            }
            Keep::All => vectors.len() / d,
            Keep::Components(k) => k,
        };
        let mut components = vectors;
        components.truncate(k * d);
        components.chunks_exact_mut(d).for_each(flip);
        let singular = values[..k].iter().map(|v| (v * (n - 1) as f64).sqrt());
        Ok(Pca {
            singular: singular.collect(),
            mean,
            components,
            variance: values[..k].to_vec(),
            ratio: ratio[..k].to_vec(),
            whiten: false,
            shape,
        })
    }

    /// Whether projections are divided by their standard deviation on the training part, so that
    /// each has variance 1. Default: false.
    #[must_use]
    pub fn whiten(mut self, whiten: bool) -> Pca {
        self.whiten = whiten;
        self
    }

    /// The number of components.
    pub fn len(&self) -> usize {
        self.variance.len()
    }

    /// Whether there are no components; there always are.
    pub fn is_empty(&self) -> bool {
        self.variance.is_empty()
    }

    /// The mean of each feature.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// The components, each a vector of length 1 with one entry a feature, by falling variance.
    pub fn components(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.components.chunks_exact(self.mean.len())
    }

    /// The variance of the training part along each component (with `N - 1`).
    pub fn explained_variance(&self) -> &[f64] {
        &self.variance
    }

    /// The share of the whole variance along each component.
    pub fn explained_variance_ratio(&self) -> &[f64] {
        &self.ratio
    }

    /// The singular values of the centred training part that belong to the components.
    pub fn singular_values(&self) -> &[f64] {
        &self.singular
    }

    /// What projections are divided by.
    fn scale(&self, component: usize) -> f64 {
        match self.whiten {
            // A direction without variance must not become infinite.
            true => self.variance[component].sqrt().max(f64::EPSILON),
            false => 1.0,
        }
    }

    /// Examples `[N, ..shape]` from projections `[N, k]`: what [`Transform::apply`] started from,
    /// but for what the components that were left out explain.
    ///
    /// # Errors
    /// If the projections are not `f32` `[N, k]`.
    pub fn inverse(&self, projected: &Tensor) -> Result<Tensor> {
        let k = self.len();
        check_examples(projected, &[k])?;
        let mut sums = vec![0.0; self.mean.len()];
        map_rows(projected, k, &self.shape, |from, to| {
            sums.copy_from_slice(&self.mean);
            for (c, (component, &v)) in self.components().zip(from).enumerate() {
                let v = f64::from(v) * self.scale(c);
                for (sum, &entry) in sums.iter_mut().zip(component) {
                    *sum += v * entry;
                }
            }
            for (to, &sum) in to.iter_mut().zip(&sums) {
                *to = sum as f32;
            }
            Ok(())
        })
    }
}

impl Transform for Pca {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        check_examples(field, &self.shape)?;
        let d = self.mean.len();
        let mut centred = vec![0.0; d];
        map_rows(field, d, &[self.len()], |from, to| {
            for ((c, &x), mean) in centred.iter_mut().zip(from).zip(&self.mean) {
                *c = f64::from(x) - mean;
            }
            for (c, (to, component)) in to.iter_mut().zip(self.components()).enumerate() {
                *to = (dot(&centred, component) / self.scale(c)) as f32;
            }
            Ok(())
        })
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Makes the entry of the largest magnitude, the first of several, positive (scikit-learn's
/// `svd_flip` by the components).
fn flip(component: &mut [f64]) {
    let mut largest = 0.0f64;
    for &v in &*component {
        if v.abs() > largest.abs() {
            largest = v;
        }
    }
    if largest < 0.0 {
        component.iter_mut().for_each(|v| *v = -*v);
    }
}

/// Calls `visit` with the centred rows of each batch.
fn centred(
    train: &dyn Dataset,
    field: usize,
    mean: &[f64],
    mut visit: impl FnMut(&[f64]),
) -> Result<()> {
    let d = mean.len();
    let mut rows = Vec::new();
    each_batch(train, field, Missing::Refused, |_, x, _| {
        rows.clear();
        rows.extend(
            x.iter()
                .enumerate()
                .map(|(i, &v)| f64::from(v) - mean[i % d]),
        );
        visit(&rows);
        Ok(())
    })?;
    Ok(())
}

/// Variances and directions by the covariance of the features.
fn covariance(train: &dyn Dataset, field: usize, mean: &[f64]) -> Result<(Vec<f64>, Vec<f64>)> {
    let d = mean.len();
    let mut sums = square(d)?;
    centred(train, field, mean, |rows| {
        for i in 0..d {
            let sums = &mut sums[i * d + i..(i + 1) * d];
            for row in rows.chunks_exact(d) {
                for (sum, v) in sums.iter_mut().zip(&row[i..]) {
                    *sum += row[i] * v;
                }
            }
        }
    })?;
    let examples = (train.len() - 1) as f64;
    for i in 0..d {
        for j in i..d {
            sums[i * d + j] /= examples;
            sums[j * d + i] = sums[i * d + j];
        }
    }
    let eigen = eigen::symmetric(sums, d).at(|| format!("field {field}"))?;
    Ok((eigen.values, eigen.vectors))
}

/// Variances and directions by the inner products of the examples, for fewer examples than
/// features. There are as many directions as are wanted, or as have variance.
fn inner_products(
    train: &dyn Dataset,
    field: usize,
    mean: &[f64],
    wanted: usize,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let (n, d) = (train.len(), mean.len());
    let mut rows = Vec::new();
    centred(train, field, mean, |batch| rows.extend_from_slice(batch))?;
    let row = |i: usize| &rows[i * d..(i + 1) * d];
    let mut products = square(n)?;
    for i in 0..n {
        for j in i..n {
            products[i * n + j] = dot(row(i), row(j)) / (n - 1) as f64;
            products[j * n + i] = products[i * n + j];
        }
    }
    let eigen = eigen::symmetric(products, n).at(|| format!("field {field}"))?;
    // The centred examples sum to 0, so there is always a direction less than examples; and one
    // without variance is any that is orthogonal to all others.
    let largest = eigen.values[0].max(0.0);
    let mut directions: Vec<f64> = Vec::with_capacity(wanted * d);
    for c in 0..wanted {
        let mut direction = vec![0.0; d];
        if eigen.values[c] > largest * f64::EPSILON * n as f64 {
            for (i, weight) in eigen.vectors[c * n..(c + 1) * n].iter().enumerate() {
                for (to, x) in direction.iter_mut().zip(row(i)) {
                    *to += weight * x;
                }
            }
            normalize(&mut direction);
        } else {
            complete(&mut direction, &directions);
        }
        directions.extend(direction);
    }
    Ok((eigen.values, directions))
}

/// A direction that is orthogonal to others, which are fewer than there are features: what the
/// others leave of the axis that they cover least.
fn complete(direction: &mut [f64], others: &[f64]) {
    let d = direction.len();
    let covered = |i: usize| -> f64 { others.chunks_exact(d).map(|o| o[i] * o[i]).sum() };
    let axis = (0..d).min_by(|&a, &b| covered(a).total_cmp(&covered(b)));
    direction[axis.unwrap_or(0)] = 1.0;
    // Twice is enough (Kahan, in Parlett 1980).
    for _ in 0..2 {
        for other in others.chunks_exact(d) {
            let along = dot(direction, other);
            direction
                .iter_mut()
                .zip(other)
                .for_each(|(v, o)| *v -= along * o);
        }
        normalize(direction);
    }
}

fn normalize(direction: &mut [f64]) {
    let length = dot(direction, direction).sqrt();
    direction.iter_mut().for_each(|v| *v /= length);
}

/// A square matrix of zeros.
fn square(n: usize) -> Result<Vec<f64>> {
    let too_large = || {
        Error::new(
            ErrorKind::Data,
            format!("a matrix of {n} x {n} is too large"),
        )
    };
    let len = n.checked_mul(n).ok_or_else(too_large)?;
    let mut matrix = Vec::new();
    matrix.try_reserve_exact(len).map_err(|_| too_large())?;
    matrix.resize(len, 0.0);
    Ok(matrix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorDataset;
    use opt_core::random::Philox;
    use proptest::prelude::*;

    fn data(n: usize, d: usize, seed: u64) -> TensorDataset {
        let random = Philox::new(seed);
        let x: Vec<f32> = (0..n * d)
            .map(|i| (random.normal(0, i as u64) * (1 + i % d) as f64) as f32)
            .collect();
        TensorDataset::new(vec![Tensor::new([n, d], x).unwrap()]).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn components_are_orthonormal_and_explain_the_variance(
            n in 2usize..30, d in 1usize..12, seed: u64,
        ) {
            let train = data(n, d, seed);
            let x = train.fields()[0].to_f64s();
            let pca = Pca::fit(&train, 0, Keep::All).unwrap();
            prop_assert_eq!(pca.len(), n.min(d));
            let components: Vec<&[f64]> = pca.components().collect();
            for (i, a) in components.iter().enumerate() {
                for (j, b) in components.iter().enumerate() {
                    let expected = if i == j { 1.0 } else { 0.0 };
                    prop_assert!((dot(a, b) - expected).abs() < 1e-9, "{i} {j}");
                }
                let largest = a.iter().copied().reduce(|m, v| if v.abs() > m.abs() { v } else { m });
                prop_assert!(largest.unwrap() > 0.0);
            }
            // Variances along the components, and their sum.
            let mut total = 0.0;
            for f in 0..d {
                let mean = (0..n).map(|i| x[i * d + f]).sum::<f64>() / n as f64;
                total += (0..n).map(|i| (x[i * d + f] - mean).powi(2)).sum::<f64>();
            }
            let total = total / (n - 1) as f64;
            let explained: f64 = pca.explained_variance().iter().sum();
            prop_assert!((total - explained).abs() < 1e-9 * total);
            let projected = train.map(0, &pca).unwrap().fields()[0].clone();
            let y = projected.to_f64s();
            let k = pca.len();
            for c in 0..k {
                let variance = (0..n).map(|i| y[i * k + c].powi(2)).sum::<f64>() / (n - 1) as f64;
                prop_assert!((variance - pca.explained_variance()[c]).abs() < 1e-5 * total);
            }
            // Nothing is lost with all components.
            let size = x.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            for whiten in [false, true] {
                let pca = pca.clone().whiten(whiten);
                let back = pca.inverse(&pca.apply(&train.fields()[0]).unwrap()).unwrap();
                for (a, b) in back.to_f64s().iter().zip(&x) {
                    prop_assert!((a - b).abs() < 1e-5 * size, "{a} {b}");
                }
            }
        }
    }

    #[test]
    fn bad_input_is_an_error() {
        let train = data(4, 3, 0);
        for keep in [
            Keep::Components(0),
            Keep::Components(4),
            Keep::Variance(0.0),
            Keep::Variance(1.0),
            Keep::Variance(f64::NAN),
        ] {
            let error = Pca::fit(&train, 0, keep).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
        let error = Pca::fit(&data(1, 3, 0), 0, Keep::All).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        for d in [2, 9] {
            let equal = Tensor::new([3, d], vec![0.1f32; 3 * d]).unwrap();
            let equal = TensorDataset::new(vec![equal]).unwrap();
            let error = Pca::fit(&equal, 0, Keep::All).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("field 0: all examples are equal")
            );
        }
        let pca = Pca::fit(&train, 0, Keep::Components(2)).unwrap();
        let wide = Tensor::new([1, 4], [0f32; 4]).unwrap();
        assert!(pca.apply(&wide).is_err() && pca.inverse(&wide).is_err());
        assert!(Pca::fit(&train, 1, Keep::All).is_err());
    }
}
