//! Shifts, rotations and zooms with bilinear sampling.

use opt_core::random::Philox;

use super::{Augment, non_negative};
use crate::{Error, Result, Tensor};

/// Shifts each image by up to some pixels along both axes, by fractions of a pixel too; what
/// moves in from outside is 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomShift(RandomAffine);

impl RandomShift {
    /// Shifts drawn uniformly from `-pixels..pixels` for each axis.
    ///
    /// # Errors
    /// If `pixels` is negative, NaN or infinite.
    pub fn new(pixels: f32) -> Result<RandomShift> {
        RandomAffine::new(pixels, 0.0, 0.0).map(RandomShift)
    }
}

/// Rotates each image about its centre; what moves in from outside is 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomRotation(RandomAffine);

impl RandomRotation {
    /// Angles drawn uniformly from `-degrees..degrees`.
    ///
    /// # Errors
    /// If `degrees` is negative, NaN or infinite.
    pub fn new(degrees: f32) -> Result<RandomRotation> {
        RandomAffine::new(0.0, degrees, 0.0).map(RandomRotation)
    }
}

/// Shift, rotation and zoom at once: one bilinear interpolation, so less blur than one after the
/// other. Takes `f32` `[N, C, H, W]`; what moves in from outside is 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomAffine {
    pixels: f32,
    degrees: f32,
    zoom: f32,
}

impl RandomAffine {
    /// Shifts from `-pixels..pixels` for each axis, angles from `-degrees..degrees` and factors
    /// from `1 - zoom..1 + zoom`, each drawn uniformly for each image.
    ///
    /// # Errors
    /// If an argument is negative, NaN or infinite, or `zoom` is not below 1.
    pub fn new(pixels: f32, degrees: f32, zoom: f32) -> Result<RandomAffine> {
        let affine = RandomAffine {
            pixels: non_negative("shift in pixels", pixels)?,
            degrees: non_negative("angle in degrees", degrees)?,
            zoom: non_negative("zoom", zoom)?,
        };
        if zoom >= 1.0 {
            return Err(Error::invalid(format!(
                "expected a zoom below 1, found {zoom}"
            )));
        }
        Ok(affine)
    }
}

impl Augment for RandomShift {
    fn augment(&self, batch: &mut Tensor, seed: u64, step: u64) -> Result<()> {
        self.0.augment(batch, seed, step)
    }
}

impl Augment for RandomRotation {
    fn augment(&self, batch: &mut Tensor, seed: u64, step: u64) -> Result<()> {
        self.0.augment(batch, seed, step)
    }
}

impl Augment for RandomAffine {
    fn augment(&self, batch: &mut Tensor, seed: u64, step: u64) -> Result<()> {
        let &[_, c, h, w] = batch.shape() else {
            return Err(Error::shape(format!(
                "expected images [N, C, H, W], found shape {:?}",
                batch.shape()
            )));
        };
        let images = batch.as_slice_mut::<f32>()?;
        if images.is_empty() {
            return Ok(());
        }
        let random = Philox::new(seed);
        let mut source = Padded::new(c, h, w);
        for (i, image) in images.chunks_exact_mut(c * h * w).enumerate() {
            // Uniform in [-1, 1), 24 bits each.
            let [dx, dy, turn, zoom] = random
                .block(step, i as u64)
                .map(|word| (word >> 8) as f32 / (1u32 << 23) as f32 - 1.0);
            let map = Map {
                shift: [dy * self.pixels, dx * self.pixels],
                radians: (turn * self.degrees).to_radians(),
                zoom: 1.0 + zoom * self.zoom,
            };
            source.load(image);
            source.sample(map, image);
        }
        Ok(())
    }
}

/// Where an image goes: rotated counter-clockwise and zoomed about its centre, then shifted down
/// and right.
#[derive(Debug, Clone, Copy)]
struct Map {
    shift: [f32; 2],
    radians: f32,
    zoom: f32,
}

/// An image with a border of one zero on each side, so that sampling needs no test for each of
/// its four neighbours.
struct Padded {
    channels: usize,
    height: usize,
    width: usize,
    pixels: Vec<f32>,
}

impl Padded {
    fn new(channels: usize, height: usize, width: usize) -> Padded {
        Padded {
            channels,
            height,
            width,
            pixels: vec![0.0; channels * (height + 2) * (width + 2)],
        }
    }

    fn load(&mut self, image: &[f32]) {
        let stride = self.width + 2;
        for (r, row) in image.chunks_exact(self.width).enumerate() {
            let (channel, y) = (r / self.height, r % self.height);
            let at = (channel * (self.height + 2) + y + 1) * stride + 1;
            self.pixels[at..at + self.width].copy_from_slice(row);
        }
    }

