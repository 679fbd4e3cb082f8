//! Integer layers on vectors of 8-bit dot products or of 16-bit ones, or on plain loops.
//!
//! A layer is the sum over contiguous runs of bytes of a patch: an image is laid out with its
//! channels fastest and a border of zero points, so that a kernel row of all channels is one run.
//! Runs are read four bytes at a time, against weights packed as `[16 outputs][4 inputs]`. The
//! portable loop and the vector one add the same integers and share what becomes of them, so that
//! they agree bit for bit.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::cell::RefCell;
use std::ops::Range;

use bytemuck::Pod;
use opt_core::{DType, Result};

use super::super::elementwise;
use super::super::{Arg, Kernel, Out, RunCx, SharedMut, parallel, parallel_chunks};
use super::affine::{Affine, Scales};
use super::{Finish, IntPath, Layer, has_avx2, has_vnni};

/// Outputs of a block: the lanes of a 512-bit vector.
const LANES: usize = 16;

/// Pixels of a tile.
const PIXELS: usize = 8;

/// Blocks of outputs of a tile. With [`PIXELS`] as many independent sums as hide the latency of
/// the multiply-add.
const BLOCKS: usize = 2;

/// Multiply-adds of a task that is worth being handed to another thread.
const TASK: usize = 1 << 20;

/// The sums of a tile: of each block and pixel.
type Tile = [[[i32; LANES]; PIXELS]; BLOCKS];

/// A run of bytes of a patch: where it starts relative to the patch, in groups of four bytes.
#[derive(Debug, Clone, Copy)]
struct Run {
    offset: usize,
    quads: usize,
}

#[derive(Debug)]
pub(crate) struct IntLayer {
    layer: Layer,
    /// The runs of a group, relative to the patch and the group's first channel.
    runs: Vec<Run>,
    quads: usize,
    /// For each group and block of outputs the quads of all runs.
    weight: Vec<i8>,
    affine: Affine,
    /// Where the patch of each output pixel starts in the laid-out image.
    bases: Vec<u32>,
    /// Height, width and padding of the laid-out image; a matrix product has rows of pixels.
    padded: (usize, usize),
    vectors: Vectors,
}

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vectors {
    Vnni,
    Avx2,
    None,
}

impl Vectors {
    /// The best of a path that the processor has.
    fn of(path: IntPath) -> Vectors {
        match path {
            IntPath::Portable => Vectors::None,
            IntPath::Avx2 if has_avx2() => Vectors::Avx2,
            _ if has_vnni() => Vectors::Vnni,
            _ if has_avx2() => Vectors::Avx2,
            _ => Vectors::None,
        }
    }
}

/// A part of a layer that one thread computes.
struct Task {
    group: usize,
    blocks: Range<usize>,
    pixels: Range<usize>,
}

