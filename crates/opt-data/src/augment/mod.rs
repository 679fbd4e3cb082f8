//! Random changes of training images, reproducible and resumable.

mod affine;
mod noise;

pub use affine::{RandomAffine, RandomRotation, RandomShift};
pub use noise::GaussianNoise;

use opt_core::random::Philox;

use crate::{Error, Result, Tensor};

/// A random change of a training batch.
///
/// All randomness is a function of the seed and the step, entry by entry: a run that resumes at a
/// step sees what the uninterrupted run saw. Augment the training part only, before scaling, with
/// a step that differs from batch to batch.
///
/// ```
/// use opt_data::{Augment, Batches, Chain, GaussianNoise, RandomRotation, RandomShift, digits};
///
/// let train = digits()?.train;
/// let augment = Chain::new()
///     .then(RandomShift::new(1.0)?)
///     .then(RandomRotation::new(10.0)?)
///     .then(GaussianNoise::new(0.5)?);
/// for (step, batch) in Batches::new(&train, 64)?.shuffled(0, 0).enumerate() {
///     let mut batch = batch?;
///     augment.augment(&mut batch[0], 0, step as u64)?;
///     assert!(batch[0].is_finite());
/// }
/// # Ok::<(), opt_core::Error>(())
/// ```
pub trait Augment: Send + Sync + std::fmt::Debug {
    /// Changes the examples of a batch: `f32`, `[N, C, H, W]` unless the augmentation says that
    /// it takes other shapes.
    ///
    /// # Errors
    /// If the dtype or shape is not what the augmentation takes; the batch is unchanged then.
    fn augment(&self, batch: &mut Tensor, seed: u64, step: u64) -> Result<()>;
}

/// Augmentations one after the other, each with random numbers of its own.
#[derive(Debug, Default)]
pub struct Chain {
    links: Vec<Box<dyn Augment>>,
}

impl Chain {
    /// A chain that changes nothing yet.
    pub fn new() -> Chain {
        Chain::default()
    }

    /// Adds an augmentation at the end.
    #[must_use]
    pub fn then(mut self, augment: impl Augment + 'static) -> Chain {
        self.links.push(Box::new(augment));
        self
    }
}

impl Augment for Chain {
    fn augment(&self, batch: &mut Tensor, seed: u64, step: u64) -> Result<()> {
        let mut out = batch.clone();
        let random = Philox::new(seed);
        for (i, link) in self.links.iter().enumerate() {
            // A step that no batch has, so that the derived seeds are independent of the streams
            // that the links draw under the seed itself.
            let [a, b, ..] = random.block(u64::MAX, i as u64);
            link.augment(&mut out, u64::from(a) << 32 | u64::from(b), step)?;
        }
        *batch = out;
        Ok(())
    }
}

/// A parameter that has to be finite and not negative.
fn non_negative(what: &str, value: f32) -> Result<f32> {
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    Err(Error::invalid(format!(
        "expected a finite {what} of at least 0, found {value}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digits;

    fn chain() -> Chain {
        Chain::new()
            .then(RandomAffine::new(1.0, 10.0, 0.1).unwrap())
            .then(GaussianNoise::new(0.5).unwrap())
            .then(GaussianNoise::new(0.5).unwrap())
    }

    #[test]
    fn the_same_seed_and_step_give_the_same_batch() {
        let x = digits().unwrap().test.fields()[0].clone();
        let run = |seed, step| {
            let mut x = x.clone();
            chain().augment(&mut x, seed, step).unwrap();
            x
        };
        assert_eq!(run(1, 2), run(1, 2));
        assert_ne!(run(1, 2), run(1, 3));
        assert_ne!(run(1, 2), run(2, 2));
        assert_eq!(x, digits().unwrap().test.fields()[0]);
    }

    #[test]
    fn links_of_a_chain_draw_their_own_numbers() {
        let mut one = Tensor::new([1, 1, 1, 1000], vec![0f32; 1000]).unwrap();
        let mut two = one.clone();
        let noise = || GaussianNoise::new(1.0).unwrap();
        Chain::new().then(noise()).augment(&mut one, 0, 0).unwrap();
        Chain::new()
            .then(noise())
            .then(noise())
            .augment(&mut two, 0, 0)
            .unwrap();
        let variance = |x: &Tensor| x.to_f64s().iter().map(|v| v * v).sum::<f64>() / 1000.0;
        // Independent links add variances (2); equal numbers would add amplitudes (4).
        let ratio = variance(&two) / variance(&one);
        assert!((1.6..2.4).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_failing_link_leaves_the_batch_as_it_was() {
        let mut x = Tensor::new([2, 3], vec![1f32; 6]).unwrap();
        let before = x.clone();
        let chain = Chain::new()
            .then(GaussianNoise::new(1.0).unwrap())
            .then(RandomShift::new(1.0).unwrap());
        assert!(chain.augment(&mut x, 0, 0).is_err());
        assert_eq!(x, before);
    }
}
