//! Gradients of convolutions without columns: the image is copied once with its padding, at a row pitch under
//! which every entry of the kernel reads a vector of pixels at a fixed distance. With strides the
//! copy is in phases, the pixels whose indices leave the same rest.
//!
//! The pixels of all output rows form one run at that pitch. Those between the rows are computed
//! for nothing: one column in `width + 1` with the usual padding, because the padding before a row
//! serves the row above it, too.

use std::ops::Range;

use super::columns::Geometry;
use super::lay::Plane;
use super::shift_tile::{Dots, Product, dots, dots_tile, product, product_tile};
use crate::kernels::tile::Isa;

/// Entries that stay in the first-level cache beside others.
const NEAR: usize = 1 << 12;

/// Entries after a buffer's last that a vector may read.
const SLACK: usize = 64;

/// Where the pixels of an image lie in its padded copy, and which of them a kernel entry reads.
#[derive(Debug, Clone)]
pub(super) struct Shifted {
    isa: Isa,
    channels: usize,
    input: [usize; 2],
    output: [usize; 2],
    stride: [usize; 2],
    /// Rows and columns of padding before the image.
    pad: [usize; 2],
    /// Phases (of rows, of columns) that a kernel entry reads.
    phases: Vec<[usize; 2]>,
    pitch: usize,
    /// Entries of a phase of a channel.
    plane: usize,
    /// For each channel and kernel entry the distance from the copy's start.
    offsets: Vec<u32>,
}

impl Shifted {
    /// The layout for a convolution of images with that many channels; `None` where another way
    /// serves it: on processors without tiles for it, in one or three dimensions, with a kernel of
    /// one entry, with padding that leaves output pixels outside.
    pub(super) fn new(channels: usize, g: &Geometry) -> Option<Shifted> {
        Shifted::on(Isa::get(), channels, g)
    }

    /// [`Shifted::new`] for instructions that the processor has.
    pub(super) fn on(isa: Isa, channels: usize, g: &Geometry) -> Option<Shifted> {
        let taps: Vec<[usize; 2]> = (0..g.kernel[1])
            .flat_map(|y| (0..g.kernel[2]).map(move |x| [y * g.dilation[1], x * g.dilation[2]]))
            .collect();
        let flat = g.input[0] == 1 && g.output[0] == 1 && g.kernel[0] == 1 && g.pad[0] == 0;
        if !flat || taps.len() == 1 && g.stride == [1; 3] {
            return None;
        }
        let size = |of: [usize; 3]| [of[1], of[2]];
        Shifted::with(
            isa,
            channels,
            size(g.input),
            size(g.output),
            size(g.stride),
            [size(g.pad), [0; 2]],
            &taps,
        )
    }

    /// The layout of images of which kernel entries read the pixel `stride * output + tap - pad`,
    /// with some padding before and at least so much after the image.
    pub(super) fn with(
        isa: Isa,
        channels: usize,
        input: [usize; 2],
        output: [usize; 2],
        stride: [usize; 2],
        [pad, after]: [[usize; 2]; 2],
        taps: &[[usize; 2]],
    ) -> Option<Shifted> {
        if product_tile(isa) == (1, 1) || output.contains(&0) || channels == 0 || taps.is_empty() {
            return None;
        }
        // Padding after the image, on each axis.
        let far = [0, 1].map(|a| taps.iter().map(|t| t[a]).max().unwrap_or(0));
        let end = [0, 1].map(|a| {
            let last = (output[a] - 1) * stride[a] + far[a] + 1;
            last.saturating_sub(input[a] + pad[a]).max(after[a])
        });
        let pitch = match stride[1] {
            1 => input[1] + pad[1].max(end[1]),
            s => (input[1] + pad[1] + end[1]).div_ceil(s),
        };
        if output[1] > pitch {
            return None;
        }
        let rows = (input[0] + pad[0] + end[0]).div_ceil(stride[0]);
        // The last row's padding after it may be the padding before a row that is not there.
        let plane = rows * pitch + pad[1].max(end[1]);
        let mut phases = Vec::new();
        let mut at = Vec::new();
        for tap in taps {
            let phase = [tap[0] % stride[0], tap[1] % stride[1]];
            let found = phases.iter().position(|p| *p == phase);
            let slot = found.unwrap_or(phases.len());
            if found.is_none() {
                phases.push(phase);
            }
            at.push(slot * plane + tap[0] / stride[0] * pitch + tap[1] / stride[1]);
        }
        let channel = phases.len() * plane;
        let offsets = (0..channels).flat_map(|c| at.iter().map(move |a| c * channel + a));
        let offsets: Result<Vec<u32>, _> = offsets.map(u32::try_from).collect();
        Some(Shifted {
            isa,
            channels,
            input,
            output,
            stride,
            pad,
            phases,
            pitch,
            plane,
            offsets: offsets.ok()?,
        })
    }