impl IntLayer {
    /// Packs a layer whose inputs are `rows` pixels (for a matrix product) or images.
    pub(crate) fn new(mut layer: Layer, rows: usize) -> IntLayer {
        let channels = layer.groups * layer.inputs;
        // Taps as (row, column) offsets in the laid-out image and their index in the weight.
        let (taps, padded, bases) = match &layer.geometry {
            None => (
                vec![(0, 0)],
                (1, rows),
                (0..rows).map(|r| (r * channels) as u32).collect(),
            ),
            Some(g) => {
                let extent = |axis: usize| {
                    let kernel = (g.kernel[axis] - 1) * g.dilation[axis] + 1;
                    let reach = (g.output[axis] - 1) * g.stride[axis] + kernel;
                    reach.max(g.input[axis] + g.pad[axis])
                };
                let (height, width) = (extent(1), extent(2));
                let taps: Vec<_> = (0..g.kernel[1])
                    .flat_map(|y| (0..g.kernel[2]).map(move |x| (y, x)))
                    .map(|(y, x)| (y * g.dilation[1], x * g.dilation[2]))
                    .collect();
                let mut bases = Vec::with_capacity(g.output[1] * g.output[2]);
                for y in 0..g.output[1] {
                    for x in 0..g.output[2] {
                        let at = y * g.stride[1] * width + x * g.stride[2];
                        bases.push((at * channels) as u32);
                    }
                }
                (taps, (height, width), bases)
            }
        };
        let width = padded.1;
        // Neighbouring taps of a row whose channels follow each other make one run.
        let mut runs: Vec<(usize, Vec<usize>)> = Vec::new();
        for (t, &(y, x)) in taps.iter().enumerate() {
            let offset = (y * width + x) * channels;
            match runs.last_mut() {
                Some((start, members))
                    if layer.groups == 1 && *start + members.len() * channels == offset =>
                {
                    members.push(t);
                }
                _ => runs.push((offset, vec![t])),
            }
        }
        let shape: Vec<Run> = runs
            .iter()
            .map(|(offset, members)| Run {
                offset: *offset,
                quads: (members.len() * layer.inputs).div_ceil(4),
            })
            .collect();
        let quads: usize = shape.iter().map(|r| r.quads).sum();
        let blocks = layer.outputs.div_ceil(LANES);
        let mut weight = vec![0i8; layer.groups * blocks * quads * LANES * 4];
        let count = taps.len();
        for channel in 0..layer.groups * layer.outputs {
            let (group, o) = (channel / layer.outputs, channel % layer.outputs);
            let source = &layer.weight[channel * layer.inputs * count..][..layer.inputs * count];
            let block = (group * blocks + o / LANES) * quads * LANES * 4;
            let mut first = 0;
            for ((_, members), run) in runs.iter().zip(&shape) {
                for (m, &tap) in members.iter().enumerate() {
                    for c in 0..layer.inputs {
                        let byte = m * layer.inputs + c;
                        let quad = first + byte / 4;
                        weight[block + (quad * LANES + o % LANES) * 4 + byte % 4] =
                            source[c * count + tap];
                    }
                }
                first += run.quads;
            }
        }
        // Unsigned bytes: a signed activation is read with 128 added.
        let shift = if layer.dtype == DType::I8 { 128 } else { 0 };
        let affine = Affine::new(&layer, LANES, shift);
        layer.weight = Vec::new();
        IntLayer {
            vectors: Vectors::of(layer.path),
            layer,
            runs: shape,
            quads,
            weight,
            affine,
            bases,
            padded,
        }
    }

    /// What activations are combined with to be unsigned.
    fn flip(&self) -> u8 {
        if self.layer.dtype == DType::I8 {
            0x80
        } else {
            0
        }
    }

    /// Lays an image out with its channels fastest and a border of zero points.
    fn lay_out(&self, x: &[u8], zero: u8, image: &mut [u8], threads: usize) {
        let flip = self.flip();
        let Some(g) = &self.layer.geometry else {
            parallel_chunks(threads, &mut image[..x.len()], 1 << 16, |i, image| {
                for (to, &from) in image.iter_mut().zip(&x[i << 16..]) {
                    *to = from ^ flip;
                }
            });
            return;
        };
        let channels = self.layer.groups * self.layer.inputs;
        let width = self.padded.1;
        let row = width * channels;
        parallel_chunks(
            threads,
            &mut image[..self.padded.0 * row],
            row,
            |y, image| {
                let Some(y) = y.checked_sub(g.pad[1]).filter(|&y| y < g.input[1]) else {
                    image.fill(zero ^ flip);
                    return;
                };
                let (left, rest) = image.split_at_mut(g.pad[2] * channels);
                let (pixels, right) = rest.split_at_mut(g.input[2] * channels);
                left.fill(zero ^ flip);
                right.fill(zero ^ flip);
                for c in 0..channels {
                    let from = &x[(c * g.input[1] + y) * g.input[2]..][..g.input[2]];
                    for (to, &v) in pixels[c..].iter_mut().step_by(channels).zip(from) {
                        *to = v ^ flip;
                    }
                }
            },
        );
    }

