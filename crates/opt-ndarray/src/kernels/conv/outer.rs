//! The gradient of a convolution by its weight as sums of outer products: images are copied once with
//! their padding, gradients pixel by pixel with the output channels side by side, some images at a
//! time, so that a tile of the weight stays in registers while all of them pass by.
//!
//! Parts of the batch are summed on their own, in an order that does not depend on the number of
//! threads, and the sums added in order.

use std::ops::Range;

use super::Sizes;
use super::lay::{Plane, SLACK};
use super::outer_tile::{Outer, outer, tiles};
use super::real::Real;
use crate::kernels::gemm::transpose;
use crate::kernels::lanes::by_isa;
use crate::kernels::tile::Isa;
use crate::kernels::{SharedMut, parallel};

/// Parts that a batch is cut into.
const PARTS: usize = 8;

/// Entries that the sums of all parts may take, beyond those of one.
const SUMS: usize = 1 << 20;

/// Entries of images and gradients that stay in the second-level cache beside others.
const CACHE: usize = 1 << 18;

/// Entries of a cache line.
const LINE: usize = 16;

/// Where a convolution's images, gradients and sums lie.
#[derive(Debug, Clone)]
pub(super) struct OuterProducts {
    isa: Isa,
    images: usize,
    groups: usize,
    /// Input and output channels of a group.
    channels: usize,
    outputs: usize,
    input: [usize; 2],
    output: [usize; 2],
    /// Rows of a channel's kernel, and entries of a row.
    kernel: [usize; 2],
    stride: [usize; 2],
    /// Between rows of the kernel.
    dilation: usize,
    plane: Plane,
    /// Rows of kernel entries in a register tile.
    tile: usize,
}

/// What a task computes.
struct Part {
    group: usize,
    images: Range<usize>,
    /// Blocks of output channels.
    blocks: Range<usize>,
}

impl OuterProducts {
    /// The layout for a convolution; `None` where another way serves it: on processors without
    /// tiles for it, in one or three dimensions, with a kernel whose rows are long or have gaps, or
    /// of one entry without strides, and with few output channels in a group.
    pub(super) fn new(s: &Sizes) -> Option<OuterProducts> {
        OuterProducts::on(Isa::get(), s)
    }

    /// [`OuterProducts::new`] for instructions that the processor has.
    pub(super) fn on(isa: Isa, s: &Sizes) -> Option<OuterProducts> {
        let g = &s.geometry;
        let flat = g.input[0] == 1 && g.output[0] == 1 && g.kernel[0] == 1 && g.pad[0] == 0;
        let two = |of: [usize; 3]| [of[1], of[2]];
        let (input, output, kernel) = (two(g.input), two(g.output), two(g.kernel));
        let (stride, pad) = (two(g.stride), two(g.pad));
        let empty = s.n * s.groups * s.c * s.o * g.taps() * g.input_len() * g.output_len() == 0;
        if !flat || empty || g.taps() == 1 && stride == [1; 2] {
            return None;
        }
        let side_by_side = kernel[1] == 1 || g.dilation[2] == 1;
        if !side_by_side || 4 * s.o < isa.lanes() {
            return None;
        }
        // What output pixels read of an axis: so much, of which so much comes after the image.
        let reach = [(0, (kernel[0] - 1) * g.dilation[1] + 1), (1, kernel[1])]
            .map(|(axis, span)| (output[axis] - 1) * stride[axis] + span);
        let end = reach[1].saturating_sub(pad[1] + input[1]);
        // The padding after a row is the padding before the next one.
        let pitch = input[1] + pad[1].max(end);
        let kernel_rows = s.c * kernel[0];
        let tiles = tiles(isa, kernel[1]);
        let most = *tiles.last()?;
        let each = kernel_rows.div_ceil(kernel_rows.div_ceil(most));
        Some(OuterProducts {
            isa,
            images: s.n,
            groups: s.groups,
            channels: s.c,
            outputs: s.o,
            input,
            output,
            kernel,
            stride,
            dilation: g.dilation[1],
            plane: Plane {
                width: input[1],
                pad,
                rows: reach[0],
                pitch,
                len: pad[1] + reach[0] * pitch,
            },
            tile: *tiles.iter().find(|&&rows| rows >= each)?,
        })
    }