    /// Entries of a padded image.
    pub(super) fn image_len(&self) -> usize {
        self.channels * self.phases.len() * self.plane + SLACK
    }

    /// Pixels that are computed of so many rows of an output channel: whole vectors.
    fn run_len(&self, rows: usize) -> usize {
        let (_, vectors) = product_tile(self.isa);
        let run = (rows.max(1) - 1) * self.pitch + self.output[1];
        run.next_multiple_of(vectors * self.isa.lanes())
    }

    /// Entries of an image that [`Shifted::convolve`] reads: a run beyond the last.
    pub(super) fn readable_len(&self) -> usize {
        self.image_len() + self.run_len(self.output[0])
    }

    /// Entries of the buffer that [`Shifted::convolve`] takes for so many output channels and rows.
    pub(super) fn block_len(&self, outputs: usize, rows: usize) -> usize {
        outputs * self.run_len(rows)
    }

    /// Copies an image with its padding.
    pub(super) fn pad(&self, x: &[f32], out: &mut [f32]) {
        let [height, width] = self.input;
        if self.stride == [1; 2] {
            let plane = Plane {
                width,
                pad: self.pad,
                rows: self.plane / self.pitch,
                pitch: self.pitch,
                len: self.plane,
            };
            plane.fill(self.isa, x, height, out);
            out[self.channels * self.plane..self.image_len()].fill(0.0);
            return;
        }
        out[..self.image_len()].fill(0.0);
        for c in 0..self.channels {
            let x = &x[c * height * width..][..height * width];
            for (slot, phase) in self.phases.iter().enumerate() {
                let out = &mut out[(c * self.phases.len() + slot) * self.plane..][..self.plane];
                let [first_y, first_x] = [0, 1].map(|a| {
                    // The first index of the image in the phase.
                    let (s, pad) = (self.stride[a], self.pad[a]);
                    (phase[a] + s - pad % s) % s
                });
                for y in (first_y..height).step_by(self.stride[0]) {
                    let row = (y + self.pad[0]) / self.stride[0];
                    let at = row * self.pitch + (first_x + self.pad[1]) / self.stride[1];
                    let x = &x[y * width..][..width];
                    if self.stride[1] == 1 {
                        out[at..at + width].copy_from_slice(x);
                    } else if first_x < width {
                        let x = x[first_x..].iter().step_by(self.stride[1]);
                        for (o, &v) in out[at..].iter_mut().zip(x) {
                            *o = v;
                        }
                    }
                }
            }
        }
    }

    /// Entries of a weight of so many output channels as [`Shifted::pack`] lays it out.
    pub(super) fn packed_len(&self, outputs: usize) -> usize {
        outputs * self.offsets.len()
    }

    /// Lays out the weight `weight(output channel, entry)`: by tiles of output channels, and in a
    /// tile entry by entry.
    pub(super) fn pack(
        &self,
        outputs: usize,
        weight: impl Fn(usize, usize) -> f32,
        packed: &mut [f32],
    ) {
        let (rows, _) = product_tile(self.isa);
        let k = self.offsets.len();
        for start in (0..outputs).step_by(rows) {
            let size = rows.min(outputs - start);
            let tile = &mut packed[start * k..][..size * k];
            for (entry, of) in tile.chunks_exact_mut(size).enumerate() {
                for (r, v) in of.iter_mut().enumerate() {
                    *v = weight(start + r, entry);
                }
            }
        }
    }

