//! Mixtures of examples, whose targets are mixed as well.

use opt_core::random::Philox;

use super::crop::window;
use super::{Augment, below, images};
use crate::{Error, Result, ResultExt, Tensor, one_hot};

/// Mixes each example of a batch with another one (mix-up; Zhang et al. 2018):
/// `x = lambda x_a + (1 - lambda) x_b`, and the same for the targets.
///
/// It changes whole batches ([`Augment::augment_batch`]): the last field is the target, and all
/// others, which are `f32`, are mixed. Class labels, `i64` `[N]`, become probabilities, `f32`
/// `[N, classes]`, so the loss has to take those; `f32` targets `[N, ..]` are mixed as they are.
///
/// As in the authors' code `lambda` is drawn from a Beta distribution once for each batch, and the
/// partners are a random permutation of the batch.
///
/// ```
/// use opt_core::Tensor;
/// use opt_data::{Augment, MixUp};
///
/// let images = Tensor::new([2, 1, 1, 1], [0f32, 10.0])?;
/// let labels = Tensor::new([2], [0i64, 2])?;
/// let mut batch = [images, labels];
/// MixUp::new(0.2, 3)?.augment_batch(&mut batch, 0, 0)?;
/// assert_eq!(batch[1].shape(), [2, 3]);
/// let sum: f64 = batch[1].to_f64s()[..3].iter().sum();
/// assert!((sum - 1.0).abs() < 1e-6);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MixUp {
    alpha: f64,
    classes: usize,
}

impl MixUp {
    /// With `lambda` from `Beta(alpha, alpha)`, `alpha` usually 0.1 to 0.4; for a number of
    /// classes, which does not matter for `f32` targets.
    ///
    /// # Errors
    /// If `alpha` is not above 0 and finite, or there are no classes.
    pub fn new(alpha: f64, classes: usize) -> Result<MixUp> {
        check(alpha, classes)?;
        Ok(MixUp { alpha, classes })
    }

    /// The share of the example itself that is drawn for a batch.
    pub fn lambda(&self, seed: u64, step: u64) -> f64 {
        beta(Philox::new(seed), step, self.alpha)
    }
}

impl Augment for MixUp {
    /// Fails: targets have to be mixed as well, by [`Augment::augment_batch`].
    fn augment(&self, _: &mut Tensor, _: u64, _: u64) -> Result<()> {
        Err(whole_batches("mix-up"))
    }

    fn augment_batch(&self, fields: &mut [Tensor], seed: u64, step: u64) -> Result<()> {
        let (inputs, target) = parts(fields)?;
        let n = examples(inputs, target)?;
        let lambda = self.lambda(seed, step);
        let partners = Philox::new(seed).permutation(step, n);
        let mut mixed = Vec::with_capacity(fields.len());
        for (f, input) in inputs.iter().enumerate() {
            mixed.push(mix(input, &partners, lambda).at(|| format!("field {f}"))?);
        }
        let place = || format!("field {}", inputs.len());
        let target = probabilities(target, self.classes).at(place)?;
        mixed.push(mix(&target, &partners, lambda).at(place)?);
        fields.clone_from_slice(&mixed);
        Ok(())
    }
}

/// Puts a rectangle of another image into each image of a batch, and mixes the targets by area
/// (CutMix; Yun et al. 2019).
///
/// It changes whole batches ([`Augment::augment_batch`]) of two fields: images `f32`
/// `[N, C, H, W]`, and targets as those of [`MixUp`]. The rectangle's share of the area is drawn as
/// `1 - lambda` from a Beta distribution once for each batch, and its centre uniformly; targets are
/// mixed by the share that lies within the image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CutMix {
    alpha: f64,
    classes: usize,
}

impl CutMix {
    /// With `lambda` from `Beta(alpha, alpha)`; the paper has 1. For a number of classes, which
    /// does not matter for `f32` targets.
    ///
    /// # Errors
    /// If `alpha` is not above 0 and finite, or there are no classes.
    pub fn new(alpha: f64, classes: usize) -> Result<CutMix> {
        check(alpha, classes)?;
        Ok(CutMix { alpha, classes })
    }
}

impl Augment for CutMix {
    /// Fails: targets have to be mixed as well, by [`Augment::augment_batch`].
    fn augment(&self, _: &mut Tensor, _: u64, _: u64) -> Result<()> {
        Err(whole_batches("CutMix"))
    }