    /// The sums of a tile of pixels for one or two blocks of outputs, `at` and the next.
    fn tile(
        &self,
        image: &[u8],
        bases: &[u32],
        channel: usize,
        at: usize,
        both: bool,
        start: &[i32],
    ) -> Tile {
        let size = self.quads * LANES * 4;
        let count = 1 + usize::from(both);
        let weight = &self.weight[at * size..][..count * size];
        let start = &start[at * LANES..][..count * LANES];
        #[cfg(target_arch = "x86_64")]
        if self.vectors != Vectors::None {
            let last = bases.iter().max().map_or(0, |&b| b as usize) + channel;
            let reach = self.runs.iter().map(|r| r.offset + 4 * r.quads).max();
            assert!(last + reach.unwrap_or(0) <= image.len());
            if self.vectors == Vectors::Avx2 {
                let mut out = [[[0; LANES]; PIXELS]; BLOCKS];
                let blocks = weight.chunks_exact(size).zip(start.chunks_exact(LANES));
                for (out, (weight, start)) in out.iter_mut().zip(blocks) {
                    for (out, bases) in out.chunks_exact_mut(2).zip(bases.chunks(2)) {
                        // SAFETY: `has_avx2` found the instructions; every quad lies in the image
                        // as asserted; the weights and the start are one block's.
                        let sums = unsafe { self.avx2(image, bases, channel, weight, start) };
                        out.copy_from_slice(&sums);
                    }
                }
                return out;
            }
            // SAFETY: `has_vnni` found the instructions; every quad that is read lies in the
            // image as asserted, and there are as many blocks of weights and starts as asked for.
            return unsafe {
                match (both, bases.len()) {
                    (true, 1) => self.vnni::<1, 2>(image, bases, channel, weight, start),
                    (true, _) => self.vnni::<PIXELS, 2>(image, bases, channel, weight, start),
                    (false, 1) => self.vnni::<1, 1>(image, bases, channel, weight, start),
                    (false, _) => self.vnni::<PIXELS, 1>(image, bases, channel, weight, start),
                }
            };
        }
        let mut out = [[[0; LANES]; PIXELS]; BLOCKS];
        for (b, sums) in out[..count].iter_mut().enumerate() {
            let weight = &weight[b * size..][..size];
            for (sum, &base) in sums.iter_mut().zip(bases) {
                sum.copy_from_slice(&start[b * LANES..][..LANES]);
                let mut quad = 0;
                for run in &self.runs {
                    let bytes = &image[base as usize + channel + run.offset..][..4 * run.quads];
                    for x in bytes.chunks_exact(4) {
                        let w = &weight[quad * LANES * 4..][..LANES * 4];
                        for (s, w) in sum.iter_mut().zip(w.chunks_exact(4)) {
                            for i in 0..4 {
                                *s = s.wrapping_add(i32::from(x[i]) * i32::from(w[i]));
                            }
                        }
                        quad += 1;
                    }
                }
            }
        }
        out
    }