    fn sample(&self, map: Map, out: &mut [f32]) {
        let (h, w) = (self.height, self.width);
        let stride = w + 2;
        let plane = (h + 2) * stride;
        let centre = [(h as f32 - 1.0) / 2.0, (w as f32 - 1.0) / 2.0];
        let (sin, cos) = map.radians.sin_cos();
        let (sin, cos) = (sin / map.zoom, cos / map.zoom);
        for y in 0..h {
            for x in 0..w {
                // The inverse map: which point of the source lands here. Rows count downward, so
                // counter-clockwise on the screen is clockwise in (x, y).
                let v = y as f32 - centre[0] - map.shift[0];
                let u = x as f32 - centre[1] - map.shift[1];
                let sx = cos * u - sin * v + centre[1];
                let sy = sin * u + cos * v + centre[0];
                // Border coordinates: pixel (0, 0) of the source is (1, 1); the border is 0, and
                // so is all beyond it.
                let (px, py) = (sx + 1.0, sy + 1.0);
                let inside = px >= 0.0 && py >= 0.0 && px < (w + 1) as f32 && py < (h + 1) as f32;
                let at = y * w + x;
                if !inside {
                    for channel in 0..self.channels {
                        out[channel * h * w + at] = 0.0;
                    }
                    continue;
                }
                let (left, top) = (px as usize, py as usize);
                let (fx, fy) = (px - left as f32, py - top as f32);
                for channel in 0..self.channels {
                    let p = channel * plane + top * stride + left;
                    let upper = &self.pixels[p..p + 2];
                    let lower = &self.pixels[p + stride..p + stride + 2];
                    let a = upper[0] + fx * (upper[1] - upper[0]);
                    let b = lower[0] + fx * (lower[1] - lower[0]);
                    out[channel * h * w + at] = a + fy * (b - a);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warp(map: Map, [c, h, w]: [usize; 3], image: &[f32]) -> Vec<f32> {
        let mut source = Padded::new(c, h, w);
        source.load(image);
        let mut out = vec![f32::NAN; image.len()];
        source.sample(map, &mut out);
        out
    }

    const STILL: Map = Map {
        shift: [0.0; 2],
        radians: 0.0,
        zoom: 1.0,
    };

    #[test]
    fn shifts_of_whole_and_half_pixels() {
        let image = [1., 2., 3., 4., 5., 6.];
        let shift = |dy, dx| {
            let map = Map {
                shift: [dy, dx],
                ..STILL
            };
            warp(map, [1, 2, 3], &image)
        };
        assert_eq!(shift(0., 0.), image);
        assert_eq!(shift(1., 0.), [0., 0., 0., 1., 2., 3.]);
        assert_eq!(shift(0., -1.), [2., 3., 0., 5., 6., 0.]);
        assert_eq!(shift(0., 0.5), [0.5, 1.5, 2.5, 2., 4.5, 5.5]);
        assert_eq!(shift(0.5, 0.), [0.5, 1., 1.5, 2.5, 3.5, 4.5]);
        assert_eq!(shift(9., 9.), [0.; 6]);
    }

    #[test]
    fn a_quarter_turn_is_counter_clockwise() {
        let image = [1., 2., 3., 4., 5., 6., 7., 8., 9.];
        let map = Map {
            radians: std::f32::consts::FRAC_PI_2,
            ..STILL
        };
        let two = [image, image.map(|v| v + 10.0)].concat();
        let out = warp(map, [2, 3, 3], &two);
        let expected = [3., 6., 9., 2., 5., 8., 1., 4., 7.];
        for (i, v) in out.into_iter().enumerate() {
            let e = expected[i % 9] + if i < 9 { 0.0 } else { 10.0 };
            assert!((v - e).abs() < 1e-4, "{i}: {v} {e}");
        }
    }

    #[test]
    fn zooming_in_spreads_the_centre() {
        let mut image = [0.0; 25];
        image[12] = 1.0;
        let map = Map { zoom: 2.0, ..STILL };
        let out = warp(map, [1, 5, 5], &image);
        assert_eq!(out[12], 1.0);
        assert_eq!((out[11], out[13], out[7], out[6]), (0.5, 0.5, 0.5, 0.25));
        assert_eq!(out.iter().sum::<f32>(), 4.0);
    }

    #[test]
    fn zero_ranges_change_nothing() {
        let x: Vec<f32> = (0..96).map(|v| v as f32 / 7.0).collect();
        let mut batch = Tensor::new([2, 3, 4, 4], &x).unwrap();
        let still = RandomAffine::new(0.0, 0.0, 0.0).unwrap();
        still.augment(&mut batch, 3, 4).unwrap();
        assert_eq!(batch.to_vec::<f32>().unwrap(), x);
    }

    #[test]
    fn images_do_not_depend_on_their_neighbours_in_the_batch() {
        let x: Vec<f32> = (0..64).map(|v| (v % 13) as f32).collect();
        let mut all = Tensor::new([4, 1, 4, 4], &x).unwrap();
        let mut first = all.slice(0, 0, 2).unwrap();
        let shift = RandomShift::new(1.5).unwrap();
        shift.augment(&mut all, 1, 1).unwrap();
        shift.augment(&mut first, 1, 1).unwrap();
        assert_eq!(all.slice(0, 0, 2).unwrap(), first);
        assert_ne!(first.slice(0, 0, 1).unwrap(), first.slice(0, 1, 2).unwrap());
    }

    #[test]
    fn bad_arguments_are_errors() {
        for bad in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(RandomShift::new(bad).is_err());
            assert!(RandomRotation::new(bad).is_err());
            assert!(RandomAffine::new(0.0, 0.0, bad).is_err());
        }
        assert!(RandomAffine::new(0.0, 0.0, 1.0).is_err());
        let shift = RandomShift::new(1.0).unwrap();
        let mut flat = Tensor::new([2, 2], vec![0f32; 4]).unwrap();
        assert!(shift.augment(&mut flat, 0, 0).is_err());
        let mut ints = Tensor::new([1, 1, 1, 1], [0i64]).unwrap();
        assert!(shift.augment(&mut ints, 0, 0).is_err());
        let mut none = Tensor::new([0, 1, 2, 2], Vec::<f32>::new()).unwrap();
        shift.augment(&mut none, 0, 0).unwrap();
    }
}
