//! Where tile products find a layer's activations.

use super::super::int8::Layer;
use super::image::{Image, PIXELS};
use super::{Activations, BLOCK, Lines, ROW, ROWS, STEPS, TILE};

/// Where the activations are read.
#[derive(Debug)]
pub(super) enum Place {
    /// Rows of `width` bytes; straight from memory where `direct`, except for the last rows.
    Rows {
        count: usize,
        width: usize,
        direct: bool,
    },
    /// Pixels of an image; straight from it where each step reads quads of one tap.
    Pixels { image: Box<Image>, direct: bool },
}

/// The activations of a layer in blocks of 32 rows or pixels.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) place: Place,
    /// Offsets of the steps in packed tiles, there and back.
    packed: Vec<usize>,
    /// Offsets of the steps in the activations where they are read directly, there and back.
    direct: Vec<usize>,
}

impl Source {
    /// The rows of a matrix product.
    pub(super) fn rows(layer: &Layer, count: usize, steps: usize) -> Source {
        let width = layer.inputs;
        Source {
            place: Place::Rows {
                count,
                width,
                direct: width > 0 && width.is_multiple_of(ROW) && spread(width),
            },
            packed: there_and_back((0..steps).map(|s| s * 2 * TILE)),
            direct: there_and_back((0..steps).map(|s| s * ROW)),
        }
    }

    /// The pixels of a convolution.
    pub(super) fn pixels(layer: &Layer, image: Box<Image>, steps: usize) -> Source {
        let offsets = image.offsets.iter().step_by(ROWS).copied();
        Source {
            packed: there_and_back((0..steps).map(|s| s * 2 * TILE)),
            direct: there_and_back(offsets),
            place: Place::Pixels {
                image,
                direct: layer.inputs.is_multiple_of(ROW) && layer.taps() > 0,
            },
        }
    }

    /// Blocks of rows or pixels.
    pub(super) fn blocks(&self) -> usize {
        match &self.place {
            Place::Rows { count, .. } => count.div_ceil(BLOCK),
            Place::Pixels { image, .. } => image.tiles.len().div_ceil(2),
        }
    }

    /// The tiles of a block of activations, and whether there are two a step.
    pub(super) fn activation<'a>(
        &'a self,
        x: &[u8],
        group: usize,
        block: usize,
        pack: &mut Lines,
    ) -> (Activations<'a>, bool) {
        match &self.place {
            Place::Rows {
                count,
                width,
                direct,
            } => {
                let width = *width;
                let rows = block * BLOCK..(*count).min((block + 1) * BLOCK);
                let x = &x[rows.start * width..rows.end * width];
                if *direct && rows.len() == BLOCK {
                    let operand = Activations {
                        base: x.as_ptr(),
                        offsets: &self.direct,
                        second: ROWS * width,
                        stride: width,
                    };
                    return (operand, true);
                }
                for (r, row) in x.chunks_exact(width.max(1)).enumerate() {
                    copy_row(row, &mut pack.bytes_mut()[r * ROW..]);
                }
                (self.tiles(pack), rows.len() > ROWS)
            }
            Place::Pixels { image, direct } => {
                let start = group * image.quads * image.pitch + block * PIXELS * 4;
                let pair = block * 2 + 1 < image.tiles.len();
                let reach = (image.quads * image.pitch).max(1) + PIXELS * 4;
                assert!(start + reach <= x.len(), "the image is too short");
                let x = &x[start..];
                if *direct {
                    let operand = Activations {
                        base: x.as_ptr(),
                        offsets: &self.direct,
                        second: ROW,
                        stride: image.pitch,
                    };
                    return (operand, pair);
                }
                copy_pixels(x, &image.offsets, pack.bytes_mut());
                (self.tiles(pack), pair)
            }
        }
    }

    fn tiles(&self, pack: &Lines) -> Activations<'_> {
        Activations {
            base: pack.bytes().as_ptr(),
            offsets: &self.packed,
            second: TILE,
            stride: ROW,
        }
    }
}

/// The offsets, and again in the opposite order.
pub(super) fn there_and_back(
    offsets: impl DoubleEndedIterator<Item = usize> + Clone,
) -> Vec<usize> {
    offsets.clone().chain(offsets.rev()).collect()
}

/// Whether 32 rows of activations that are `width` bytes apart, read in their place, stay in the
/// first-level cache: 64 sets of which they may use 8 lines each.
pub(super) fn spread(width: usize) -> bool {
    let lines = width / ROW;
    let mut used = [0usize; 64];
    for row in 0..BLOCK {
        for line in 0..lines.min(STEPS) {
            used[(row * lines + line) % 64] += 1;
        }
    }
    used.iter().all(|&n| n <= 10)
}

/// Copies a row of activations to the same row of the tiles of a block; rows from 16 on lie in
/// the second tiles, which the place of `to` has to account for.
pub(super) fn copy_row(row: &[u8], to: &mut [u8]) {
    for (i, part) in row.chunks(ROW).enumerate() {
        to[i * 2 * TILE..][..part.len()].copy_from_slice(part);
    }
}

/// Copies 32 pixels of each quad to the tiles of a block.
fn copy_pixels(x: &[u8], offsets: &[usize], to: &mut [u8]) {
    for (steps, to) in offsets.chunks(ROWS).zip(to.chunks_exact_mut(2 * TILE)) {
        let (left, right) = to.split_at_mut(TILE);
        for ((&at, left), right) in steps
            .iter()
            .zip(left.chunks_exact_mut(ROW))
            .zip(right.chunks_exact_mut(ROW))
        {
            let pixels = &x[at..at + 2 * ROW];
            left.copy_from_slice(&pixels[..ROW]);
            right.copy_from_slice(&pixels[ROW..]);
        }
    }
}