    /// [`IntLayer::tile`] by 8-bit dot products, of `P` pixels and `B` blocks.
    ///
    /// # Safety
    /// The processor has AVX-512 VNNI, every quad of every base lies in the image, and `weight`
    /// and `start` are `B` blocks.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn vnni<const P: usize, const B: usize>(
        &self,
        image: &[u8],
        bases: &[u32],
        channel: usize,
        weight: &[i8],
        start: &[i32],
    ) -> Tile {
        use std::arch::x86_64::{
            _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512,
            _mm512_storeu_si512,
        };
        let mut sums = [[_mm512_setzero_si512(); P]; B];
        for (b, sums) in sums.iter_mut().enumerate() {
            // SAFETY: 16 integers of 4 bytes a block.
            *sums = [unsafe { _mm512_loadu_si512(start[b * LANES..].as_ptr().cast()) }; P];
        }
        let mut starts = [image.as_ptr(); P];
        for (i, s) in starts.iter_mut().enumerate() {
            // A tile that is not full computes its last pixel again.
            let base = bases[i.min(bases.len() - 1)] as usize + channel;
            *s = image.as_ptr().wrapping_add(base);
        }
        let size = self.quads * LANES * 4;
        let mut w = weight.as_ptr();
        for run in &self.runs {
            for quad in 0..run.quads {
                let mut blocks = [_mm512_setzero_si512(); B];
                for (b, block) in blocks.iter_mut().enumerate() {
                    // SAFETY: each block of weights has 64 bytes for each quad.
                    *block = unsafe { _mm512_loadu_si512(w.wrapping_add(b * size).cast()) };
                }
                w = w.wrapping_add(LANES * 4);
                for (p, s) in starts.iter().enumerate() {
                    let at = s.wrapping_add(run.offset + 4 * quad);
                    // SAFETY: the quad lies in the image as the caller vouches.
                    let x = _mm512_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() });
                    for (sums, &block) in sums.iter_mut().zip(&blocks) {
                        sums[p] = _mm512_dpbusd_epi32(sums[p], x, block);
                    }
                }
            }
        }
        let mut out = [[[0i32; LANES]; PIXELS]; BLOCKS];
        for (out, sums) in out.iter_mut().zip(sums) {
            for (o, s) in out.iter_mut().zip(sums) {
                // SAFETY: 16 integers of 4 bytes.
                unsafe { _mm512_storeu_si512(o.as_mut_ptr().cast(), s) };
            }
        }
        out
    }

    /// The sums of one block for one or two pixels, by products of 16 bits, which cannot saturate.
    ///
    /// # Safety
    /// The processor has AVX2, every quad of every base lies in the image, and `weight` and `start`
    /// are a block.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(
        &self,
        image: &[u8],
        bases: &[u32],
        channel: usize,
        weight: &[i8],
        start: &[i32],
    ) -> [[i32; LANES]; 2] {
        use std::arch::x86_64::{
            __m128i, _mm_cvtepu8_epi16, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_add_epi32,
            _mm256_broadcastq_epi64, _mm256_cvtepi8_epi16, _mm256_madd_epi16, _mm256_setzero_si256,
            _mm256_storeu_si256,
        };
        /// Outputs of a vector of weights.
        const FOUR: usize = 4;
        let mut starts = [image.as_ptr(); 2];
        for (i, s) in starts.iter_mut().enumerate() {
            // A lonely pixel is computed twice.
            let base = bases[i.min(bases.len() - 1)] as usize + channel;
            *s = image.as_ptr().wrapping_add(base);
        }
        // Two sums for each output: of the first and the second pair of each quad.
        let mut sums = [[_mm256_setzero_si256(); LANES / FOUR]; 2];
        let mut w: *const __m128i = weight.as_ptr().cast();
        for run in &self.runs {
            for quad in 0..run.quads {
                let mut blocks = [_mm256_setzero_si256(); LANES / FOUR];
                for (i, block) in blocks.iter_mut().enumerate() {
                    // SAFETY: a block of weights has 64 bytes for each quad.
                    let bytes = unsafe { _mm_loadu_si128(w.wrapping_add(i)) };
                    *block = _mm256_cvtepi8_epi16(bytes);
                }
                w = w.wrapping_add(LANES / FOUR);
                for (sums, s) in sums.iter_mut().zip(&starts) {
                    let at = s.wrapping_add(run.offset + 4 * quad);
                    // SAFETY: the quad lies in the image as the caller vouches.
                    let x = unsafe { at.cast::<i32>().read_unaligned() };
                    let x = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(x)));
                    for (sum, &block) in sums.iter_mut().zip(&blocks) {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, block));
                    }
                }
            }
        }
        let mut out = [[0; LANES]; 2];
        for (out, sums) in out.iter_mut().zip(sums) {
            for (i, sum) in sums.into_iter().enumerate() {
                let mut pairs = [0i32; 2 * FOUR];
                // SAFETY: 8 integers of 4 bytes.
                unsafe { _mm256_storeu_si256(pairs.as_mut_ptr().cast(), sum) };
                for (j, pair) in pairs.as_chunks::<2>().0.iter().enumerate() {
                    let at = i * FOUR + j;
                    out[at] = start[at].wrapping_add(pair[0]).wrapping_add(pair[1]);
                }
            }
        }
        out
    }

    /// The tasks of an image, or of all rows, for a number of threads.
    fn tasks(&self, threads: usize) -> (usize, impl Fn(usize) -> Task + Sync) {
        let pixels = self.bases.len().div_ceil(PIXELS);
        let pairs = self.layer.outputs.div_ceil(LANES).div_ceil(BLOCKS);
        let tile = PIXELS * BLOCKS * LANES * 4 * self.quads;
        let work = pixels * pairs * tile * self.layer.groups;
        let pieces = if threads <= 1 {
            1
        } else {
            (work / TASK).clamp(1, 8 * threads)
        };
        let pieces = pieces.div_ceil(self.layer.groups);
        let parts = pieces.min(pairs).max(1);
        let halves = pieces.div_ceil(parts).min(pixels).max(1);
        let (outputs, count) = (self.layer.outputs.div_ceil(LANES), self.bases.len());
        let share = |of: usize, parts: usize, i: usize| of * i / parts..of * (i + 1) / parts;
        let task = move |i: usize| {
            let blocks = share(pairs, parts, i / halves % parts);
            let tiles = share(pixels, halves, i % halves);
            Task {
                group: i / (parts * halves),
                blocks: blocks.start * BLOCKS..(blocks.end * BLOCKS).min(outputs),
                pixels: tiles.start * PIXELS..(tiles.end * PIXELS).min(count),
            }
        };
        (self.layer.groups * parts * halves, task)
    }

    /// Computes an image, or all rows: `finish` makes outputs of 16 sums and the number of the
    /// first one's scale, `last` is applied to pieces of rows when all of them are there.
    fn compute<T: Pod + Send + Sync>(
        &self,
        image: &[u8],
        start: &[i32],
        out: &mut [T],
        threads: usize,
        finish: impl Fn(&[i32; LANES], usize) -> [T; LANES] + Sync,
        last: impl Fn(&mut [T]) + Sync,
    ) {
        let rows = self.layer.geometry.is_none();
        let (count, task) = self.tasks(threads);
        let (out, total) = (SharedMut::new(out), self.bases.len());
        let blocks = self.layer.outputs.div_ceil(LANES);
        let width = self.layer.groups * self.layer.outputs;
        parallel(threads, count, |i| {
            let task = task(i);
            let channel = task.group * self.layer.inputs;
            let from = task.group * self.layer.outputs;
            for block in task.blocks.clone().step_by(BLOCKS) {
                let both = block + 1 < task.blocks.end;
                for at in task.pixels.clone().step_by(PIXELS) {
                    let bases = &self.bases[at..(at + PIXELS).min(task.pixels.end)];
                    let slot = task.group * blocks + block;
                    let tile = self.tile(image, bases, channel, slot, both, start);
                    for (b, sums) in tile[..1 + usize::from(both)].iter().enumerate() {
                        let first = from + (block + b) * LANES;
                        let lanes = LANES.min(self.layer.outputs - (block + b) * LANES);
                        let slot = (slot + b) * LANES;
                        let mut done = [[T::zeroed(); LANES]; PIXELS];
                        for (done, sums) in done.iter_mut().zip(&sums[..bases.len()]) {
                            *done = finish(sums, slot);
                        }
                        let done = &done[..bases.len()];
                        if rows {
                            for (p, done) in done.iter().enumerate() {
                                let at = (at + p) * width + first;
                                // SAFETY: tasks have pixels and outputs of their own.
                                let out = unsafe { out.part(at..at + lanes) };
                                out.copy_from_slice(&done[..lanes]);
                            }
                            continue;
                        }
                        for o in 0..lanes {
                            let at = (first + o) * total + at;
                            // SAFETY: as above.
                            let out = unsafe { out.part(at..at + done.len()) };
                            for (to, done) in out.iter_mut().zip(done) {
                                *to = done[o];
                            }
                        }
                    }
                }
            }
            if rows {
                let first = from + task.blocks.start * LANES;
                let end = from + self.layer.outputs.min(task.blocks.end * LANES);
                for at in task.pixels {
                    // SAFETY: as above.
                    last(unsafe { out.part(at * width + first..at * width + end) });
                }
            }
        });
    }

    /// Bytes of a laid-out image, with room to read the last run's last quad.
    fn image_len(&self) -> usize {
        let channels = self.layer.groups * self.layer.inputs;
        let last = self.bases.last().copied().unwrap_or(0) as usize;
        let reach = self.runs.iter().map(|r| r.offset + 4 * r.quads).max();
        let room = last + channels + reach.unwrap_or(0);
        (self.padded.0 * self.padded.1 * channels).max(room) + 4
    }

    /// One image, or all rows.
    fn image(&self, x: &[u8], scales: Scales<'_>, out: &mut [u8], threads: usize) {
        thread_local!(static IMAGE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        // Whole quads of unsigned bytes are read where they lie.
        let in_place = self.layer.geometry.is_none()
            && self.flip() == 0
            && self.layer.inputs.is_multiple_of(4);
        // Taken out, since a thread that waits for others may start another task meanwhile.
        let mut image = IMAGE.take();
        if !in_place {
            image.resize(self.image_len(), 0);
            self.lay_out(x, scales.zero as u8, &mut image, threads);
        }
        self.finish(if in_place { x } else { &image }, scales, out, threads);
        IMAGE.set(image);
    }

    fn finish(&self, image: &[u8], scales: Scales<'_>, out: &mut [u8], threads: usize) {
        let Scales {
            start,
            multiplier,
            offset,
            ..
        } = scales;
        match self.layer.finish {
            Finish::Requantize { zero, low, high } => {
                let finish = |sums: &[i32; LANES], slot: usize| {
                    let mut bytes = [0; LANES];
                    requantize(
                        sums,
                        &multiplier[slot..][..LANES],
                        zero,
                        low,
                        high,
                        &mut bytes,
                    );
                    bytes
                };
                self.compute(image, start, out, threads, finish, |_| ());
            }
            Finish::Dequantize { relu } => {
                let finish = |sums: &[i32; LANES], slot: usize| {
                    let offset = offset.map(|v| &v[slot..][..LANES]);
                    let mut out = [0.0; LANES];
                    dequantize(sums, &multiplier[slot..][..LANES], offset, relu, &mut out);
                    out
                };
                let out = bytemuck::cast_slice_mut(out);
                let last = |row: &mut [f32]| elementwise::apply(&self.layer.epilogue, row);
                self.compute(image, start, out, threads, finish, last);
            }
            Finish::Sums => {
                let out = bytemuck::cast_slice_mut(out);
                self.compute(image, start, out, threads, |&sums, _| sums, |_| ());
            }
        }
    }
}

