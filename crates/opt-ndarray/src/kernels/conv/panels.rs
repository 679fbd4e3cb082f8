//! Convolutions as products of the weight with panels of patches, which are copied block by block
//! of the weight's entries into memory that stays in the first-level cache.
//!
//! Every output pixel is computed once, whatever the strides, the padding and the size of the
//! image; no other copy of the image is made. What follows the convolution (bias, a residual,
//! bounds) is done while a tile is in registers, other functions while a panel is in the cache.

use std::ops::Range;

use opt_core::ops::UnaryOp;

use super::columns::Geometry;
use super::panel_pack::{Pack, fetch, pack};
use super::panel_tile::{Ahead, Finish, Tile, odd, size, tile};
use super::patch::Patches;
use super::real::Real;
use crate::kernels::tile::Isa;
use crate::kernels::{SharedMut, parallel};

/// Entries of the weight that a panel has at a time: it fills most of the first-level cache.
const DEPTH: usize = 192;

/// Bytes of a weight that stay in the second-level cache while panels pass by.
const NEAR: usize = 1 << 20;

/// Multiply-adds from which a second thread is worth its start.
const PARALLEL: usize = 1 << 19;

/// Tiles of output channels that share a copy of the patches at least, where threads allow it.
const SHARED: usize = 8;

/// Entries of a cache line.
const LINE: usize = 16;

/// Elements of an output from which on they are called for before they are written: smaller ones
/// are near.
const FAR: usize = 1 << 17;

/// What follows a convolution.
#[derive(Clone, Copy, Default)]
pub(super) struct After<'a> {
    /// A number for each output channel.
    pub(super) bias: Option<&'a [f32]>,
    /// Laid out as the output.
    pub(super) residual: Option<&'a [f32]>,
    pub(super) functions: &'a [UnaryOp],
    pub(super) clamp: Option<[f32; 2]>,
}

/// What comes before a convolution with a kernel of one entry and no padding: `max(scale * x +
/// offset, low)`.
#[derive(Debug, Clone)]
pub(super) struct Before {
    /// A number for each input channel.
    pub(super) scale: Vec<f32>,
    pub(super) offset: Vec<f32>,
    pub(super) low: f32,
}

/// A convolution by panels.
#[derive(Debug, Clone)]
pub(super) struct Panels {
    isa: Isa,
    groups: usize,
    /// Input and output channels of a group.
    inputs: usize,
    outputs: usize,
    /// Entries of the weight of an output channel.
    k: usize,
    patches: Patches,
}

/// What one task computes of an image: a group, tiles of its output channels, and panels.
struct Part {
    group: usize,
    tiles: Range<usize>,
    panels: Range<usize>,
}

/// What a task computes with.
struct Work<'a> {
    x: &'a [f32],
    packed: &'a [f32],
    before: Option<&'a Before>,
    after: &'a After<'a>,
    out: &'a SharedMut<'a, f32>,
    /// Where the image's output starts.
    start: usize,
    part: &'a Part,
}

impl Panels {
    /// The layout for images of `groups * inputs` channels to `groups * outputs`; `None` where
    /// another way serves it: on processors without tiles for it, in three dimensions.
    pub(super) fn new(
        groups: usize,
        inputs: usize,
        outputs: usize,
        g: &Geometry,
    ) -> Option<Panels> {
        Panels::on(Isa::get(), groups, inputs, outputs, g)
    }

    /// [`Panels::new`] for instructions that the processor has.
    fn on(isa: Isa, groups: usize, inputs: usize, outputs: usize, g: &Geometry) -> Option<Panels> {
        let (rows, vectors) = size(isa);
        if rows == 1 || groups * inputs * outputs == 0 {
            return None;
        }
        let pixels = g.output_len();
        let width = odd(isa)
            .filter(|&odd| pixels == odd)
            .unwrap_or(vectors * isa.lanes());
        Some(Panels {
            isa,
            groups,
            inputs,
            outputs,
            k: inputs * g.taps(),
            patches: Patches::new(g, width, isa.lanes())?,
        })
    }

    /// Entries of an image and of its output.
    fn image_len(&self) -> usize {
        self.groups * self.inputs * self.patches.channel
    }

    fn output_len(&self) -> usize {
        self.groups * self.outputs * self.patches.pixels
    }

    fn tiles(&self) -> usize {
        self.outputs.div_ceil(size(self.isa).0)
    }

    /// The output channels of a tile: as equally many as can be.
    fn tile(&self, t: usize) -> Range<usize> {
        let (size, extra) = (self.outputs / self.tiles(), self.outputs % self.tiles());
        let start = t * size + t.min(extra);
        start..start + size + usize::from(t < extra)
    }

