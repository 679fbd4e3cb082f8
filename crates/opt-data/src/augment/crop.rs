//! Parts of images: random crops, and cut-outs.

use opt_core::DType;
use opt_core::random::Philox;

use super::{Augment, below, images};
use crate::{Error, Result, Tensor};

/// Takes a window of each image, at a random place, after a border of zeros was added on all sides.
/// Takes `f32` `[N, C, H, W]` and gives `[N, C, height, width]`.
///
/// With the size of the images themselves and a padding of an eighth of it this is the usual
/// augmentation of CIFAR-10 (He et al. 2016: 32 and 4).
///
/// ```
/// use opt_core::{DType, Tensor};
/// use opt_data::{Augment, RandomCrop};
///
/// let mut batch = Tensor::zeros(DType::F32, [8, 3, 32, 32])?;
/// RandomCrop::new(32, 32)?.padding(4).augment(&mut batch, 0, 0)?;
/// assert_eq!(batch.shape(), [8, 3, 32, 32]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomCrop {
    height: usize,
    width: usize,
    padding: usize,
}

impl RandomCrop {
    /// Windows of a size in pixels.
    ///
    /// # Errors
    /// If a side is 0.
    pub fn new(height: usize, width: usize) -> Result<RandomCrop> {
        if height == 0 || width == 0 {
            return Err(Error::invalid(format!(
                "expected a window of at least 1 x 1 pixels, found {height} x {width}"
            )));
        }
        Ok(RandomCrop {
            height,
            width,
            padding: 0,
        })
    }

    /// The width of the border in pixels. Default: 0.
    #[must_use]
    pub fn padding(mut self, pixels: usize) -> RandomCrop {
        self.padding = pixels;
        self
    }
}

impl Augment for RandomCrop {
    fn augment(&self, batch: &mut Tensor, seed: u64, step: u64) -> Result<()> {
        let [n, c, h, w] = images(batch)?;
        let (height, width) = (self.height, self.width);
        // How many places there are for the window along an axis.
        let places = |size: usize, window: usize| {
            let padded = self.padding.checked_mul(2)?.checked_add(size)?;
            padded.checked_sub(window)?.checked_add(1)
        };
        let (Some(down), Some(right)) = (places(h, height), places(w, width)) else {
            return Err(Error::shape(format!(
                "a window of {height} x {width} pixels does not fit into images of {h} x {w} with \
                 a border of {}",
                self.padding
            )));
        };
        let random = Philox::new(seed);
        let source = batch.contiguous();
        let from = source.as_slice::<f32>()?;
        let mut out = Tensor::zeros(DType::F32, [n, c, height, width])?;
        let to = out.as_slice_mut::<f32>()?;
        for i in 0..n {
            let [a, b, ..] = random.block(step, i as u64);
            let (top, left) = (below(a, down), below(b, right));
            // The part of the window that lies within the image.
            let columns = self.padding.max(left)..(self.padding + w).min(left + width);
            for y in 0..height {
                let Some(row) = (top + y).checked_sub(self.padding).filter(|&row| row < h) else {
                    continue;
                };
                if columns.is_empty() {
                    continue;
                }
                for channel in i * c..(i + 1) * c {
                    let from = &from[(channel * h + row) * w..][..w];
                    let to = &mut to[(channel * height + y) * width..][..width];
                    to[columns.start - left..columns.end - left].copy_from_slice(
                        &from[columns.start - self.padding..columns.end - self.padding],
                    );
                }
            }
        }
        *batch = out;
        Ok(())
    }
}

/// Sets squares of each image to 0, in all channels (cut-out; DeVries & Taylor 2017). Takes `f32`
/// `[N, C, H, W]`.
///
/// The centre of a square is any pixel, each with the same probability, so a part of the square
/// may lie outside, as in the paper. Apply it to images that are scaled to mean 0, or to those
/// whose background is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cutout {
    side: usize,
    holes: usize,
}

impl Cutout {
    /// One square of a side in pixels for each image; the paper has 16 for CIFAR-10.
    ///
    /// # Errors
    /// If the side is 0.
    pub fn new(side: usize) -> Result<Cutout> {
        if side == 0 {
            return Err(Error::invalid("a cut-out of 0 pixels changes nothing"));
        }
        Ok(Cutout { side, holes: 1 })
    }

    /// The number of squares for each image, which may overlap. Default: 1.
    #[must_use]
    pub fn holes(mut self, holes: usize) -> Cutout {
        self.holes = holes;
        self
    }
}