crate::kernels::lanes::by_isa! {
    /// The requantization that every path shares.
    fn requantize(
        sums: &[i32; LANES],
        multiplier: &[f32],
        zero: i32,
        low: i32,
        high: i32,
        out: &mut [u8; LANES]
    ) = |_FMA| {
        for i in 0..LANES {
            let scaled = (sums[i] as f32 * multiplier[i]).round_ties_even();
            out[i] = (scaled as i32).saturating_add(zero).clamp(low, high) as u8;
        }
    }
}

/// Sums in float.
fn dequantize(
    sums: &[i32; LANES],
    multiplier: &[f32],
    offset: Option<&[f32]>,
    relu: bool,
    out: &mut [f32; LANES],
) {
    for i in 0..LANES {
        let v = sums[i] as f32 * multiplier[i];
        let v = offset.map_or(v, |offset| v + offset[i]);
        // 0 where it is a NaN.
        out[i] = if !relu || v > 0.0 { v } else { 0.0 };
    }
}

impl Kernel for IntLayer {
    fn name(&self) -> String {
        self.layer.name()
    }

    fn scratch(&self) -> usize {
        self.affine.scratch()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (inputs, outputs) = match &self.layer.geometry {
            Some(g) => (g.input_len(), g.output_len()),
            None => (self.bases.len(), self.bases.len()),
        };
        let input = self.layer.groups * self.layer.inputs * inputs;
        let output = self.layer.groups * self.layer.outputs * outputs * self.layer.finish.size();
        if output == 0 {
            return Ok(());
        }
        let (x, out) = (args[0].bytes, &mut *outs[0].bytes);
        let scales = self.affine.at(&self.layer, args, cx.scratch);
        let count = out.len() / output;
        let inner = if count >= cx.threads { 1 } else { cx.threads };
        let outer = if inner == 1 { cx.threads } else { 1 };
        // Chunks of bytes are aligned as the output is, since an image is whole elements.
        parallel_chunks(outer, out, output, |n, out| {
            self.image(&x[n * input..][..input], scales, out, inner);
        });
        Ok(())
    }
}
