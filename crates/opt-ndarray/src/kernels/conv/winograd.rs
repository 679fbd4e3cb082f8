//! Convolutions with kernels of 3x3 entries by Winograd's `F(2x2, 3x3)` ([Lavin and Gray
//! 2016](https://arxiv.org/abs/1509.09308)): four pixels of an output channel are 16 products for each
//! input channel, rather than 36, between transforms of the image and of the weight.
//!
//! The transforms are sums of at most four pixels, so that results are about as exact as those
//! of sums in another order. An infinite pixel makes all outputs of its tiles NaN.

use super::Sizes;
use super::columns::Geometry;
use super::real::Real;
use super::winograd_tile::{
    Across, Back, Down, LANES, ROWS, Run, across, back, down, product, serves,
};
use crate::kernels::lanes::by_isa;
use crate::kernels::tile::Isa;
use crate::kernels::{SharedMut, parallel_chunks};

/// Products of a pixel's transform for each input and output channel.
const POINTS: usize = 16;

/// Channels from which, on both sides, the products outweigh the transforms.
const CHANNELS: usize = 16;

/// Weights up to which the transformed one stays in the second-level cache.
const WEIGHT: usize = 1 << 14;

/// Images from which on there is enough to do for several threads.
const IMAGES: usize = 8;

/// Vectors of tiles at a time.
const VECTORS: usize = 3;

/// A convolution of some images.
#[derive(Debug, Clone)]
pub(super) struct Winograd {
    inputs: usize,
    outputs: usize,
    input: [usize; 2],
    output: [usize; 2],
    /// Rows and columns of padding before the image.
    pad: [usize; 2],
    /// Rows and columns of tiles.
    tiles: [usize; 2],
    /// Images at a time.
    each: usize,
    /// Runs of tiles in each vector of an image.
    runs: Vec<Vec<Run>>,
}

impl Winograd {
    /// The layout for a convolution of as many images and groups as `sizes` has, with channels and a
    /// geometry of its own; `None` where another way serves it: on processors without loops for
    /// it, with other kernels than 3x3 without strides, with groups, with few images or channels,
    /// and with large weights.
    pub(super) fn new(
        sizes: &Sizes,
        [inputs, outputs]: [usize; 2],
        g: &Geometry,
    ) -> Option<Winograd> {
        let plain = g.kernel == [1, 3, 3] && g.stride == [1; 3] && g.dilation[1..] == [1; 2];
        let flat = g.input[0] == 1 && g.output[0] == 1 && g.pad[0] == 0;
        let many = sizes.groups == 1 && sizes.n >= IMAGES && inputs.min(outputs) >= CHANNELS;
        if !(serves(Isa::get()) && plain && flat && many) || inputs * outputs > WEIGHT {
            return None;
        }
        let two = |of: [usize; 3]| [of[1], of[2]];
        let (input, output) = (two(g.input), two(g.output));
        let tiles = output.map(|n| n.div_ceil(2));
        let vectors = (tiles[0] * tiles[1]).div_ceil(LANES);
        // Lanes and pixels beyond the image's may take what is saved.
        let (products, plain) = (vectors * LANES * POINTS, 9 * output[0] * output[1]);
        if input.contains(&0) || 3 * products > 2 * plain {
            return None;
        }
        Some(Winograd {
            inputs,
            outputs,
            input,
            output,
            pad: two(g.pad),
            tiles,
            each: if vectors == 1 { 2 } else { 1 },
            runs: (0..vectors).map(|v| runs(v, tiles, output)).collect(),
        })
    }

    /// Tiles of output channels in registers.
    fn blocks(&self) -> usize {
        self.outputs.div_ceil(ROWS)
    }

    /// Entries of a packed weight.
    pub(super) fn packed_len(&self) -> usize {
        self.blocks() * POINTS * self.inputs * ROWS
    }

    /// Transforms the weight `weight(output channel, input channel, entry)`.
    pub(super) fn pack(
        &self,
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
        packed: &mut [f32],
        threads: usize,
    ) {
        let step = self.inputs * ROWS;
        parallel_chunks(threads, packed, POINTS * step, |block, packed| {
            for c in 0..self.inputs {
                let mut entries = [[0f32; ROWS]; 9];
                let first = block * ROWS;
                for r in 0..ROWS.min(self.outputs - first) {
                    for (tap, entries) in entries.iter_mut().enumerate() {
                        entries[r] = weight(first + r, c, tap);
                    }
                }
                transform(&entries, &mut packed[c * ROWS..], step);
            }
        });
    }

