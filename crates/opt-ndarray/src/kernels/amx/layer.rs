//! Integer layers on tile products.
//!
//! A matrix product has its rows of activations as the left operand, read where they lie or
//! copied into tiles, and its weights as the right one. A convolution has its weights as the left
//! operand and the pixels of a laid-out [`Image`] as the right one, so that a tile of sums is
//! already 16 channels by 16 pixels, as the output has them. Either way a block of 32 rows or
//! pixels stays in the first-level cache while the weights of 32 outputs after the other pass by.

use std::cell::RefCell;
use std::ops::Range;

use opt_core::{DType, Result};

use super::super::int8::{Finish, Layer};
use super::super::{Arg, Kernel, Out, RunCx, SharedMut, parallel};
use super::image::{Image, PIXELS};
use super::{Block, Lines, Operand, ROW, ROWS, Signs, TILE, Tiles};

/// Outputs, and rows or pixels, of a block of sums.
const BLOCK: usize = 2 * ROWS;

/// Steps of 64 bytes for which the block of activations (2 KiB a step) stays in the first-level
/// cache; longer sums go to memory in between.
const STEPS: usize = 20;

/// Bytes of weights that stay in the second-level cache while activations pass by.
const WEIGHTS: usize = 1 << 20;

/// Blocks of sums that a task keeps between the parts of a long sum.
const KEPT: usize = 32;

/// Multiply-adds from which a second thread is worth its start.
const PARALLEL: usize = 1 << 23;

/// Where the activations are read.
#[derive(Debug)]
enum Source {
    /// Rows of bytes; straight from memory where `direct`, except for the last rows.
    Rows { count: usize, direct: bool },
    /// Pixels of an image; straight from it where each step reads quads of one tap.
    Pixels { image: Image, direct: bool },
}

/// A layer, packed.
#[derive(Debug)]
pub(crate) struct AmxLayer {
    layer: Layer,
    source: Source,
    signs: Signs,
    /// Steps of 64 bytes of a sum.
    steps: usize,
    /// Blocks of outputs of a group.
    blocks: usize,
    /// For each group, block and step two tiles.
    weight: Lines,
    /// Offsets of the steps in packed tiles.
    packed: Vec<usize>,
    /// Offsets of the steps in the activations where they are read directly.
    direct: Vec<usize>,
    /// What the sums start with: 32 numbers a block, for an image 32 rows of 16 times the same.
    start: Vec<i32>,
    /// One an output, padded to blocks.
    multiplier: Vec<f32>,
}

/// What a thread works with.
struct Work {
    /// A block of activations as tiles.
    pack: Lines,
    /// Blocks of unfinished sums.
    sums: Lines,
    /// Two blocks of sums: one to finish, one that the unit is working on.
    stage: Lines,
}

/// A part of a layer that one thread computes.
struct Task {
    group: usize,
    /// Blocks of rows or pixels.
    activations: Range<usize>,
    /// Blocks of outputs.
    outputs: Range<usize>,
}

impl AmxLayer {
    /// Whether tiles hold enough of a layer to be faster than vectors.
    pub(crate) fn suits(layer: &Layer) -> bool {
        let taps = layer.taps();
        let depth = taps * layer.inputs.div_ceil(4) * 4;
        let filled = |n: usize, of: usize| n as f64 / (n.div_ceil(of) * of) as f64;
        let used = filled(layer.inputs * taps, 4)
            * filled(depth, ROW)
            * filled(layer.outputs, ROWS);
        let waste = layer
            .geometry
            .as_ref()
            .map_or(1.0, |g| Image::new(g, 1, 1).waste());
        used / waste >= 1.0 / 8.0
    }