    /// Convolves a padded image with a packed weight: some output rows, of which [`Shifted::row`]
    /// finds each in `run`.
    pub(super) fn convolve(
        &self,
        image: &[f32],
        packed: &[f32],
        outputs: usize,
        rows: Range<usize>,
        run: &mut [f32],
    ) {
        let (tile_rows, vectors) = product_tile(self.isa);
        let (width, k) = (vectors * self.isa.lanes(), self.offsets.len());
        let len = self.run_len(rows.len());
        assert!(rows.end <= self.output[0] && image.len() >= self.readable_len());
        assert!(packed.len() >= outputs * k && run.len() >= outputs * len);
        let image = &image[rows.start * self.pitch..];
        for j in (0..len).step_by(width) {
            for start in (0..outputs).step_by(tile_rows) {
                let t = Product {
                    a: packed[start * k..].as_ptr(),
                    image: image[j..].as_ptr(),
                    offsets: &self.offsets,
                    out: run[start * len + j..].as_mut_ptr(),
                    out_row: len,
                };
                #[expect(unsafe_code, reason = "vector kernel")]
                // SAFETY: lengths were checked: offsets lie in the image, which has a run's length
                // beyond; the run has `len` entries for each output channel, a multiple of the
                // tile's width; `self.isa` is the processor's and not portable.
                unsafe {
                    product(self.isa, tile_rows.min(outputs - start), t);
                }
            }
        }
    }