    /// Entries of a plane of [`Across`].
    fn plane(&self) -> usize {
        ((self.tiles[0] + 1) * self.tiles[1]).next_multiple_of(LANES) + LANES
    }

    /// Entries of the transformed rows of an image, of the transformed tiles, and of their products.
    fn lens(&self) -> [usize; 3] {
        let width = VECTORS * LANES;
        [
            self.inputs * 8 * self.plane(),
            POINTS * self.inputs * width,
            POINTS * ROWS * width,
        ]
    }

    /// Convolves images with a packed weight.
    pub(super) fn run(
        &self,
        x: &[f32],
        packed: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
        threads: usize,
    ) {
        let x_len = self.inputs * self.input[0] * self.input[1];
        let out_len = self.outputs * self.output[0] * self.output[1];
        assert!(x.len() / x_len == out.len() / out_len && packed.len() >= self.packed_len());
        assert!(bias.is_none_or(|b| b.len() == self.outputs));
        let [half, tiles, sums] = self.lens();
        let len = self.each * half + tiles + sums + LANES;
        parallel_chunks(threads, out, self.each * out_len, |task, out| {
            let x = &x[task * self.each * x_len..];
            f32::buffer(len, |buffer| {
                // Vectors lie in one cache line each.
                let aligned = buffer.as_ptr().align_offset(64).min(LANES);
                self.images(x, packed, bias, out, &mut buffer[aligned..]);
            });
        });
    }

    /// Convolves a few images.
    fn images(
        &self,
        x: &[f32],
        packed: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
        buffer: &mut [f32],
    ) {
        let [height, width] = self.output;
        let pixels = height * width;
        let x_len = self.input[0] * self.input[1];
        let images = out.len() / (self.outputs * pixels);
        let plane = self.plane();
        let [half_len, tiles_len, _] = self.lens();
        let (half, rest) = buffer.split_at_mut(images * half_len);
        let (tiles, sums) = rest.split_at_mut(tiles_len);
        let channels = x.chunks_exact(x_len).zip(half.chunks_exact_mut(8 * plane));
        for (x, half) in channels.take(images * self.inputs) {
            let t = Across {
                x: x.as_ptr(),
                height: self.input[0],
                width: self.input[1],
                pad: self.pad,
                tiles: self.tiles,
                out: half.as_mut_ptr(),
                plane,
            };
            #[expect(unsafe_code, reason = "vector kernel")]
            // SAFETY: `new` asked whether there are such loops; the image and its planes have
            // their lengths.
            unsafe {
                across(t);
            }
        }
        let out = SharedMut::new(out);
        let each = self.runs.len();
        let total = images * each;
        let blocks = total.div_ceil(VECTORS);
        for block in 0..blocks {
            // As equally many vectors as can be.
            let vectors = block * total / blocks..(block + 1) * total / blocks;
            let (count, row) = (vectors.len(), vectors.len() * LANES);
            for c in 0..self.inputs {
                for (i, v) in vectors.clone().enumerate() {
                    let from = (v / each * self.inputs + c) * 8 * plane + v % each * LANES;
                    let t = Down {
                        half: half[from..].as_ptr(),
                        plane,
                        row: self.tiles[1],
                        out: tiles[c * row + i * LANES..].as_mut_ptr(),
                        step: self.inputs * row,
                    };
                    #[expect(unsafe_code, reason = "vector kernel")]
                    // SAFETY: planes have a row of tiles and a vector beyond the tiles; the tiles
                    // have `count` vectors for each channel and point.
                    unsafe {
                        down(t);
                    }
                }
            }
            for tile in 0..self.blocks() {
                for point in 0..POINTS {
                    let a = &packed[(tile * POINTS + point) * self.inputs * ROWS..];
                    let b = &tiles[point * self.inputs * row..];
                    let to = &mut sums[point * ROWS * row..][..ROWS * row];
                    #[expect(unsafe_code, reason = "vector kernel")]
                    // SAFETY: the weight has `ROWS` numbers, and the tiles `count` vectors, for
                    // each input channel; the sums have as many vectors for each row.
                    unsafe {
                        product(count, self.inputs, a.as_ptr(), b.as_ptr(), to.as_mut_ptr());
                    }
                }
                for r in 0..ROWS.min(self.outputs - tile * ROWS) {
                    let channel = tile * ROWS + r;
                    for (i, v) in vectors.clone().enumerate() {
                        let start = (v / each * self.outputs + channel) * pixels;
                        assert!(start + pixels <= out.len());
                        let t = Back {
                            sums: sums[r * row + i * LANES..].as_ptr(),
                            step: ROWS * row,
                            bias: bias.map_or(0.0, |b| b[channel]),
                            runs: &self.runs[v % each],
                            out: out.at(start),
                            height,
                            width,
                        };
                        #[expect(unsafe_code, reason = "vector kernel")]
                        // SAFETY: there are 16 points of `ROWS * row` sums; runs lie in the output
                        // channel, whose pixels were counted.
                        unsafe {
                            back(t);
                        }
                    }
                }
            }
        }
    }
}