    fn augment_batch(&self, fields: &mut [Tensor], seed: u64, step: u64) -> Result<()> {
        let [source, target] = &*fields else {
            return Err(Error::shape(format!(
                "expected images and targets, found {} fields",
                fields.len()
            )));
        };
        let [n, c, h, w] = images(source).at(|| "field 0")?;
        examples(std::slice::from_ref(source), target)?;
        let random = Philox::new(seed);
        let lambda = beta(random, step, self.alpha);
        let partners = random.permutation(step, n);
        let side = |size: usize| (size as f64 * (1.0 - lambda).sqrt()) as usize;
        let [a, b, ..] = random.block(step, PLACE);
        let (rows, columns) = match source.is_empty() {
            true => (0..0, 0..0),
            false => (
                window(below(a, h), side(h), h),
                window(below(b, w), side(w), w),
            ),
        };
        let share = (rows.len() * columns.len()) as f64 / (h * w).max(1) as f64;
        let target = probabilities(target, self.classes)
            .and_then(|target| mix(&target, &partners, 1.0 - share))
            .at(|| "field 1")?;
        let source = source.contiguous();
        let from = source.as_slice::<f32>()?;
        let mut out = source.clone();
        let to = out.as_slice_mut::<f32>()?;
        for (i, &partner) in partners.iter().enumerate() {
            for channel in 0..c {
                for y in rows.clone() {
                    let row = |image: usize| ((image * c + channel) * h + y) * w;
                    let from = &from[row(partner)..][columns.clone()];
                    to[row(i)..][columns.clone()].copy_from_slice(from);
                }
            }
        }
        fields[0] = out;
        fields[1] = target;
        Ok(())
    }
}

fn check(alpha: f64, classes: usize) -> Result<()> {
    if !(alpha.is_finite() && alpha > 0.0) {
        return Err(Error::invalid(format!(
            "expected a finite alpha above 0, found {alpha}"
        )));
    }
    if classes == 0 {
        return Err(Error::invalid("expected at least one class, found 0"));
    }
    Ok(())
}

fn whole_batches(what: &str) -> Error {
    Error::unsupported(format!(
        "{what} changes inputs and targets together: call `Augment::augment_batch`"
    ))
}

fn parts(fields: &[Tensor]) -> Result<(&[Tensor], &Tensor)> {
    match fields.split_last() {
        Some((target, inputs)) if !inputs.is_empty() => Ok((inputs, target)),
        _ => Err(Error::shape(format!(
            "expected inputs and targets, found {} fields",
            fields.len()
        ))),
    }
}

/// The number of examples, which all fields have.
fn examples(inputs: &[Tensor], target: &Tensor) -> Result<usize> {
    let mut sizes = inputs.iter().chain([target]).map(|f| f.shape().first());
    match sizes.next() {
        Some(Some(&n)) if sizes.all(|size| size == Some(&n)) => Ok(n),
        _ => Err(Error::shape(
            "expected fields of as many examples, along the first axis",
        )),
    }
}

/// Targets that can be mixed.
fn probabilities(target: &Tensor, classes: usize) -> Result<Tensor> {
    match target.dtype().is_float() {
        true => Ok(target.clone()),
        false => one_hot(target, classes),
    }
}

/// `lambda x + (1 - lambda) x[partners]` along the first axis.
fn mix(x: &Tensor, partners: &[usize], lambda: f64) -> Result<Tensor> {
    let mut out = x.contiguous();
    let other = out.select(0, partners)?;
    let other = other.as_slice::<f32>()?;
    for (v, &o) in out.as_slice_mut::<f32>()?.iter_mut().zip(other) {
        *v = (lambda * f64::from(*v) + (1.0 - lambda) * f64::from(o)) as f32;
    }
    Ok(out)
}

/// Blocks of random numbers that no permutation of a batch has: the place of a rectangle, and
/// from [`SHAPE`] on those that a Beta number is made of.
const PLACE: u64 = 1 << 62;
const SHAPE: u64 = 1 << 63;

/// A number with the distribution `Beta(alpha, alpha)`, from two with Gamma distributions; by
/// logarithms, because small shapes give numbers that underflow.
fn beta(random: Philox, step: u64, alpha: f64) -> f64 {
    let [a, b] = [0, 1].map(|half| log_gamma_variate(random, step, SHAPE + (half << 32), alpha));
    1.0 / (1.0 + (b - a).exp())
}