    /// Entries of a packed weight.
    pub(super) fn packed_len(&self) -> usize {
        self.groups * self.outputs * self.k
    }

    /// How the entries of the weight are cut into blocks: their number and size.
    fn blocks(&self) -> (usize, usize) {
        let most = match self.patches.width > size(self.isa).1 * self.isa.lanes() {
            true => 3 * DEPTH / 4,
            false => DEPTH,
        };
        let count = self.k.div_ceil(most);
        (count, self.k.div_ceil(count))
    }

    /// Where a tile of a block of entries starts in the packed weight.
    fn place(&self, group: usize, entries: &Range<usize>, rows: &Range<usize>) -> usize {
        let before = group * self.outputs * self.k + entries.start * self.outputs;
        before + rows.start * entries.len()
    }

    /// Lays out the weight `weight(output channel, entry)` in the order in which it is read: by
    /// blocks of entries, in a block by tiles of output channels, and in a tile entry by entry.
    pub(super) fn pack(&self, weight: impl Fn(usize, usize) -> f32, packed: &mut [f32]) {
        let (blocks, depth) = self.blocks();
        for group in 0..self.groups {
            for block in 0..blocks {
                let entries = block * depth..self.k.min((block + 1) * depth);
                for t in 0..self.tiles() {
                    let rows = self.tile(t);
                    let own = &mut packed[self.place(group, &entries, &rows)..];
                    for (of, entry) in own.chunks_exact_mut(rows.len()).zip(entries.clone()) {
                        for (r, v) in of.iter_mut().enumerate() {
                            *v = weight(group * self.outputs + rows.start + r, entry);
                        }
                    }
                }
            }
        }
    }

    /// Whether the weight of a group does not stay in the second-level cache.
    fn is_large(&self) -> bool {
        size_of::<f32>() * self.outputs * self.k > NEAR
    }

    /// How a group of an image is cut for threads: its tiles and its panels into so many parts.
    fn cuts(&self, images: usize, threads: usize) -> [usize; 2] {
        let (tiles, panels) = (self.tiles(), self.patches.panels());
        let work = self.outputs * self.k * self.patches.pixels;
        let units = images * self.groups;
        if threads <= 1 || work.saturating_mul(units) < PARALLEL {
            return [1, 1];
        }
        // A few tasks a thread, so that one that starts late is no harm. Cut over the output
        // channels a large weight is read by one thread only; but each part copies all patches.
        let want = (4 * threads).div_ceil(units);
        if self.is_large() {
            let over_tiles = want.div_ceil(2).min(tiles / 16).max(1);
            [
                over_tiles,
                want.div_ceil(2).div_ceil(over_tiles).min(panels),
            ]
        } else {
            let over_panels = want.min(panels);
            // Parts of few tiles copy patches for little.
            let most = (tiles / SHARED).max(threads.div_ceil(units * over_panels));
            [want.div_ceil(over_panels).min(most).min(tiles), over_panels]
        }
    }

    /// Convolves images with a packed weight.
    pub(super) fn run(
        &self,
        x: &[f32],
        packed: &[f32],
        before: Option<&Before>,
        after: &After<'_>,
        out: &mut [f32],
        threads: usize,
    ) {
        let (image_len, output_len) = (self.image_len(), self.output_len());
        let images = out.len() / output_len;
        assert!(x.len() == images * image_len && out.len() == images * output_len);
        assert!(packed.len() == self.packed_len());
        assert!(after.residual.is_none_or(|r| r.len() == out.len()));
        assert!(
            after
                .bias
                .is_none_or(|b| b.len() == self.groups * self.outputs)
        );
        if let Some(before) = before {
            let channels = self.groups * self.inputs;
            assert!(self.patches.taps == 1 && before.scale.len() == channels);
            assert!(before.offset.len() == channels);
        }
        let out = SharedMut::new(out);
        let [over_tiles, over_panels] = self.cuts(images, threads);
        let each = over_tiles * over_panels;
        let cut = |i: usize, parts: usize, of: usize| i * of / parts..(i + 1) * of / parts;
        let threads = if images * self.groups * each == 1 || {
            let work = self.packed_len() * self.patches.pixels * images;
            work < PARALLEL
        } {
            1
        } else {
            threads
        };
        parallel(threads, images * self.groups * each, |task| {
            let (unit, piece) = (task / each, task % each);
            let (image, group) = (unit / self.groups, unit % self.groups);
            // A thread's tasks follow each other: they share a part of a large weight, or else pixels,
            // which the thread has written before if the layer before was cut so, too.
            let (tiles, panels) = match self.is_large() {
                true => (piece / over_panels, piece % over_panels),
                false => (piece % over_tiles, piece / over_tiles),
            };
            let part = Part {
                group,
                tiles: cut(tiles, over_tiles, self.tiles()),
                panels: cut(panels, over_panels, self.patches.panels()),
            };
            let x = &x[image * image_len..][..image_len];
            self.part(x, packed, before, after, &out, image * output_len, &part);
        });
    }