/// The runs of tiles in a vector of an image.
fn runs(vector: usize, [rows, columns]: [usize; 2], [_, width]: [usize; 2]) -> Vec<Run> {
    let (start, end) = (vector * LANES, (rows * columns).min((vector + 1) * LANES));
    let mut runs = Vec::new();
    let mut at = start;
    while at < end {
        let (y, x) = (at / columns, at % columns);
        let next = end.min((y + 1) * columns);
        runs.push(Run {
            lane: at - start,
            y: 2 * y,
            x: 2 * x,
            len: (2 * (next - at)).min(width - 2 * x),
        });
        at = next;
    }
    runs
}

by_isa! {
    /// Transforms the kernels of some output channels: point after point, `step` apart.
    fn transform(entries: &[[f32; ROWS]; 9], out: &mut [f32], step: usize) = |_FMA| {
        let mut halves = [[0f32; ROWS]; 12];
        for x in 0..3 {
            for r in 0..ROWS {
                let [a, b, c] = [0, 3, 6].map(|y| entries[y + x][r]);
                let outer = 0.5 * (a + c);
                halves[x][r] = a;
                halves[3 + x][r] = outer + 0.5 * b;
                halves[6 + x][r] = outer - 0.5 * b;
                halves[9 + x][r] = c;
            }
        }
        for y in 0..4 {
            let mut points = [[0f32; ROWS]; 4];
            for r in 0..ROWS {
                let [a, b, c] = [0, 1, 2].map(|x| halves[3 * y + x][r]);
                let outer = 0.5 * (a + c);
                points[0][r] = a;
                points[1][r] = outer + 0.5 * b;
                points[2][r] = outer - 0.5 * b;
                points[3][r] = c;
            }
            for (x, points) in points.iter().enumerate() {
                out[(4 * y + x) * step..][..ROWS].copy_from_slice(points);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::panels::After;
    use super::super::testing::{convolved, geometry, values};
    use super::*;

    /// Compares with the definition; `None` if another way serves these sizes.
    fn check(g: &Geometry, images: usize, [inputs, outputs]: [usize; 2]) -> Option<()> {
        let sizes = Sizes {
            n: images,
            groups: 1,
            c: inputs,
            o: outputs,
            geometry: g.clone(),
        };
        let layer = Winograd::new(&sizes, [inputs, outputs], g)?;
        let x = values(1, images * inputs * g.input_len());
        let w = values(2, outputs * inputs * 9);
        let bias = values(3, outputs);
        let mut packed = vec![f32::NAN; layer.packed_len()];
        layer.pack(|o, c, tap| w[(o * inputs + c) * 9 + tap], &mut packed, 1);
        let after = After {
            bias: Some(&bias),
            ..After::default()
        };
        let expected = convolved(g, [1, inputs, outputs], &x, &w, &after);
        let mut out = vec![f32::NAN; expected.len()];
        layer.run(&x, &packed, Some(&bias), &mut out, 1);
        // As exact as sums of that many products are.
        for (i, (&found, &expected)) in out.iter().zip(&expected).enumerate() {
            let off = (f64::from(found) - expected).abs();
            assert!(
                off < 1e-5 * (1.0 + expected.abs()),
                "{i}: {found}, {expected}"
            );
        }
        let mut threaded = vec![f32::NAN; out.len()];
        layer.run(&x, &packed, Some(&bias), &mut threaded, 3);
        assert_eq!(out, threaded);
        Some(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn it_agrees_with_the_definition(
            size in [5usize..20, 5usize..40], begin in [0usize..4, 0usize..4],
            end in [0usize..4, 0usize..4], channels in [16usize..20, 16usize..26],
            images in 8usize..10,
        ) {
            let g = geometry(size, [3; 2], [1; 2], [1; 2], begin, end).unwrap();
            check(&g, images, channels);
        }
    }

    #[test]
    fn usual_sizes_are_served() {
        for (size, channels) in [(32, 16), (16, 32), (8, 64), (14, 24)] {
            let g = geometry([size; 2], [3; 2], [1; 2], [1; 2], [1; 2], [1; 2]).unwrap();
            let found = check(&g, 9, [channels; 2]);
            assert_eq!(found.is_some(), serves(Isa::get()), "{size}");
        }
    }
}