    fn kernel_rows(&self) -> usize {
        self.channels * self.kernel[0]
    }

    fn tiles(&self) -> usize {
        self.kernel_rows().div_ceil(self.tile)
    }

    /// Entries of the weight of an output channel.
    fn k(&self) -> usize {
        self.kernel_rows() * self.kernel[1]
    }

    /// Blocks of output channels that lie in the lanes of a vector.
    fn blocks(&self) -> usize {
        self.outputs.div_ceil(self.isa.lanes())
    }

    /// Entries of the sums of a register tile, and of a block.
    fn tile_len(&self) -> usize {
        self.tile * self.kernel[1] * self.isa.lanes()
    }

    fn block_len(&self) -> usize {
        self.tiles() * self.tile_len()
    }

    /// Entries of the sums of a part.
    fn part_len(&self) -> usize {
        self.groups * self.blocks() * self.block_len()
    }

    fn parts(&self) -> usize {
        let fit = SUMS / self.part_len();
        self.images.min(PARTS).min(fit).max(1)
    }

    /// Entries of the sums of [`OuterProducts::run`].
    pub(super) fn sums_len(&self) -> usize {
        self.parts() * self.part_len()
    }

    /// Entries of a padded image of a group.
    fn image_len(&self) -> usize {
        (self.channels * self.plane.len + SLACK).next_multiple_of(LINE)
    }

    /// Entries of so many blocks of a gradient.
    fn gradient_len(&self, blocks: usize) -> usize {
        blocks * self.output[0] * self.output[1] * self.isa.lanes()
    }

    /// Writes the gradient by the weight, `[groups, outputs, entries]`, of images and the gradients
    /// of their outputs.
    pub(super) fn run(
        &self,
        x: &[f32],
        g: &[f32],
        out: &mut [f32],
        sums: &mut [f32],
        threads: usize,
    ) {
        let (parts, blocks, part_len) = (self.parts(), self.blocks(), self.part_len());
        let (k, lanes, block_len) = (self.k(), self.isa.lanes(), self.block_len());
        let sums = &mut sums[..parts * part_len];
        assert!(out.len() == self.groups * self.outputs * k);
        let shared = SharedMut::new(sums);
        // Each cut over output channels copies the images anew.
        let cuts = match threads {
            0 | 1 => 1,
            _ => (4 * threads).div_ceil(parts * self.groups).min(blocks),
        };
        parallel(threads, parts * self.groups * cuts, |task| {
            let (part, group, cut) = (
                task / (self.groups * cuts),
                task / cuts % self.groups,
                task % cuts,
            );
            let of = Part {
                group,
                images: part * self.images / parts..(part + 1) * self.images / parts,
                blocks: cut * blocks / cuts..(cut + 1) * blocks / cuts,
            };
            let first = part * part_len + (group * blocks + of.blocks.start) * block_len;
            #[expect(unsafe_code, reason = "each task has sums of its own")]
            // SAFETY: no other task has these blocks of this group and part.
            let sums = unsafe { shared.part(first..first + of.blocks.len() * block_len) };
            self.part(x, g, &of, sums);
        });
        let out = SharedMut::new(out);
        parallel(threads, self.groups * blocks, |task| {
            let (group, block) = (task / blocks, task % blocks);
            let start = |part: usize| part * part_len + task * block_len;
            #[expect(unsafe_code, reason = "each task has a block of its own")]
            // SAFETY: no other task has this block of any part, and no other its output channels.
            let (total, out) = unsafe {
                let total = shared.part(start(0)..start(0) + block_len);
                for part in 1..parts {
                    add(total, shared.part(start(part)..start(part) + block_len));
                }
                let channels = group * self.outputs + block * lanes
                    ..group * self.outputs + self.outputs.min((block + 1) * lanes);
                (&*total, out.part(channels.start * k..channels.end * k))
            };
            let count = out.len() / k;
            if !transpose(self.isa, total, lanes, out, k, (k, count)) {
                for (channel, out) in out.chunks_exact_mut(k).enumerate() {
                    let own = total[channel..].iter().step_by(lanes);
                    out.iter_mut().zip(own).for_each(|(o, &v)| *o = v);
                }
            }
        });
    }