    /// Computes a part of an image, whose output starts at `start`, which no other task writes.
    fn part(
        &self,
        x: &[f32],
        packed: &[f32],
        before: Option<&Before>,
        after: &After<'_>,
        out: &SharedMut<'_, f32>,
        start: usize,
        part: &Part,
    ) {
        let (k, width) = (self.k, self.patches.width);
        let (blocks, depth) = self.blocks();
        let x = &x[part.group * self.inputs * self.patches.channel..];
        // Panels of few entries are multiplied together, each tile of the weight with one after the
        // other: what is written then lies side by side.
        let chunk = match depth <= 2 * DEPTH / 3 {
            true => (2 * DEPTH / depth).min(part.panels.len()),
            false => 1,
        };
        let pitch = width.next_multiple_of(self.isa.lanes());
        let len = chunk * depth * pitch;
        // Room to start at a cache line.
        f32::buffer(len + LINE, |buffer| {
            let aligned = buffer.as_ptr().align_offset(64).min(LINE);
            let buffer = &mut buffer[aligned..][..len];
            let work = Work {
                x,
                packed,
                before,
                after,
                out,
                start,
                part,
            };
            let mut step = |j: usize, block: usize| {
                let entries = block * depth..k.min((block + 1) * depth);
                let panels = j..part.panels.end.min(j + chunk);
                self.step(&work, panels, entries, buffer);
            };
            let rows = self.tile(part.tiles.end - 1).end - self.tile(part.tiles.start).start;
            let chunks = part.panels.clone().step_by(chunk);
            if size_of::<f32>() * rows * k > NEAR {
                // A block of the weight is read from afar once, for the first panel.
                for block in 0..blocks {
                    chunks.clone().for_each(|j| step(j, block));
                }
            } else {
                for j in chunks {
                    (0..blocks).for_each(|block| step(j, block));
                }
            }
        });
    }

    /// Columns of a panel.
    fn cols(&self, j: usize) -> usize {
        let Patches { pixels, width, .. } = self.patches;
        width.min(pixels - j * width)
    }

    /// Adds the products of some entries of the weight with panels.
    fn step(
        &self,
        work: &Work<'_>,
        panels: Range<usize>,
        entries: Range<usize>,
        buffer: &mut [f32],
    ) {
        let Patches {
            width,
            channel,
            taps,
            stride,
            ..
        } = self.patches;
        let Work { x, part, .. } = *work;
        let lanes = self.isa.lanes();
        let whole = width.next_multiple_of(lanes) * entries.len();
        assert!(x.len() >= self.inputs * channel && entries.end <= self.k);
        let copy = |j: usize, out: *mut f32| Pack {
            image: x.as_ptr(),
            channel,
            chunks: &[],
            taps,
            stride,
            first: entries.start,
            last: entries.end,
            out,
            pitch: self.cols(j).div_ceil(lanes) * lanes,
            before: work.before.map(|b| {
                let first = part.group * self.inputs;
                (b.scale[first..].as_ptr(), b.offset[first..].as_ptr(), b.low)
            }),
        };
        for (panel, j) in buffer.chunks_mut(whole).zip(panels.clone()) {
            let copy = copy(j, panel.as_mut_ptr());
            assert!(panel.len() >= entries.len() * copy.pitch);
            self.patches.with(j, |chunks| {
                #[expect(unsafe_code, reason = "vector kernel")]
                // SAFETY: the masks let elements of a channel through only, and `x` has all channels
                // of the entries; the panel has the rows; `self.isa` is the processor's and not
                // portable.
                unsafe {
                    pack(self.isa, Pack { chunks, ..copy });
                }
            });
        }
        for (i, t) in part.tiles.clone().enumerate() {
            // The pixels of the next panels come from afar while these are multiplied. Other kernels
            // read each pixel many times.
            let cut = |i: usize| entries.start + entries.len() * i / part.tiles.len();
            for (panel, j) in buffer.chunks(whole).zip(panels.clone()) {
                let next = j + panels.len();
                let mut pixels = Ahead::NOTHING;
                if taps == 1 && part.panels.contains(&next) {
                    if self.patches.flat {
                        pixels = Ahead {
                            from: x.as_ptr().wrapping_add(cut(i) * channel + next * width),
                            pitch: channel,
                            rows: cut(i + 1) - cut(i),
                        };
                    } else if let Some(chunks) = self.patches.kept(next) {
                        fetch(&Pack {
                            chunks,
                            first: cut(i),
                            last: cut(i + 1),
                            ..copy(next, std::ptr::null_mut())
                        });
                    }
                }
                self.multiply(work, t, j, &entries, panel, pixels);
            }
        }
    }

