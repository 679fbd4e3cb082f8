//! Integer layers on tile products.
//!
//! A matrix product has its rows of activations as the left operand, read where they lie or
//! copied into tiles, and its weights as the right one. A convolution has its weights as the left
//! operand and the pixels of a laid-out [`Image`] as the right one, so that a tile of sums is
//! already 16 channels by 16 pixels, as the output has them. Either way a block of 32 rows or
//! pixels stays in the first-level cache while the weights of 32 outputs after the other pass by.

use std::cell::RefCell;
use std::ptr::null;

use opt_core::{DType, Result};

use super::super::conv::Geometry;
use super::super::elementwise;
use super::super::int8::Layer;
use super::super::int8::affine::{Affine, Scales};
use super::super::{Arg, Kernel, Out, RunCx, SharedMut, parallel};
use super::finish::{Sums, Target, lowest};
use super::image::Image;
use super::source::{Place, Source};
use super::tasks::{Task, Tasks, share};
use super::{Activations, BLOCK, Block, Lines, Product, ROW, ROWS, STEPS, TILE, Tiles};

/// Multiply-adds of one row's products that take vectors less than to set up the tiles.
const VECTOR: usize = 1 << 14;

/// A layer, packed.
#[derive(Debug)]
pub(crate) struct AmxLayer {
    layer: Layer,
    source: Source,
    product: Product,
    /// Steps of 64 bytes of a sum.
    steps: usize,
    /// Parts that a sum is cut into.
    parts: usize,
    /// Blocks of outputs of a group.
    blocks: usize,
    /// For each group, block and step two tiles.
    weight: Lines,
    affine: Affine,
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

impl AmxLayer {
    /// Whether tiles hold enough of a layer whose inputs are `rows` pixels (for a matrix product)
    /// or images to be faster than vectors.
    pub(crate) fn suits(layer: &Layer, rows: usize) -> bool {
        if layer.geometry.is_none() && rows == 1 && layer.inputs * layer.outputs <= VECTOR {
            return false;
        }
        let taps = layer.taps();
        let depth = taps * layer.inputs.div_ceil(4) * 4;
        let filled = |n: usize, of: usize| n as f64 / (n.div_ceil(of) * of) as f64;
        let used =
            filled(layer.inputs * taps, 4) * filled(depth, ROW) * filled(layer.outputs, ROWS);
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
    pub(crate) fn new(mut layer: Layer, rows: usize) -> AmxLayer {
        assert!(super::available(), "the processor has no AMX");
        let taps = layer.taps();
        let quads = layer.inputs.div_ceil(4);
        let steps = (taps * quads).div_ceil(ROWS).max(1);
        let blocks = layer.outputs.div_ceil(BLOCK);
        let image = layer
            .geometry
            .as_ref()
            .map(|g| Box::new(Image::new(g, layer.groups, layer.inputs)));
        let mut weight = Lines::new();
        weight.reserve(layer.groups * blocks * steps * 2 * TILE);
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
        }
        let affine = Affine::new(&layer, BLOCK, 0);
        layer.weight = Vec::new();
        let product = match (layer.dtype == DType::I8, image.is_some()) {
            (false, false) => Product::UnsignedLeft,
            (true, false) => Product::SignedLeft,
            (false, true) => Product::UnsignedRight,
            (true, true) => Product::SignedRight,
        };
        let source = match image {
            None => Source::rows(&layer, rows, steps),
            Some(image) => Source::pixels(&layer, image, steps),
        };
        AmxLayer {
            layer,
            source,
            product,
            steps,
            parts: steps.div_ceil(STEPS),
            blocks,
            weight,
            affine,
        }
    }

    fn tasks(&self, threads: usize) -> Tasks {
        let (groups, acts) = (self.layer.groups, self.source.blocks());
        Tasks::new(groups, acts, self.blocks, self.steps, threads)
    }

    /// Computes the outputs of an image, or of all rows: `x` is laid out, `out` as it will be.
    fn compute(&self, x: &[u8], scales: Scales<'_>, out: &mut [u8], threads: usize) {
        thread_local!(static WORK: RefCell<Work> = const {
            RefCell::new(Work { pack: Lines::new(), sums: Lines::new(), stage: Lines::new() })
        });
        let out = SharedMut::new(out);
        let tasks = self.tasks(threads);
        parallel(threads, tasks.count(), |i| {
            let task = tasks.at(i);
            WORK.with_borrow_mut(|work| self.task(x, scales, &out, &task, work));
            self.epilogue(&out, &task);
        });
    }

    /// Applies the functions that follow to the rows of a task.
    fn epilogue(&self, out: &SharedMut<'_, u8>, task: &Task) {
        let Place::Rows { count, .. } = self.source.place else {
            return;
        };
        if self.layer.epilogue.is_empty() {
            return;
        }
        let from = task.group * self.layer.outputs;
        let first = from + task.outputs.start * BLOCK;
        let end = from + self.layer.outputs.min(task.outputs.end * BLOCK);
        let width = self.layer.groups * self.layer.outputs;
        for row in task.activations.start * BLOCK..count.min(task.activations.end * BLOCK) {
            let bytes = 4 * (row * width + first)..4 * (row * width + end);
            // SAFETY: tasks have rows and outputs of their own.
            let part = unsafe { out.part(bytes) };
            elementwise::apply(&self.layer.epilogue, bytemuck::cast_slice_mut(part));
        }
    }