    /// Sums up the products of some images and output channels.
    fn part(&self, x: &[f32], g: &[f32], of: &Part, sums: &mut [f32]) {
        let pixels = self.output[0] * self.output[1];
        let (lanes, entries) = (self.isa.lanes(), self.kernel[1]);
        let x_len = self.channels * self.input[0] * self.input[1];
        let (image_len, gradient_len) = (self.image_len(), self.gradient_len(of.blocks.len()));
        let most = (CACHE / (image_len + gradient_len)).clamp(1, of.images.len());
        let len = most * (image_len + gradient_len) + LINE;
        sums.fill(0.0);
        f32::buffer(len, |buffer| {
            // Vectors of gradients lie in one cache line each.
            let aligned = buffer.as_ptr().align_offset(4 * LINE).min(LINE);
            let (images, gradients) = buffer[aligned..].split_at_mut(most * image_len);
            for first in of.images.clone().step_by(most) {
                let now = most.min(of.images.end - first);
                for i in 0..now {
                    let of_image = (first + i) * self.groups + of.group;
                    let image = &mut images[i * image_len..][..image_len];
                    let x = &x[of_image * x_len..][..x_len];
                    self.plane.fill(self.isa, x, self.input[0], image);
                    let own = &mut gradients[i * gradient_len..][..gradient_len];
                    for (block, own) in of.blocks.clone().zip(own.chunks_mut(pixels * lanes)) {
                        let channels = block * lanes..self.outputs.min((block + 1) * lanes);
                        let g = &g[(of_image * self.outputs + channels.start) * pixels..];
                        self.interleave(&g[..channels.len() * pixels], own);
                    }
                }
                for (i, sums) in sums.chunks_exact_mut(self.tile_len()).enumerate() {
                    let (block, tile) = (i / self.tiles(), i % self.tiles());
                    let mut rows = [0; 12];
                    for (r, row) in rows.iter_mut().enumerate().take(self.tile) {
                        // Rows beyond the last repeat it; their sums are not read.
                        let of = (tile * self.tile + r).min(self.kernel_rows() - 1);
                        let (channel, ky) = (of / self.kernel[0], of % self.kernel[0]);
                        *row = channel * self.plane.len + ky * self.dilation * self.plane.pitch;
                    }
                    let t = Outer {
                        left: gradients[block * pixels * lanes..].as_ptr(),
                        left_image: gradient_len,
                        right: images.as_ptr(),
                        right_image: image_len,
                        images: now,
                        rows: &rows[..self.tile],
                        height: self.output[0],
                        width: self.output[1],
                        pitch: self.stride[0] * self.plane.pitch,
                        stride: self.stride[1],
                        sums: sums.as_mut_ptr(),
                    };
                    #[expect(unsafe_code, reason = "vector kernel")]
                    // SAFETY: there are `now` images and gradients; a gradient has a vector for each
                    // pixel of its blocks; a padded channel has the rows that output pixels read,
                    // each with as many entries; the tile is one of those for `entries`, with
                    // its sums; `self.isa` is the processor's.
                    unsafe {
                        outer(self.isa, entries, t);
                    }
                }
            }
        });
    }