    /// Adds the product of a tile of some entries of the weight with a panel.
    fn multiply(
        &self,
        work: &Work<'_>,
        t: usize,
        j: usize,
        entries: &Range<usize>,
        panel: &[f32],
        pixels_ahead: Ahead,
    ) {
        let Work { after, out, .. } = *work;
        let Patches { pixels, width, .. } = self.patches;
        let cols = self.cols(j);
        let vectors = cols.div_ceil(self.isa.lanes());
        assert!(panel.len() >= entries.len() * vectors * self.isa.lanes());
        let last = entries.end == self.k;
        let rows = self.tile(t);
        let first = work.part.group * self.outputs + rows.start;
        let at = work.start + first * pixels + j * width;
        let a = &work.packed[self.place(work.part.group, entries, &rows)..];
        assert!(a.len() >= rows.len() * entries.len());
        let finish = last.then(|| Finish {
            bias: after.bias.map_or(std::ptr::null(), |b| b[first..].as_ptr()),
            residual: after
                .residual
                .map_or(std::ptr::null(), |r| r[at..].as_ptr()),
            clamp: after.clamp.filter(|_| after.functions.is_empty()),
        });
        let own = |from: *const f32| match from.is_null() {
            true => Ahead::NOTHING,
            false => Ahead {
                from,
                pitch: pixels,
                rows: rows.len(),
            },
        };
        let residual = finish.map_or(std::ptr::null(), |f| f.residual);
        let far = entries.start == 0 && self.output_len() >= FAR;
        let written = if far { own(out.at(at)) } else { Ahead::NOTHING };
        let tile_of = Tile {
            k: entries.len(),
            a: a.as_ptr(),
            b: panel.as_ptr(),
            b_row: vectors * self.isa.lanes(),
            out: out.at(at),
            out_row: pixels,
            cols,
            add: entries.start > 0,
            finish,
            ahead: [written, own(residual), pixels_ahead],
        };
        assert!(at + (rows.len() - 1) * pixels + cols <= out.len());
        #[expect(unsafe_code, reason = "vector kernel")]
        // SAFETY: the weight has `rows` numbers for each entry, the panel `vectors` vectors; bias,
        // residual and output have the rows; no other task has these channels and pixels; `self.isa`
        // is the processor's and not portable.
        unsafe {
            tile(self.isa, rows.len(), vectors, tile_of);
        }
        if last && !after.functions.is_empty() {
            for r in 0..rows.len() {
                let at = at + r * pixels;
                #[expect(unsafe_code, reason = "tasks write disjoint parts of one output")]
                // SAFETY: no other task has these channels and pixels.
                let row = unsafe { out.part(at..at + cols) };
                finish_row(after, row);
            }
        }
    }
}

/// Applies the functions, and the bounds after them.
pub(super) fn finish_row(after: &After<'_>, row: &mut [f32]) {
    f32::apply(after.functions, row);
    if let Some([low, high]) = after.clamp {
        for v in row {
            *v = bounded(*v, low, high);
        }
    }
}