    /// Packs a layer whose inputs are `rows` pixels (for a matrix product) or images.
    ///
    /// # Panics
    /// If the processor has no AMX.
    pub(crate) fn new(layer: Layer, rows: usize) -> AmxLayer {
        assert!(super::available(), "the processor has no AMX");
        let taps = layer.taps();
        let quads = layer.inputs.div_ceil(4);
        let steps = (taps * quads).div_ceil(ROWS).max(1);
        let blocks = layer.outputs.div_ceil(BLOCK);
        let image = layer
            .geometry
            .as_ref()
            .map(|g| Image::new(g, layer.groups, layer.inputs));
        let mut weight = Lines::new();
        weight.reserve(layer.groups * blocks * steps * 2 * TILE);
        let repeat = if image.is_some() { ROWS } else { 1 };
        let mut start = vec![0i32; layer.groups * blocks * BLOCK * repeat];
        let mut multiplier = vec![0f32; layer.groups * blocks * BLOCK];
        let bytes = weight.bytes_mut();
        for channel in 0..layer.groups * layer.outputs {
            let (group, o) = (channel / layer.outputs, channel % layer.outputs);
            let block = group * blocks + o / BLOCK;
            let source = &layer.weight[channel * layer.inputs * taps..][..layer.inputs * taps];
            for (i, &w) in source.iter().enumerate() {
                let (c, tap) = (i / taps, i % taps);
                let quad = tap * quads + c / 4;
                let tile = (block * steps + quad / ROWS) * 2 + o % BLOCK / ROWS;
                let (row, lane, byte) = (o % ROWS, quad % ROWS, c % 4);
                let at = if image.is_some() {
                    row * ROW + lane * 4 + byte
                } else {
                    lane * ROW + row * 4 + byte
                };
                bytes[tile * TILE + at] = w as u8;
            }
            let sum = source
                .iter()
                .fold(0i32, |s, &w| s.wrapping_add(i32::from(w)));
            let slot = block * BLOCK + o % BLOCK;
            let first = layer.bias[channel].wrapping_sub(layer.zero.wrapping_mul(sum));
            start[slot * repeat..][..repeat].fill(first);
            multiplier[slot] = layer.multiplier[channel];
        }
        let signs = match (layer.dtype == DType::I8, image.is_some()) {
            (true, _) => Signs::Signed,
            (false, true) => Signs::SignedUnsigned,
            (false, false) => Signs::UnsignedSigned,
        };
        let (source, direct) = match image {
            None => {
                let direct = layer.inputs > 0 && layer.inputs % ROW == 0 && spread(layer.inputs);
                let source = Source::Rows {
                    count: rows,
                    direct,
                };
                (source, (0..steps).map(|s| s * ROW).collect())
            }
            Some(image) => {
                let direct = layer.inputs % ROW == 0 && taps > 0;
                let offsets = image.offsets.iter().step_by(ROWS).copied().collect();
                (Source::Pixels { image, direct }, offsets)
            }
        };
        AmxLayer {
            packed: (0..steps).map(|s| s * 2 * TILE).collect(),
            layer,
            source,
            signs,
            steps,
            blocks,
            weight,
            direct,
            start,
            multiplier,
        }
    }

    /// Blocks of rows or pixels.
    fn activations(&self) -> usize {
        match &self.source {
            Source::Rows { count, .. } => count.div_ceil(BLOCK),
            Source::Pixels { image, .. } => image.tiles.len().div_ceil(2),
        }
    }

    /// The tasks of an image, or of all rows, for a number of threads.
    fn tasks(&self, threads: usize) -> (usize, impl Fn(usize) -> Task + Sync) {
        let acts = self.activations();
        let work = acts * self.blocks * self.steps * 4 * TILE * ROWS * self.layer.groups;
        let pieces = if threads <= 1 || work < PARALLEL {
            1
        } else {
            2 * threads
        };
        let fitting = WEIGHTS / (self.steps * 2 * TILE);
        let fitting = fitting.clamp(1, KEPT);
        let parts = self.blocks.div_ceil(fitting);
        let halves = pieces.div_ceil(parts * self.layer.groups).min(acts).max(1);
        let parts = parts.max(pieces.div_ceil(halves * self.layer.groups).min(self.blocks));
        let blocks = self.blocks;
        let task = move |i: usize| Task {
            group: i / (parts * halves),
            activations: share(acts, halves, i % halves),
            outputs: share(blocks, parts, i / halves % parts),
        };
        (self.layer.groups * parts * halves, task)
    }

    /// Bytes of an output element.
    fn size(&self) -> usize {
        match self.layer.finish {
            Finish::Requantize { .. } => 1,
            Finish::Dequantize { .. } => 4,
        }
    }

    /// Computes the outputs of an image, or of all rows: `x` is laid out, `out` as it will be.
    fn compute(&self, x: &[u8], out: &mut [u8], threads: usize) {
        thread_local!(static WORK: RefCell<Work> = const {
            RefCell::new(Work { pack: Lines::new(), sums: Lines::new(), stage: Lines::new() })
        });
        let out = SharedMut::new(out);
        let (count, task) = self.tasks(threads);
        parallel(threads, count, |i| {
            WORK.with_borrow_mut(|work| self.task(x, &out, &task(i), work));
        });
    }