/// The logarithm of a number with a Gamma distribution (Marsaglia & Tsang 2000; for shapes below 1
/// from the shape above, by their last remark).
fn log_gamma_variate(random: Philox, step: u64, start: u64, shape: f64) -> f64 {
    let larger = if shape < 1.0 { shape + 1.0 } else { shape };
    let d = larger - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    let mut block = start;
    loop {
        // Inside (0, 1).
        let [u1, u2, accept, power] = random
            .block(step, block)
            .map(|word| (f64::from(word) + 0.5) / 4_294_967_296.0);
        let x = (-2.0 * u1.ln()).sqrt() * (std::f64::consts::TAU * u2).cos();
        let v = (1.0 + c * x).powi(3);
        // About one in twenty is drawn again.
        if v > 0.0 && accept.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            let log = (d * v).ln();
            return if shape < 1.0 {
                log + power.ln() / shape
            } else {
                log
            };
        }
        block += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn batch(n: usize) -> [Tensor; 2] {
        let x: Vec<f32> = (0..n * 30).map(|v| v as f32).collect();
        let labels: Vec<i64> = (0..n as i64).map(|v| v % 3).collect();
        [
            Tensor::new([n, 2, 3, 5], x).unwrap(),
            Tensor::new([n], labels).unwrap(),
        ]
    }

    #[test]
    fn beta_numbers_have_their_distribution() {
        for alpha in [0.1, 0.5, 1.0, 3.0, 50.0] {
            let n = 20_000;
            let mut x: Vec<f64> = (0..n).map(|i| beta(Philox::new(7), i, alpha)).collect();
            assert!(x.iter().all(|v| (0.0..=1.0).contains(v)));
            let mean = x.iter().sum::<f64>() / n as f64;
            let variance = x.iter().map(|v| (v - 0.5).powi(2)).sum::<f64>() / n as f64;
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((mean - 0.5).abs() < 0.01, "{alpha}: {mean}");
            assert!(
                (variance / expected - 1.0).abs() < 0.04,
                "{alpha}: {variance}"
            );
            // The distribution function of the arcsine law and of the uniform one: Kolmogorov's
            // statistic, whose 99.9 % quantile is 1.95 / sqrt(n).
            let cdf = |v: f64| match alpha {
                0.5 => 2.0 / std::f64::consts::PI * v.sqrt().asin(),
                _ => v,
            };
            if alpha == 0.5 || alpha == 1.0 {
                x.sort_unstable_by(f64::total_cmp);
                let far = x.iter().enumerate().map(|(i, &v)| {
                    let steps = [i as f64 / n as f64, (i + 1) as f64 / n as f64];
                    steps
                        .map(|s| (s - cdf(v)).abs())
                        .into_iter()
                        .fold(0.0, f64::max)
                });
                let far = far.fold(0.0, f64::max);
                assert!(far < 1.95 / (n as f64).sqrt(), "{alpha}: {far}");
            }
        }
        assert!((0.0..=1.0).contains(&beta(Philox::new(0), 0, 1e-6)));
        assert!((beta(Philox::new(0), 0, 1e9) - 0.5).abs() < 1e-3);
    }

    #[test]
    fn mix_up_follows_the_formula() {
        let before = batch(8);
        let mut after = before.clone();
        let mix_up = MixUp::new(0.4, 3).unwrap();
        let (seed, step) = (3, 11);
        mix_up.augment_batch(&mut after, seed, step).unwrap();
        let lambda = mix_up.lambda(seed, step);
        assert!(lambda > 0.0 && lambda < 1.0);
        let partners = Philox::new(seed).permutation(step, 8);
        assert!(partners.iter().enumerate().any(|(i, &p)| i != p));
        let (x, y) = (before[0].to_f64s(), before[1].to_f64s());
        let (mixed, probabilities) = (after[0].to_f64s(), after[1].to_f64s());
        assert_eq!(after[1].shape(), [8, 3]);
        for (i, &p) in partners.iter().enumerate() {
            for e in 0..30 {
                let expected = lambda * x[i * 30 + e] + (1.0 - lambda) * x[p * 30 + e];
                assert!((mixed[i * 30 + e] - expected).abs() < 1e-4);
            }
            for class in 0..3 {
                let is = |label: f64| if label == class as f64 { 1.0 } else { 0.0 };
                let expected = lambda * is(y[i]) + (1.0 - lambda) * is(y[p]);
                assert!((probabilities[i * 3 + class] - expected).abs() < 1e-6);
            }
        }
        let mut again = before.clone();
        mix_up.augment_batch(&mut again, seed, step).unwrap();
        assert_eq!(again, after);
        mix_up.augment_batch(&mut again, seed, step + 1).unwrap();
        assert_ne!(again, after);
    }

    #[test]
    fn cut_mix_takes_labels_by_area() {
        let before = batch(6);
        let x = before[0].to_f64s();
        let mut cut = 0;
        for step in 0..40 {
            let mut after = before.clone();
            CutMix::new(1.0, 3)
                .unwrap()
                .augment_batch(&mut after, 5, step)
                .unwrap();
            let partners = Philox::new(5).permutation(step, 6);
            let (mixed, probabilities) = (after[0].to_f64s(), after[1].to_f64s());
            for (i, &p) in partners.iter().enumerate().filter(|(i, p)| i != *p) {
                let taken = |channel: usize| -> Vec<usize> {
                    let at = |image: usize, pixel: usize| image * 30 + channel * 15 + pixel;
                    (0..15)
                        .filter(|&pixel| {
                            let found = mixed[at(i, pixel)];
                            assert!(found == x[at(i, pixel)] || found == x[at(p, pixel)]);
                            found == x[at(p, pixel)]
                        })
                        .collect()
                };
                let hole = taken(0);
                assert_eq!(hole, taken(1));
                let rows: std::collections::BTreeSet<_> = hole.iter().map(|p| p / 5).collect();
                let columns: std::collections::BTreeSet<_> = hole.iter().map(|p| p % 5).collect();
                assert_eq!(hole.len(), rows.len() * columns.len());
                cut += usize::from(!hole.is_empty() && hole.len() < 15);
                let share = hole.len() as f64 / 15.0;
                let (own, other) = (i % 3, p % 3);
                let expected = if own == other { 1.0 } else { 1.0 - share };
                assert!((probabilities[i * 3 + own] - expected).abs() < 1e-6);
            }
        }
        assert!(cut > 50, "{cut}");
    }

    #[test]
    fn bad_arguments_are_errors_and_leave_the_batch() {
        for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(MixUp::new(alpha, 3).is_err());
            assert!(CutMix::new(alpha, 3).is_err());
        }
        assert!(MixUp::new(1.0, 0).is_err());
        let (mix_up, cut_mix) = (MixUp::new(1.0, 2).unwrap(), CutMix::new(1.0, 2).unwrap());
        // Three classes, where two are said.
        let mut fields = batch(4);
        let before = fields.clone();
        let error = mix_up.augment_batch(&mut fields, 0, 0).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::Data, "field 1: row 2: label 2 is not in 0..2")
        );
        assert!(cut_mix.augment_batch(&mut fields, 0, 0).is_err());
        assert_eq!(fields, before);
        let error = mix_up.augment(&mut fields[0], 0, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(cut_mix.augment(&mut fields[0], 0, 0).is_err());
        let x = Tensor::new([2, 1, 1, 1], [0f32, 1.]).unwrap();
        let ints = Tensor::new([2, 1, 1, 1], [0i64, 1]).unwrap();
        let y = Tensor::new([2], [0i64, 1]).unwrap();
        let three = Tensor::new([3], [0i64, 1, 0]).unwrap();
        for fields in [
            vec![],
            vec![x.clone()],
            vec![x.clone(), three],
            vec![ints, y.clone()],
            vec![x.clone(), Tensor::scalar(0i64)],
        ] {
            assert!(mix_up.augment_batch(&mut fields.clone(), 0, 0).is_err());
            assert!(cut_mix.augment_batch(&mut fields.clone(), 0, 0).is_err());
        }
        // Regression targets are mixed as they are; two inputs only by mix-up.
        let soft = Tensor::new([2], [0f32, 1.]).unwrap();
        let mut two = vec![x.clone(), x, soft];
        mix_up.augment_batch(&mut two, 0, 0).unwrap();
        assert_eq!(two[2].shape(), [2]);
        assert!(cut_mix.augment_batch(&mut two, 0, 0).is_err());
    }
}