/// `min(max(v, low), high)`, NaN where `v` is.
pub(super) fn bounded(v: f32, low: f32, high: f32) -> f32 {
    let v = if low > v { low } else { v };
    if high < v { high } else { v }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{close, convolved, geometry, isas, values};
    use super::*;

    fn check(isa: Isa, g: &Geometry, [groups, inputs, outputs]: [usize; 3], images: usize) {
        let k = inputs * g.taps();
        let x = values(1, images * groups * inputs * g.input_len());
        let w = values(2, groups * outputs * k);
        let bias = values(3, groups * outputs);
        let residual = values(4, images * groups * outputs * g.output_len());
        let panels = Panels::on(isa, groups, inputs, outputs, g).unwrap();
        let mut packed = vec![f32::NAN; panels.packed_len()];
        panels.pack(|row, entry| w[row * k + entry], &mut packed);
        for residual in [None, Some(&residual[..])] {
            let after = After {
                bias: Some(&bias),
                residual,
                clamp: residual.map(|_| [-0.7, 0.9]),
                ..After::default()
            };
            let mut out = vec![f32::NAN; images * groups * outputs * g.output_len()];
            panels.run(&x, &packed, None, &after, &mut out, 1);
            close(
                &out,
                &convolved(g, [groups, inputs, outputs], &x, &w, &after),
            );
            // The number of threads changes nothing.
            let mut cut = vec![f32::NAN; out.len()];
            panels.run(&x, &packed, None, &after, &mut cut, 3);
            assert_eq!(out, cut);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn it_agrees_with_the_definition(
            size in [1usize..14, 1usize..40], kernel in [1usize..6, 1usize..6],
            strides in [1usize..4, 1usize..4], dilations in [1usize..3, 1usize..3],
            begin in [0usize..4, 0usize..4], end in [0usize..4, 0usize..4],
            channels in [1usize..3, 1usize..5, 1usize..20],
        ) {
            let found = geometry(size, kernel, strides, dilations, begin, end);
            prop_assume!(found.is_some());
            for isa in isas() {
                check(isa, found.as_ref().unwrap(), channels, 2);
            }
        }
    }

    #[test]
    fn chunks_that_are_not_kept_are_the_same() {
        let g = geometry([23, 31], [3, 3], [2, 1], [1; 2], [1; 2], [1; 2]).unwrap();
        let (x, w) = (values(1, 5 * g.input_len()), values(2, 9 * 5 * g.taps()));
        for isa in isas() {
            let mut panels = Panels::on(isa, 1, 5, 9, &g).unwrap();
            let mut packed = vec![f32::NAN; panels.packed_len()];
            panels.pack(|row, entry| w[row * 45 + entry], &mut packed);
            let mut outs = [0, 1].map(|_| vec![f32::NAN; 9 * g.output_len()]);
            panels.run(&x, &packed, None, &After::default(), &mut outs[0], 1);
            let (width, lanes) = (panels.patches.width, isa.lanes());
            assert!(panels.patches.kept(0).is_some());
            panels.patches = Patches::keeping(0, &g, width, lanes).unwrap();
            assert!(panels.patches.kept(0).is_none());
            panels.run(&x, &packed, None, &After::default(), &mut outs[1], 1);
            assert_eq!(outs[0], outs[1]);
        }
    }

    #[test]
    fn channels_are_scaled_and_bounded_before() {
        for (stride, size, channels) in [(1, [9, 11], [1, 210, 9]), (2, [8, 17], [3, 5, 8])] {
            let g = geometry(size, [1; 2], [stride; 2], [1; 2], [0; 2], [0; 2]).unwrap();
            assert!(g.is_unpadded());
            let [groups, inputs, outputs] = channels;
            let x = values(1, groups * inputs * g.input_len());
            let w = values(2, groups * outputs * inputs);
            let before = Before {
                scale: values(3, groups * inputs),
                offset: values(4, groups * inputs),
                low: 0.0,
            };
            for isa in isas() {
                let panels = Panels::on(isa, groups, inputs, outputs, &g).unwrap();
                let mut packed = vec![f32::NAN; panels.packed_len()];
                panels.pack(|row, entry| w[row * inputs + entry], &mut packed);
                let mut found = vec![f32::NAN; groups * outputs * g.output_len()];
                let after = After::default();
                panels.run(&x, &packed, Some(&before), &after, &mut found, 1);
                let mut own = x.clone();
                for (c, x) in own.chunks_exact_mut(g.input_len()).enumerate() {
                    for v in x {
                        *v = (*v * before.scale[c] + before.offset[c]).max(0.0);
                    }
                }
                close(&found, &convolved(&g, channels, &own, &w, &after));
            }
        }
    }

    #[test]
    fn blocks_and_parts_make_no_difference() {
        // Several blocks of the weight's entries, several parts for threads, weights that pass the
        // second-level cache, and panels of every width.
        for (size, kernel, pad, channels) in [
            ([7, 7], 3, 1, [1, 130, 256]),
            ([14, 14], 1, 0, [1, 300, 64]),
            ([7, 7], 1, 0, [2, 30, 13]),
            ([15, 10], 3, 1, [2, 50, 24]),
            ([1, 98], 1, 0, [1, 200, 16]),
            ([1, 195], 1, 0, [1, 20, 40]),
        ] {
            let g = geometry(size, [kernel; 2], [1; 2], [1; 2], [pad; 2], [pad; 2]);
            for isa in isas() {
                check(isa, g.as_ref().unwrap(), channels, 1);
            }
        }
    }
}