    fn task(&self, x: &[u8], out: &SharedMut<'_, u8>, task: &Task, work: &mut Work) {
        let parts = self.steps.div_ceil(STEPS);
        work.pack.reserve(self.steps * 2 * TILE);
        work.stage.reserve(2 * 4 * TILE);
        if parts > 1 {
            work.sums.reserve(task.outputs.len() * 4 * TILE);
        }
        let stage = work.stage.bytes_mut().as_mut_ptr();
        let kept = work.sums.bytes_mut().as_mut_ptr();
        let mut turn = 0;
        let mut waiting = None;
        let tiles = Tiles::configure();
        for a in task.activations.clone() {
            let (activation, pair) = self.activation(x, task.group, a, &mut work.pack);
            for part in 0..parts {
                let steps = share(self.steps, parts, part);
                for o in task.outputs.clone() {
                    let block = task.group * self.blocks + o;
                    let weight = Operand {
                        base: self.weight.bytes()[block * self.steps * 2 * TILE..].as_ptr(),
                        offsets: &self.packed[steps.clone()],
                        second: TILE,
                        stride: ROW,
                    };
                    let activation = Operand {
                        offsets: &activation.offsets[steps.clone()],
                        ..activation
                    };
                    let outputs = self.layer.outputs - o * BLOCK > ROWS;
                    let sums = kept.wrapping_add((o - task.outputs.start) * 4 * TILE);
                    let (start, start_stride) = if part == 0 {
                        self.start(block)
                    } else {
                        let at = |i| sums.wrapping_add(i * TILE).cast_const().cast();
                        ([at(0), at(1), at(2), at(3)], ROW)
                    };
                    let rows = matches!(self.source, Source::Rows { .. });
                    let block = Block {
                        left: if rows { activation } else { weight },
                        right: if rows { weight } else { activation },
                        signs: self.signs,
                        pairs: if rows {
                            (pair, outputs)
                        } else {
                            (outputs, pair)
                        },
                        start,
                        start_stride,
                    };
                    let last = part + 1 == parts;
                    let target = if last {
                        stage.wrapping_add(turn * 4 * TILE)
                    } else {
                        sums
                    };
                    // SAFETY: the registers are configured; the weights have two tiles a step,
                    // the activations those that `activation` says; `target` has four tiles.
                    unsafe { block.run(target.cast()) };
                    if !last {
                        continue;
                    }
                    // The block before is finished while the unit works on this one.
                    if let Some((a, o, sums)) = waiting.replace((a, o, target.cast_const().cast()))
                    {
                        self.finish(out, task.group, a, o, sums);
                    }
                    turn = 1 - turn;
                }
            }
        }
        drop(tiles);
        if let Some((a, o, sums)) = waiting {
            self.finish(out, task.group, a, o, sums);
        }
    }

    /// What the sums of a block of outputs start with, and the distance of its rows.
    fn start(&self, block: usize) -> ([*const i32; 4], usize) {
        match self.source {
            // The same row 16 times.
            Source::Rows { .. } => {
                let start = &self.start[block * BLOCK..][..BLOCK];
                let (left, right) = (start.as_ptr(), start[ROWS..].as_ptr());
                ([left, right, left, right], 0)
            }
            Source::Pixels { .. } => {
                let start = &self.start[block * BLOCK * ROWS..][..BLOCK * ROWS];
                let (upper, lower) = (start.as_ptr(), start[ROWS * ROWS..].as_ptr());
                ([upper, upper, lower, lower], ROW)
            }
        }
    }

