//! Mirrored images.

use opt_core::random::Philox;

use super::{Augment, images, probability};
use crate::{Result, Tensor};

/// Mirrors each image left to right with a probability. Takes `f32` `[N, C, H, W]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomHorizontalFlip {
    probability: f32,
}

/// Mirrors each image top to bottom with a probability. Takes `f32` `[N, C, H, W]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomVerticalFlip {
    probability: f32,
}

impl RandomHorizontalFlip {
    /// With a probability in 0..=1, usually 0.5.
    ///
    /// # Errors
    /// If the probability is outside.
    pub fn new(probability: f32) -> Result<RandomHorizontalFlip> {
        let probability = self::probability(probability)?;
        Ok(RandomHorizontalFlip { probability })
    }
}

impl RandomVerticalFlip {
    /// With a probability in 0..=1, usually 0.5.
    ///
    /// # Errors
    /// If the probability is outside.
    pub fn new(probability: f32) -> Result<RandomVerticalFlip> {
        let probability = self::probability(probability)?;
        Ok(RandomVerticalFlip { probability })
    }
}

/// Calls `flip` with each image that is drawn.
fn drawn(
    batch: &mut Tensor,
    probability: f32,
    seed: u64,
    step: u64,
    mut flip: impl FnMut(&mut [f32], [usize; 2]),
) -> Result<()> {
    let [_, c, h, w] = images(batch)?;
    let random = Philox::new(seed);
    let pixels = batch.as_slice_mut::<f32>()?;
    if pixels.is_empty() {
        return Ok(());
    }
    for (i, image) in pixels.chunks_exact_mut(c * h * w).enumerate() {
        if random.uniform(step, 4 * i as u64) < f64::from(probability) {
            flip(image, [h, w]);
        }
    }
    Ok(())
}

impl Augment for RandomHorizontalFlip {
    fn augment(&self, batch: &mut Tensor, seed: u64, step: u64) -> Result<()> {
        drawn(batch, self.probability, seed, step, |image, [_, w]| {
            image.chunks_exact_mut(w).for_each(<[f32]>::reverse);
        })
    }
}

impl Augment for RandomVerticalFlip {
    fn augment(&self, batch: &mut Tensor, seed: u64, step: u64) -> Result<()> {
        drawn(batch, self.probability, seed, step, |image, [h, w]| {
            for plane in image.chunks_exact_mut(h * w) {
                for y in 0..h / 2 {
                    let (upper, lower) = plane.split_at_mut((h - 1 - y) * w);
                    upper[y * w..(y + 1) * w].swap_with_slice(&mut lower[..w]);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_mirrored() {
        let x: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let mut wide = Tensor::new([1, 2, 2, 3], &x).unwrap();
        let mut tall = Tensor::new([1, 2, 3, 2], &x).unwrap();
        let all = RandomHorizontalFlip::new(1.0).unwrap();
        all.augment(&mut wide, 0, 0).unwrap();
        assert_eq!(
            wide.to_f64s(),
            [2., 1., 0., 5., 4., 3., 8., 7., 6., 11., 10., 9.]
        );
        let all = RandomVerticalFlip::new(1.0).unwrap();
        all.augment(&mut tall, 0, 0).unwrap();
        assert_eq!(
            tall.to_f64s(),
            [4., 5., 2., 3., 0., 1., 10., 11., 8., 9., 6., 7.]
        );
        let none = RandomHorizontalFlip::new(0.0).unwrap();
        let before = wide.clone();
        none.augment(&mut wide, 0, 0).unwrap();
        assert_eq!(wide, before);
    }

    #[test]
    fn as_many_as_the_probability_says() {
        let x: Vec<f32> = (0..2000).map(|v| (v % 2) as f32).collect();
        let mut batch = Tensor::new([1000, 1, 1, 2], &x).unwrap();
        let flip = RandomHorizontalFlip::new(0.3).unwrap();
        flip.augment(&mut batch, 1, 2).unwrap();
        let flipped = batch
            .to_f64s()
            .iter()
            .step_by(2)
            .filter(|&&v| v == 1.0)
            .count();
        assert!((250..350).contains(&flipped), "{flipped}");
    }

    #[test]
    fn bad_arguments_are_errors() {
        for bad in [-0.1, 1.1, f32::NAN] {
            assert!(RandomHorizontalFlip::new(bad).is_err());
            assert!(RandomVerticalFlip::new(bad).is_err());
        }
        let flip = RandomVerticalFlip::new(0.5).unwrap();
        let mut flat = Tensor::new([2, 2], [0f32; 4]).unwrap();
        assert!(flip.augment(&mut flat, 0, 0).is_err());
        let mut none = Tensor::new([0, 1, 2, 2], Vec::<f32>::new()).unwrap();
        flip.augment(&mut none, 0, 0).unwrap();
    }
}
