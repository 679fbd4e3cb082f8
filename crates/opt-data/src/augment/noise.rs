//! Additive noise.

use opt_core::random::Philox;

use super::{Augment, non_negative};
use crate::{Result, Tensor};

/// Adds independent normal noise of mean 0 to every element; takes any shape. Results are not
/// clipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaussianNoise {
    std: f32,
}

impl GaussianNoise {
    /// Noise of a standard deviation, in the units of the data.
    ///
    /// # Errors
    /// If it is negative, NaN or infinite.
    pub fn new(std: f32) -> Result<GaussianNoise> {
        Ok(GaussianNoise {
            std: non_negative("standard deviation", std)?,
        })
    }
}

impl Augment for GaussianNoise {
    fn augment(&self, batch: &mut Tensor, seed: u64, step: u64) -> Result<()> {
        let random = Philox::new(seed);
        for (i, quad) in batch.as_slice_mut::<f32>()?.chunks_mut(4).enumerate() {
            // `Philox::normal` for four numbers at once: its entries 4i to 4i + 3.
            let words = random.block(step, i as u64);
            let u = words.map(|w| (w >> 8) as f32 / (1u32 << 24) as f32);
            let mut normals = [0.0; 4];
            for pair in [0, 2] {
                let radius = self.std * (-2.0 * (1.0 - u[pair]).ln()).sqrt();
                let (sin, cos) = (std::f32::consts::TAU * u[pair + 1]).sin_cos();
                normals[pair] = radius * cos;
                normals[pair + 1] = radius * sin;
            }
            for (v, n) in quad.iter_mut().zip(normals) {
                *v += n;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_those_of_the_stream() {
        let mut x = Tensor::new([7], vec![0f32; 7]).unwrap();
        GaussianNoise::new(2.0)
            .unwrap()
            .augment(&mut x, 5, 9)
            .unwrap();
        for (i, v) in x.to_f64s().into_iter().enumerate() {
            let expected = 2.0 * Philox::new(5).normal(9, i as u64);
            assert!((v - expected).abs() < 1e-5, "{v} {expected}");
        }
    }

    #[test]
    fn bad_arguments_are_errors() {
        for std in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(GaussianNoise::new(std).is_err());
        }
        let mut x = Tensor::new([1], [1i64]).unwrap();
        assert!(
            GaussianNoise::new(1.0)
                .unwrap()
                .augment(&mut x, 0, 0)
                .is_err()
        );
    }
}
