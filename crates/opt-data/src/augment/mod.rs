//! Random changes of training images, reproducible and resumable.

mod affine;
mod crop;
mod flip;
mod mix;
mod noise;

pub use affine::{RandomAffine, RandomRotation, RandomShift};
pub use crop::{Cutout, RandomCrop};
pub use flip::{RandomHorizontalFlip, RandomVerticalFlip};
pub use mix::{CutMix, MixUp};
pub use noise::GaussianNoise;

use opt_core::DType;
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
///     augment.augment_batch(&mut batch, 0, step as u64)?;
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

    /// Changes a whole batch, inputs and targets: what training calls. By default it changes the
    /// first field by [`Augment::augment`]; augmentations that change targets too, such as
    /// [`MixUp`], do it here alone.
    ///
    /// # Errors
    /// As [`Augment::augment`]; if there are no fields. All fields are unchanged then.
    fn augment_batch(&self, fields: &mut [Tensor], seed: u64, step: u64) -> Result<()> {
        match fields.first_mut() {
            Some(first) => self.augment(first, seed, step),
            None => Err(Error::shape("a batch without fields")),
        }
    }
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

impl Chain {
    /// The links, each with the seed of its own random numbers.
    fn seeded(&self, seed: u64) -> impl Iterator<Item = (&dyn Augment, u64)> {
        let random = Philox::new(seed);
        self.links.iter().enumerate().map(move |(i, link)| {
            // A step that no batch has, so that the derived seeds are independent of the streams
            // that the links draw under the seed itself.
            let [a, b, ..] = random.block(u64::MAX, i as u64);
            (&**link, u64::from(a) << 32 | u64::from(b))
        })
    }
}

impl Augment for Chain {
    fn augment(&self, batch: &mut Tensor, seed: u64, step: u64) -> Result<()> {
        let mut out = batch.clone();
        for (link, seed) in self.seeded(seed) {
            link.augment(&mut out, seed, step)?;
        }
        *batch = out;
        Ok(())
    }

    fn augment_batch(&self, fields: &mut [Tensor], seed: u64, step: u64) -> Result<()> {
        let mut out = fields.to_vec();
        for (link, seed) in self.seeded(seed) {
            link.augment_batch(&mut out, seed, step)?;
        }
        fields.clone_from_slice(&out);
        Ok(())
    }
}

/// The sizes of images `[N, C, H, W]`, which are `f32`.
fn images(batch: &Tensor) -> Result<[usize; 4]> {
    let &[n, c, h, w] = batch.shape() else {
        return Err(Error::shape(format!(
            "expected images [N, C, H, W], found shape {:?}",
            batch.shape()
        )));
    };
    if batch.dtype() != DType::F32 {
        return Err(Error::dtype(format!(
            "expected images of f32, found {}",
            batch.dtype()
        )));
    }
    Ok([n, c, h, w])
}

/// A number in `0..n` from 32 random bits.
fn below(word: u32, n: usize) -> usize {
    ((u128::from(word) * n as u128) >> 32) as usize
}

/// A parameter that has to be in 0..=1.
fn probability(value: f32) -> Result<f32> {
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(Error::invalid(format!(
        "expected a probability in 0..=1, found {value}"
    )))
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
    fn whole_batches_go_through_all_links() {
        let test = digits().unwrap().test;
        let fields = test.fields().to_vec();
        let chain = || {
            Chain::new()
                .then(RandomCrop::new(8, 8).unwrap().padding(1))
                .then(RandomHorizontalFlip::new(0.5).unwrap())
        };
        let mut inputs = fields[0].clone();
        chain().augment(&mut inputs, 1, 2).unwrap();
        let mut batch = fields.clone();
        chain().augment_batch(&mut batch, 1, 2).unwrap();
        assert_eq!(batch, [inputs, fields[1].clone()]);
        let mixed = chain().then(MixUp::new(0.2, 10).unwrap());
        let mut batch = fields.clone();
        mixed.augment_batch(&mut batch, 1, 2).unwrap();
        assert_eq!(batch[1].shape(), [360, 10]);
        // The last link fails: nine classes are not enough.
        let bad = chain().then(MixUp::new(0.2, 9).unwrap());
        let mut batch = fields.clone();
        assert!(bad.augment_batch(&mut batch, 1, 2).is_err());
        assert_eq!(batch, fields);
        assert!(chain().augment_batch(&mut [], 1, 2).is_err());
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