    /// Copies a gradient of some channels pixel by pixel, zeros for those that are not there.
    fn interleave(&self, g: &[f32], out: &mut [f32]) {
        let lanes = self.isa.lanes();
        let pixels = out.len() / lanes;
        let channels = g.len() / pixels;
        if transpose(self.isa, g, pixels, out, lanes, (channels, pixels)) {
            if channels < lanes {
                let pixels = out.chunks_exact_mut(lanes);
                pixels.for_each(|pixel| pixel[channels..].fill(0.0));
            }
            return;
        }
        // Too few channels for that: by way of squares that have zeros for the others.
        out.fill(0.0);
        for (i, out) in out.chunks_mut(8 * lanes).enumerate() {
            let (first, here) = (8 * i, out.len() / lanes);
            let mut square = [0.0; 64];
            for (row, g) in square.chunks_exact_mut(8).zip(g.chunks_exact(pixels)) {
                row[..here].copy_from_slice(&g[first..first + here]);
            }
            if here < 8 || !transpose(self.isa, &square, 8, out, lanes, (8, 8)) {
                for (p, pixel) in out.chunks_exact_mut(lanes).enumerate() {
                    for (lane, v) in pixel.iter_mut().enumerate().take(channels) {
                        *v = g[lane * pixels + first + p];
                    }
                }
            }
        }
    }
}

by_isa! {
    fn add(to: &mut [f32], v: &[f32]) = |_FMA| {
        to.iter_mut().zip(v).for_each(|(to, &v)| *to += v)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{close, geometry, isas, products, values};
    use super::*;

    /// Compares with the definition; `None` if another way serves these sizes.
    fn check(isa: Isa, s: &Sizes) -> Option<()> {
        let (taps, input, output) = (
            s.geometry.taps(),
            s.geometry.input_len(),
            s.geometry.output_len(),
        );
        let x = values(1, s.n * s.image());
        let g = values(2, s.n * s.output());
        let layer = OuterProducts::on(isa, s)?;
        let mut found = vec![f32::NAN; s.groups * s.o * s.c * taps];
        let mut sums = vec![f32::NAN; layer.sums_len()];
        layer.run(&x, &g, &mut found, &mut sums, 1);
        let mut expected = vec![0f64; found.len()];
        for n in 0..s.n {
            for group in 0..s.groups {
                let x = &x[n * s.image() + group * s.c * input..];
                let g = &g[n * s.output() + group * s.o * output..];
                products(&s.geometry, [s.o, s.c], |o, c, entry, to, from| {
                    let product = f64::from(g[o * output + to]) * f64::from(x[c * input + from]);
                    expected[((group * s.o + o) * s.c + c) * taps + entry] += product;
                });
            }
        }
        close(&found, &expected);
        let mut threaded = vec![f32::NAN; found.len()];
        layer.run(&x, &g, &mut threaded, &mut sums, 3);
        assert_eq!(found, threaded);
        Some(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn it_agrees_with_the_definition(
            size in [1usize..14, 1usize..40], kernel in [1usize..6, 1usize..8],
            strides in [1usize..4, 1usize..4], dilations in [1usize..3, 1usize..2],
            begin in [0usize..4, 0usize..4], end in [0usize..4, 0usize..4],
            channels in [1usize..8, 1usize..36], groups in 1usize..3, n in 1usize..11,
        ) {
            let found = geometry(size, kernel, strides, dilations, begin, end);
            prop_assume!(found.is_some());
            let [c, o] = channels;
            let sizes = Sizes { n, groups, c, o, geometry: found.unwrap() };
            for isa in isas() {
                check(isa, &sizes);
            }
        }
    }

    #[test]
    fn the_usual_convolutions_are_served() {
        for (size, kernel, stride, pad) in [
            (32, 3, 1, 1),
            (16, 3, 2, 1),
            (28, 5, 1, 0),
            (8, 1, 2, 0),
            (8, 3, 1, 1),
        ] {
            let geometry = geometry(
                [size; 2],
                [kernel; 2],
                [stride; 2],
                [1; 2],
                [pad; 2],
                [pad; 2],
            );
            let sizes = Sizes {
                n: 9,
                groups: 1,
                c: 3,
                o: 20,
                geometry: geometry.unwrap(),
            };
            for isa in isas() {
                assert!(check(isa, &sizes).is_some(), "{size} {kernel}");
            }
        }
    }
}