    /// The tiles of a block of activations, and whether there are two a step.
    fn activation<'a>(
        &'a self,
        x: &[u8],
        group: usize,
        block: usize,
        pack: &mut Lines,
    ) -> (Operand<'a>, bool) {
        match &self.source {
            Source::Rows { count, direct } => {
                let width = self.layer.inputs;
                let rows = block * BLOCK..(*count).min((block + 1) * BLOCK);
                let x = &x[rows.start * width..rows.end * width];
                if *direct && rows.len() == BLOCK {
                    let operand = Operand {
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
            Source::Pixels { image, direct } => {
                let start = group * image.quads * image.pitch + block * PIXELS * 4;
                let pair = block * 2 + 1 < image.tiles.len();
                let reach = (image.quads * image.pitch).max(1) + PIXELS * 4;
                assert!(start + reach <= x.len(), "the image is too short");
                let x = &x[start..];
                if *direct {
                    let operand = Operand {
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

    fn tiles(&self, pack: &Lines) -> Operand<'_> {
        Operand {
            base: pack.bytes().as_ptr(),
            offsets: &self.packed,
            second: TILE,
            stride: ROW,
        }
    }

    /// Writes a block of sums to the output.
    fn finish(
        &self,
        out: &SharedMut<'_, u8>,
        group: usize,
        activations: usize,
        outputs: usize,
        sums: *const i32,
    ) {
        let first = group * self.layer.outputs + outputs * BLOCK;
        let slot = (group * self.blocks + outputs) * BLOCK;
        let multiplier = &self.multiplier[slot..slot + BLOCK];
        let lanes = BLOCK.min(self.layer.outputs - outputs * BLOCK);
        match &self.source {
            Source::Rows { count, .. } => {
                let rows = activations * BLOCK..(*count).min((activations + 1) * BLOCK);
                let target = Target {
                    out,
                    size: self.size(),
                    first: rows.start * self.layer.outputs + first,
                    pitch: self.layer.outputs,
                };
                // SAFETY: `available` has found the vectors; the sums are four tiles.
                unsafe {
                    finish_rows(
                        &self.layer.finish,
                        sums,
                        multiplier,
                        rows.len(),
                        lanes,
                        &target,
                    );
                }
            }
            Source::Pixels { image, .. } => {
                let pixels = self.layer.geometry.as_ref().map_or(0, |g| g.output_len());
                for half in 0..2 {
                    let Some(&(mask, start)) = image.tiles.get(activations * 2 + half) else {
                        continue;
                    };
                    let target = Target {
                        out,
                        size: self.size(),
                        first: first * pixels + start,
                        pitch: pixels,
                    };
                    let sums = sums.wrapping_add(half * ROWS * ROWS);
                    // SAFETY: as above; of the left or right tiles, the second pair follows 512
                    // numbers behind the first.
                    unsafe {
                        finish_pixels(&self.layer.finish, sums, multiplier, lanes, mask, &target);
                    }
                }
            }
        }
    }
}

/// The `i`-th of `parts` shares of `count`, as equal as can be.
fn share(count: usize, parts: usize, i: usize) -> Range<usize> {
    count * i / parts..count * (i + 1) / parts
}

/// Whether 32 rows of activations that are `width` bytes apart, read in their place, stay in the
/// first-level cache: 64 sets of which they may use 8 lines each.
fn spread(width: usize) -> bool {
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
fn copy_row(row: &[u8], to: &mut [u8]) {
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

/// Where the sums of a block go: row `r` starts at element `first + r * pitch`.
struct Target<'a> {
    out: &'a SharedMut<'a, u8>,
    size: usize,
    first: usize,
    pitch: usize,
}

impl Target<'_> {
    /// The address of `len` elements of a row.
    #[inline(always)]
    fn row(&self, row: usize, skip: usize, len: usize) -> *mut u8 {
        let at = (self.first + row * self.pitch + skip) * self.size;
        assert!(at + len * self.size <= self.out.len());
        self.out.at(at)
    }
}

mod vectors {
    //! From sums to outputs, sixteen at a time.

    use std::arch::x86_64::{
        __m512, __m512i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_mask_storeu_epi8,
        _mm512_add_epi32, _mm512_cvt_roundps_epi32, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps,
        _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_compress_epi32,
        _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps,
        _mm512_setzero_ps,
    };

    use super::super::{ROWS, TILE};
    use super::{Finish, Target};

    /// Writes the lanes of a mask.
    ///
    /// Clamping a float to integers before it is rounded gives the same as clamping after, and
    /// cannot overflow; the multipliers are finite, so that there is no NaN.
    ///
    /// # Safety
    /// The processor has the features; the lanes of the mask can be written at `to`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn put(finish: &Finish, sums: __m512i, multiplier: __m512, mask: u16, to: *mut u8) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), multiplier);
        match *finish {
            Finish::Requantize { zero, low, high } => {
                let scaled = _mm512_max_ps(scaled, _mm512_set1_ps((low - zero) as f32));
                let scaled = _mm512_min_ps(scaled, _mm512_set1_ps((high - zero) as f32));
                let rounded = _mm512_cvt_roundps_epi32::<NEAREST>(scaled);
                let bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(rounded, _mm512_set1_epi32(zero)));
                // SAFETY: as the caller vouches.
                unsafe { _mm_mask_storeu_epi8(to.cast(), mask, bytes) };
            }
            Finish::Dequantize { relu } => {
                let scaled = if relu {
                    // The second operand where the first is a NaN.
                    _mm512_max_ps(scaled, _mm512_setzero_ps())
                } else {
                    scaled
                };
                // SAFETY: as the caller vouches; the output is aligned for its type.
                unsafe { _mm512_mask_storeu_ps(to.cast(), mask, scaled) };
            }
        }
    }

    /// The lowest `n` lanes.
    fn lanes(n: usize) -> u16 {
        if n >= 16 { u16::MAX } else { (1 << n) - 1 }
    }

    /// Finishes four tiles whose columns are outputs.
    ///
    /// # Safety
    /// The processor has the features; `sums` has four tiles.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn finish_rows(
        finish: &Finish,
        sums: *const i32,
        multiplier: &[f32],
        rows: usize,
        outputs: usize,
        target: &Target<'_>,
    ) {
        for half in 0..outputs.div_ceil(ROWS) {
            let lane = half * ROWS;
            let count = (outputs - lane).min(ROWS);
            let multiplier = &multiplier[lane..lane + ROWS];
            // SAFETY: 16 numbers.
            let scale = unsafe { _mm512_loadu_ps(multiplier.as_ptr()) };
            for row in 0..rows {
                let tile = row / ROWS * 2 + half;
                let at = sums.wrapping_add(tile * (TILE / 4) + row % ROWS * ROWS);
                // SAFETY: a row of one of the four tiles; `row` has found room for the lanes.
                unsafe {
                    let sums = _mm512_loadu_si512(at.cast());
                    put(finish, sums, scale, lanes(count), target.row(row, lane, count));
                }
            }
        }
    }

    /// Finishes two tiles whose rows are outputs, 512 numbers apart, of which the pixels of a
    /// mask are stored side by side.
    ///
    /// # Safety
    /// The processor has the features; `sums` has the two tiles.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn finish_pixels(
        finish: &Finish,
        sums: *const i32,
        multiplier: &[f32],
        outputs: usize,
        mask: u16,
        target: &Target<'_>,
    ) {
        let count = mask.count_ones() as usize;
        if count == 0 {
            return;
        }
        for row in 0..outputs {
            let at = sums.wrapping_add(row / ROWS * 2 * (TILE / 4) + row % ROWS * ROWS);
            // SAFETY: a row of one of the two tiles; `row` has found room for the lanes.
            unsafe {
                let mut sums = _mm512_loadu_si512(at.cast());
                if mask != u16::MAX {
                    sums = _mm512_maskz_compress_epi32(mask, sums);
                }
                let scale = _mm512_set1_ps(multiplier[row]);
                put(finish, sums, scale, lanes(count), target.row(row, 0, count));
            }
        }
    }
}

use vectors::{finish_pixels, finish_rows};

impl Kernel for AmxLayer {
    fn name(&self) -> String {
        self.layer.name()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        thread_local!(static IMAGE: RefCell<Lines> = const { RefCell::new(Lines::new()) });
        let (x, out) = (args[0].bytes, &mut *outs[0].bytes);
        let (Source::Pixels { image, .. }, Some(g)) = (&self.source, &self.layer.geometry) else {
            self.compute(x, out, cx.threads);
            return Ok(());
        };
        let input = self.layer.groups * self.layer.inputs * g.input_len();
        let output = self.layer.groups * self.layer.outputs * g.output_len() * self.size();
        if output == 0 {
            return Ok(());
        }
        let one = |n: usize, out: &mut [u8], threads: usize| {
            // Taken out, since a thread that waits for others may start another task meanwhile.
            let mut laid = IMAGE.take();
            laid.reserve(image.len);
            let bytes = laid.bytes_mut();
            image.lay_out(&x[n * input..][..input], self.layer.zero as u8, threads, bytes);
            self.compute(bytes, out, threads);
            IMAGE.set(laid);
        };
        let count = out.len() / output;
        if count >= cx.threads {
            let shared = SharedMut::new(out);
            parallel(cx.threads, count, |n| {
                // SAFETY: each image has its own part.
                let out = unsafe { shared.part(n * output..(n + 1) * output) };
                one(n, out, 1);
            });
        } else {
            for n in 0..count {
                one(n, &mut out[n * output..][..output], cx.threads);
            }
        }
        Ok(())
    }
}