impl Augment for Cutout {
    fn augment(&self, batch: &mut Tensor, seed: u64, step: u64) -> Result<()> {
        let [_, c, h, w] = images(batch)?;
        let pixels = batch.as_slice_mut::<f32>()?;
        if pixels.is_empty() {
            return Ok(());
        }
        let random = Philox::new(seed);
        for (i, image) in pixels.chunks_exact_mut(c * h * w).enumerate() {
            for hole in 0..self.holes {
                let number = (i as u64).wrapping_mul(self.holes as u64) + hole as u64;
                let [a, b, ..] = random.block(step, number);
                let rows = window(below(a, h), self.side, h);
                let columns = window(below(b, w), self.side, w);
                for plane in image.chunks_exact_mut(h * w) {
                    for y in rows.clone() {
                        plane[y * w..][columns.clone()].fill(0.0);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Pixels about a centre, as many as a side has unless they lie outside.
pub(super) fn window(centre: usize, side: usize, size: usize) -> std::ops::Range<usize> {
    let start = centre.saturating_sub(side / 2);
    let end = (centre + side.div_ceil(2)).min(size);
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(shape: [usize; 4]) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::new(shape, (1..=n).map(|v| v as f32).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn crops_are_windows_of_the_padded_image() {
        let [n, c, h, w] = [40, 2, 3, 4];
        for (height, width, padding) in [(3, 4, 2), (2, 2, 0), (1, 6, 1), (7, 2, 2), (1, 1, 5)] {
            let source = numbered([n, c, h, w]);
            let mut batch = source.clone();
            let crop = RandomCrop::new(height, width).unwrap().padding(padding);
            crop.augment(&mut batch, 3, 5).unwrap();
            assert_eq!(batch.shape(), [n, c, height, width]);
            let (from, out) = (source.to_f64s(), batch.to_f64s());
            let mut places = std::collections::BTreeSet::new();
            for i in 0..n {
                let at = |channel: usize, y: usize, x: usize| {
                    let inside =
                        (padding..padding + h).contains(&y) && (padding..padding + w).contains(&x);
                    if !inside {
                        return 0.0;
                    }
                    from[((i * c + channel) * h + y - padding) * w + x - padding]
                };
                let matches = |top: usize, left: usize| {
                    (0..c).all(|ch| {
                        (0..height).all(|y| {
                            (0..width).all(|x| {
                                out[((i * c + ch) * height + y) * width + x]
                                    == at(ch, top + y, left + x)
                            })
                        })
                    })
                };
                let (down, right) = (h + 2 * padding - height, w + 2 * padding - width);
                let place = (0..=down)
                    .flat_map(|t| (0..=right).map(move |l| (t, l)))
                    .find(|&(t, l)| matches(t, l));
                places.insert(place.expect("a window of the padded image"));
            }
            // Where windows differ, many places are drawn.
            let all = (h + 2 * padding - height + 1) * (w + 2 * padding - width + 1);
            if padding < height.min(width) {
                assert!(places.len() > all.min(20) / 2, "{} of {all}", places.len());
            }
        }
    }

    #[test]
    fn squares_are_cut_out_of_all_channels() {
        let source = numbered([200, 2, 5, 6]);
        let mut batch = source.clone();
        Cutout::new(3).unwrap().augment(&mut batch, 0, 1).unwrap();
        let (before, after) = (source.to_f64s(), batch.to_f64s());
        let mut sizes = std::collections::BTreeSet::new();
        for image in 0..200 {
            let holes = |channel: usize| -> Vec<usize> {
                let at = (image * 2 + channel) * 30;
                (0..30).filter(|p| after[at + p] == 0.0).collect()
            };
            let hole = holes(0);
            assert_eq!(hole, holes(1));
            let rows: std::collections::BTreeSet<usize> = hole.iter().map(|p| p / 6).collect();
            let columns: std::collections::BTreeSet<usize> = hole.iter().map(|p| p % 6).collect();
            // A rectangle: the square, or what of it is inside.
            assert_eq!(hole.len(), rows.len() * columns.len());
            assert!((2..=3).contains(&rows.len()) && (2..=3).contains(&columns.len()));
            sizes.insert(hole.len());
            for p in 0..60 {
                let at = image * 60 + p;
                assert!(after[at] == 0.0 || after[at] == before[at]);
            }
        }
        assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [4, 6, 9]);
        let mut many = source.clone();
        Cutout::new(3)
            .unwrap()
            .holes(4)
            .augment(&mut many, 0, 1)
            .unwrap();
        let zeros = |x: &Tensor| x.to_f64s().iter().filter(|&&v| v == 0.0).count();
        assert!(zeros(&many) > 2 * zeros(&batch));
        let mut whole = source.clone();
        Cutout::new(99).unwrap().augment(&mut whole, 0, 1).unwrap();
        assert_eq!(zeros(&whole), 200 * 60);
    }

    #[test]
    fn bad_arguments_are_errors() {
        assert!(RandomCrop::new(0, 1).is_err());
        assert!(Cutout::new(0).is_err());
        let mut batch = numbered([1, 1, 3, 3]);
        let before = batch.clone();
        let error = RandomCrop::new(6, 3)
            .unwrap()
            .padding(1)
            .augment(&mut batch, 0, 0);
        assert_eq!(error.unwrap_err().kind(), crate::ErrorKind::Shape);
        let endless = RandomCrop::new(1, 1).unwrap().padding(usize::MAX);
        assert!(endless.augment(&mut batch, 0, 0).is_err());
        let mut flat = Tensor::new([2, 2], [0f32; 4]).unwrap();
        assert!(Cutout::new(1).unwrap().augment(&mut flat, 0, 0).is_err());
        let mut ints = Tensor::new([1, 1, 1, 1], [0i64]).unwrap();
        assert!(
            RandomCrop::new(1, 1)
                .unwrap()
                .augment(&mut ints, 0, 0)
                .is_err()
        );
        assert_eq!(batch, before);
        let mut none = Tensor::new([0, 1, 2, 2], Vec::<f32>::new()).unwrap();
        RandomCrop::new(1, 1)
            .unwrap()
            .augment(&mut none, 0, 0)
            .unwrap();
        Cutout::new(1).unwrap().augment(&mut none, 0, 0).unwrap();
    }
}