    /// An output row of what [`Shifted::convolve`] has left of so many rows, by its place among
    /// them.
    pub(super) fn row<'a>(
        &self,
        run: &'a [f32],
        channel: usize,
        rows: usize,
        i: usize,
    ) -> &'a [f32] {
        &run[channel * self.run_len(rows) + i * self.pitch..][..self.output[1]]
    }

    /// Entries of a channel of a gradient in [`Shifted::spread`]'s layout: whole vectors.
    fn spread_len(&self) -> usize {
        let run = (self.output[0] - 1) * self.pitch + self.output[1];
        run.next_multiple_of(self.isa.lanes())
    }

    /// Copies the gradient of an output image to rows at the pitch, zeros between them.
    fn spread(&self, g: &[f32], outputs: usize, out: &mut [f32]) {
        let ([height, width], len) = (self.output, self.spread_len());
        out[..outputs * len].fill(0.0);
        for channel in 0..outputs {
            for y in 0..height {
                let g = &g[(channel * height + y) * width..][..width];
                out[channel * len + y * self.pitch..][..width].copy_from_slice(g);
            }
        }
    }

    /// Entries of an image and its gradient, as [`Shifted::weight_gradient`] lays them out.
    fn pair_len(&self, outputs: usize) -> (usize, usize) {
        // A gradient's run may be longer than the image from its last offset on.
        let len = self.spread_len();
        (self.image_len() + len, outputs * len)
    }

    /// Images that [`Shifted::weight_gradient`] takes at once: what stays in the second-level
    /// cache.
    fn images(&self, outputs: usize, count: usize) -> usize {
        const CACHE: usize = 1 << 18;
        let (x, g) = self.pair_len(outputs);
        (CACHE / (x + g)).clamp(1, count.max(1))
    }

    /// Entries of the buffer of [`Shifted::weight_gradient`].
    pub(super) fn gradient_buffer_len(&self, outputs: usize, count: usize) -> usize {
        let (x, g) = self.pair_len(outputs);
        self.images(outputs, count) * (x + g)
    }

    /// Adds the gradient by the weight, `[outputs, entries]`, of images and the gradients of
    /// their outputs, of which each `(groups, group)` is this layout's.
    pub(super) fn weight_gradient(
        &self,
        (groups, group): (usize, usize),
        x: &[f32],
        g: &[f32],
        outputs: usize,
        out: &mut [f32],
        buffer: &mut [f32],
    ) {
        let [x_size, g_size] = [
            self.channels * self.input[0] * self.input[1],
            outputs * self.output[0] * self.output[1],
        ];
        let (x_len, g_len) = self.pair_len(outputs);
        let (k, len) = (self.offsets.len(), self.spread_len());
        let count = g.len() / (groups * g_size).max(1);
        let most = self.images(outputs, count);
        let (left_rows, right_rows) = dots_tile(self.isa);
        assert!(out.len() >= outputs * k && buffer.len() >= most * (x_len + g_len));
        let (images, gradients) = buffer.split_at_mut(most * x_len);
        for first in (0..count).step_by(most) {
            let now = most.min(count - first);
            for i in 0..now {
                let image = &mut images[i * x_len..][..x_len];
                let of = (first + i) * groups + group;
                self.pad(&x[of * x_size..][..x_size], image);
                image[self.image_len()..].fill(0.0);
                let g = &g[of * g_size..][..g_size];
                self.spread(g, outputs, &mut gradients[i * g_len..][..g_len]);
            }
            // So many images at once that a tile's rows of gradients stay in the first-level cache
            // while the images' channels pass by.
            let near = (NEAR / (left_rows * len).max(1)).clamp(1, now);
            for at in (0..now).step_by(near) {
                for channel in (0..outputs).step_by(left_rows) {
                    for entry in (0..k).step_by(right_rows) {
                        let t = Dots {
                            left: gradients[at * g_len + channel * len..].as_ptr(),
                            left_row: len,
                            right: images[at * x_len..].as_ptr(),
                            offsets: &self.offsets[entry..k.min(entry + right_rows)],
                            len,
                            images: near.min(now - at),
                            left_image: g_len,
                            right_image: x_len,
                            out: out[channel * k + entry..].as_mut_ptr(),
                            out_row: k,
                        };
                        #[expect(unsafe_code, reason = "vector kernel")]
                        // SAFETY: lengths were checked: offsets lie in an image, which has `len`
                        // entries beyond its last; `len` is a multiple of the lanes; `self.isa` is
                        // the processor's and not portable.
                        unsafe {
                            dots(self.isa, left_rows.min(outputs - channel), t);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{close, geometry, isas, products, values};
    use super::*;

    fn check(isa: Isa, g: &Geometry, [outputs, inputs]: [usize; 2]) -> Option<()> {
        let images = 3;
        let (taps, input, output) = (g.taps(), g.input_len(), g.output_len());
        let x = values(2, images * inputs * input);
        let dy = values(3, images * outputs * output);
        let forward = Shifted::on(isa, inputs, g)?;

        let k = inputs * taps;
        // What a buffer held before must not matter.
        let mut found = vec![0.5f32; outputs * k];
        let mut expected = vec![0.5f64; outputs * k];
        let mut buffer = vec![f32::NAN; forward.gradient_buffer_len(outputs, images)];
        forward.weight_gradient((1, 0), &x, &dy, outputs, &mut found, &mut buffer);
        for i in 0..images {
            let (x, dy) = (&x[i * inputs * input..], &dy[i * outputs * output..]);
            products(g, [outputs, inputs], |o, c, entry, to, from| {
                let product = f64::from(dy[o * output + to] * x[c * input + from]);
                expected[(o * inputs + c) * taps + entry] += product;
            });
        }
        close(&found, &expected);

        Some(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn the_gradient_agrees_with_the_definition(
            size in [1usize..14, 1usize..40], kernel in [1usize..6, 1usize..6],
            strides in [1usize..4, 1usize..4], dilations in [1usize..3, 1usize..3],
            begin in [0usize..4, 0usize..4], end in [0usize..4, 0usize..4],
            channels in [1usize..20, 1usize..6],
        ) {
            let found = geometry(size, kernel, strides, dilations, begin, end);
            prop_assume!(found.is_some());
            for isa in isas() {
                check(isa, found.as_ref().unwrap(), channels);
            }
        }
    }

    #[test]
    fn the_usual_convolutions_are_served() {
        for (size, kernel, stride, pad) in
            [(32, 3, 1, 1), (16, 3, 2, 1), (28, 5, 1, 0), (8, 1, 2, 0)]
        {
            let g = geometry(
                [size; 2],
                [kernel; 2],
                [stride; 2],
                [1; 2],
                [pad; 2],
                [pad; 2],
            );
            for isa in isas() {
                assert!(
                    check(isa, g.as_ref().unwrap(), [20, 3]).is_some(),
                    "{size} {kernel}"
                );
            }
        }
    }
}