    fn task(
        &self,
        x: &[u8],
        scales: Scales<'_>,
        out: &SharedMut<'_, u8>,
        task: &Task,
        work: &mut Work,
    ) {
        let parts = self.parts;
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
            let (activation, pair) = self.source.activation(x, task.group, a, &mut work.pack);
            for part in 0..parts {
                let steps = share(self.steps, parts, part);
                for o in task.outputs.clone() {
                    let (weights, advance) = self.weights(task, part, o);
                    // The first to pass by fetches what comes next; then all are in the cache.
                    let next = if o + 1 < task.outputs.end {
                        (part, o + 1)
                    } else {
                        (part + 1, task.outputs.start)
                    };
                    let (ahead, ahead_advance) = if a == task.activations.start && next.0 < parts {
                        self.weights(task, next.0, next.1)
                    } else {
                        (null(), 0)
                    };
                    let offsets = if advance < 0 {
                        &activation.offsets
                            [2 * self.steps - steps.end..2 * self.steps - steps.start]
                    } else {
                        &activation.offsets[steps.clone()]
                    };
                    let outputs = self.layer.outputs - o * BLOCK > ROWS;
                    let sums = kept.wrapping_add((o - task.outputs.start) * 4 * TILE);
                    let block = Block {
                        product: self.product,
                        activations: Activations {
                            offsets,
                            ..activation
                        },
                        weights,
                        advance,
                        pairs: (pair, outputs),
                        start: if part == 0 {
                            null()
                        } else {
                            sums.cast_const().cast()
                        },
                        ahead,
                        ahead_advance,
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
                        self.finish(out, scales, task.group, a, o, sums);
                    }
                    turn = 1 - turn;
                }
            }
        }
        drop(tiles);
        if let Some((a, o, sums)) = waiting {
            self.finish(out, scales, task.group, a, o, sums);
        }
    }

    /// Where the weights of a part of a block of outputs start, and how they go on: there and
    /// back, so that the activations that were read last are the first again.
    fn weights(&self, task: &Task, part: usize, outputs: usize) -> (*const u8, isize) {
        let steps = share(self.steps, self.parts, part);
        let block = task.group * self.blocks + outputs;
        let back = (outputs - task.outputs.start) % 2 == 1;
        let first = if back { steps.end - 1 } else { steps.start };
        let start = (block * self.steps + first) * 2 * TILE;
        let advance = 2 * TILE as isize;
        let advance = if back { -advance } else { advance };
        (self.weight.bytes()[start..].as_ptr(), advance)
    }

    /// Writes a block of sums to the output.
    fn finish(
        &self,
        out: &SharedMut<'_, u8>,
        scales: Scales<'_>,
        group: usize,
        activations: usize,
        outputs: usize,
        sums: *const i32,
    ) {
        let first = group * self.layer.outputs + outputs * BLOCK;
        let slot = (group * self.blocks + outputs) * BLOCK;
        let lanes = BLOCK.min(self.layer.outputs - outputs * BLOCK);
        let block = Sums {
            finish: &self.layer.finish,
            sums,
            start: &scales.start[slot..slot + BLOCK],
            multiplier: &scales.multiplier[slot..slot + BLOCK],
            offset: scales.offset.map(|offset| &offset[slot..slot + BLOCK]),
        };
        let size = self.layer.finish.size();
        match &self.source.place {
            Place::Rows { count, .. } => {
                let pitch = self.layer.outputs;
                let rows = activations * BLOCK..(*count).min((activations + 1) * BLOCK);
                let target = Target {
                    out,
                    size,
                    first: rows.start * pitch + first,
                    pitch,
                };
                // SAFETY: `available` has found the vectors; the sums are four tiles.
                unsafe { block.block::<false>(rows.len(), lowest(lanes), &target) };
            }
            Place::Pixels { image, .. } => {
                let pitch = self.layer.geometry.as_ref().map_or(0, Geometry::output_len);
                let (columns, start) = image.block(activations);
                let target = Target {
                    out,
                    size,
                    first: first * pitch + start,
                    pitch,
                };
                // SAFETY: as above.
                unsafe { block.block::<true>(lanes, columns, &target) };
            }
        }
    }
}

impl Kernel for AmxLayer {
    fn name(&self) -> String {
        self.layer.name()
    }

    fn scratch(&self) -> usize {
        self.affine.scratch()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        thread_local!(static IMAGE: RefCell<Lines> = const { RefCell::new(Lines::new()) });
        let (x, out) = (args[0].bytes, &mut *outs[0].bytes);
        let scales = self.affine.at(&self.layer, args, cx.scratch);
        let (Place::Pixels { image, .. }, Some(g)) = (&self.source.place, &self.layer.geometry)
        else {
            self.compute(x, scales, out, cx.threads);
            return Ok(());
        };
        let input = self.layer.groups * self.layer.inputs * g.input_len();
        let output = self.layer.groups * self.layer.outputs * g.output_len();
        let output = output * self.layer.finish.size();
        if output == 0 {
            return Ok(());
        }
        let one = |n: usize, out: &mut [u8], threads: usize| {
            // Taken out, since a thread that waits for others may start another task meanwhile.
            let mut laid = IMAGE.take();
            laid.reserve(image.len);
            let bytes = laid.bytes_mut();
            image.lay_out(&x[n * input..][..input], scales.zero as u8, threads, bytes);
            self.compute(bytes, scales, out, threads);
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
