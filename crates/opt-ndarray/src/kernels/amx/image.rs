//! An image as the right operand of tile products.
//!
//! Channels are laid out in quads, four bytes a pixel, so that 16 neighbouring pixels of a quad
//! are a tile's row. A stride splits the image into phases: the pixels `(y, x)` with the same
//! `y % stride` and `x % stride`, one plane each. Then the output pixel with the linear index `q`
//! (rows as wide as a plane) finds its input for one entry of the kernel at `q` plus a constant,
//! and a tile is 16 neighbouring `q`. Those `q` that lie beyond the end of an output row are
//! computed and not stored.

use std::arch::x86_64::{
    _mm_maskz_loadu_epi8, _mm512_cvtepu8_epi32, _mm512_mask_mov_epi32, _mm512_mask_storeu_epi32,
    _mm512_maskz_compress_epi32, _mm512_or_si512, _mm512_set1_epi8, _mm512_slli_epi32,
};
use std::cell::RefCell;
use std::ops::Range;

use super::super::conv::Geometry;
use super::super::{SharedMut, lanes, parallel};
use super::ROW;

/// Bytes that a task lays out at least.
const TASK: usize = 1 << 14;

/// Pixels of a row, with the padding, that is laid out by vectors of whole pixels.
const NARROW: usize = 64;

/// Pixels of a block: two tiles.
pub(super) const PIXELS: usize = 32;

/// How an image is laid out, and where a convolution finds its operand in it.
#[derive(Debug)]
pub(super) struct Image {
    geometry: Geometry,
    groups: usize,
    /// Channels of a group.
    channels: usize,
    pub(super) quads: usize,
    width: usize,
    /// Bytes of a plane.
    plane: usize,
    /// The phases that the kernel reads.
    phases: Vec<(usize, usize)>,
    /// Bytes of all phases of a quad. An odd number of cache lines, so that the rows of a tile do
    /// not fall into the same set of the cache.
    pub(super) pitch: usize,
    /// For each entry of the kernel and quad (the quads fastest) the offset of pixel 0.
    pub(super) offsets: Vec<usize>,
    /// For each tile which of its pixels are stored, and the output pixel of the first of them.
    pub(super) tiles: Vec<(u16, usize)>,
    /// Bytes of a laid-out image.
    pub(super) len: usize,
}

/// The geometry of a convolution, with one row for all pixels where each is multiplied by itself.
fn flat(g: &Geometry) -> Geometry {
    let mut flat = g.clone();
    if g.kernel == [1; 3] && g.stride == [1; 3] && g.pad == [0; 3] && g.input == g.output {
        flat.input = [1, 1, g.input_len()];
        flat.output = flat.input;
    }
    flat
}

impl Image {
    pub(super) fn new(geometry: &Geometry, groups: usize, channels: usize) -> Image {
        let g = &flat(geometry);
        let extent = |axis: usize| {
            let kernel = (g.kernel[axis] - 1) * g.dilation[axis] + 1;
            let reach = (g.output[axis].max(1) - 1) * g.stride[axis] + kernel;
            reach
                .max(g.input[axis] + g.pad[axis])
                .div_ceil(g.stride[axis])
        };
        let (height, width) = (extent(1), extent(2));
        let plane = height * width * 4;
        let quads = channels.div_ceil(4);
        let taps = (0..g.kernel[1])
            .flat_map(|y| (0..g.kernel[2]).map(move |x| (y * g.dilation[1], x * g.dilation[2])));
        let (sy, sx) = (g.stride[1], g.stride[2]);
        let mut phases: Vec<(usize, usize)> = Vec::new();
        let mut places = Vec::new();
        for (y, x) in taps {
            let phase = (y % sy, x % sx);
            let slot = phases.iter().position(|&p| p == phase).unwrap_or_else(|| {
                phases.push(phase);
                phases.len() - 1
            });
            places.push(slot * plane + (y / sy * width + x / sx) * 4);
        }
        let pitch = ((phases.len() * plane).div_ceil(ROW) | 1) * ROW;
        let offsets: Vec<usize> = places
            .iter()
            .flat_map(|&place| (0..quads).map(move |quad| quad * pitch + place))
            .collect();
        let (rows, row) = (g.output[1], g.output[2]);
        let linear = if rows * row == 0 {
            0
        } else {
            (rows - 1) * width + row
        };
        let tiles: Vec<(u16, usize)> = (0..linear.div_ceil(16))
            .map(|t| {
                let pixels = (t * 16..linear.min(t * 16 + 16)).filter(|q| q % width < row);
                let mask = pixels.clone().fold(0, |m, q| m | 1 << (q - t * 16));
                let first = pixels.clone().next().unwrap_or(0);
                (mask, first / width * row + first % width)
            })
            .collect();
        // A plane's last pixels are followed by those of the next, the last plane's by room for
        // the pixels of all blocks, since an offset lies within its quad's planes.
        let len = groups * quads * pitch + tiles.len().div_ceil(2) * PIXELS * 4;
        Image {
            geometry: g.clone(),
            groups,
            channels,
            quads,
            width,
            plane,
            phases,
            pitch,
            offsets,
            tiles,
            len,
        }
    }

    /// Which of a block's pixels are stored, and the output pixel of the first of them. Stored
    /// pixels follow each other in the output.
    pub(super) fn block(&self, block: usize) -> (u32, usize) {
        let (left, start) = self.tiles[block * 2];
        let (right, next) = self.tiles.get(block * 2 + 1).copied().unwrap_or_default();
        let start = if left == 0 { next } else { start };
        (u32::from(left) | u32::from(right) << 16, start)
    }

    /// How many pixels are computed for one that is stored.
    pub(super) fn waste(&self) -> f64 {
        let stored = self.geometry.output_len().max(1);
        (self.tiles.len() * 16) as f64 / stored as f64
    }

    /// Lays an image out, with `zero` around it. Threads have rows of their own, of all channels,
    /// as they have when they multiply: then most of what one reads it has written itself.
    pub(super) fn lay_out(&self, x: &[u8], zero: u8, threads: usize, out: &mut [u8]) {
        let count = self.groups * self.quads;
        let stride = self.geometry.stride;
        let height = self.plane / (self.width * 4).max(1) * stride[1];
        let shared = SharedMut::new(&mut out[..count * self.pitch]);
        if height == 1 && self.geometry.pad == [0; 3] && stride == [1; 3] {
            let per = share(count, threads, TASK / (4 * self.width).max(1));
            parallel(threads, count.div_ceil(per), |task| {
                let quads = task * per..count.min((task + 1) * per);
                quads.for_each(|i| self.pixels(x, i, &shared));
            });
            return;
        }
        let narrow = self.width * stride[2] <= NARROW && stride[2] <= 2;
        let bytes = self.width * stride[2] * 4 * count;
        let per = share(height, threads, TASK / bytes.max(1));
        parallel(threads, height.div_ceil(per), |task| {
            let rows = task * per..height.min((task + 1) * per);
            for i in 0..count {
                if narrow {
                    // SAFETY: whoever multiplies tiles has found the vectors; each task has rows
                    // of its own.
                    unsafe { self.narrow(x, i, rows.clone(), zero, &shared) };
                    continue;
                }
                rows.clone().for_each(|y| self.row(x, i, y, zero, &shared));
            }
        });
    }

    /// The channels of a quad, the last again for those that are missing: their bytes meet weights
    /// of zero.
    fn channels_of(&self, i: usize) -> [usize; 4] {
        let (group, quad) = (i / self.quads, i % self.quads);
        let first = group * self.channels + quad * 4;
        let last = (self.channels - quad * 4).min(4) - 1;
        [
            first,
            first + last.min(1),
            first + last.min(2),
            first + last,
        ]
    }

    /// Lays out the quad `i` of all groups, of an image of one row.
    fn pixels(&self, x: &[u8], i: usize, out: &SharedMut<'_, u8>) {
        let row = |c: usize| &x[c * self.width..][..self.width];
        #[expect(unsafe_code, reason = "tasks write disjoint parts")]
        // SAFETY: each quad belongs to one task.
        let out = unsafe { out.part(i * self.pitch..i * self.pitch + self.width * 4) };
        interleave(self.channels_of(i).map(row), out);
    }

    /// Lays out rows of a quad, counted with the padding, of at most [`NARROW`] pixels with the
    /// padding and with a stride of at most 2: 16 pixels at once.
    ///
    /// # Safety
    /// The processor has the features; no other thread writes these rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn narrow(
        &self,
        x: &[u8],
        i: usize,
        range: Range<usize>,
        zero: u8,
        out: &SharedMut<'_, u8>,
    ) {
        const LANES: usize = 16;
        let g = &self.geometry;
        let (rows, row, pad, stride) = (g.input[1], g.input[2], g.pad[2], g.stride[2]);
        let total = self.width * stride;
        assert!(row + pad <= total && total <= NARROW && stride <= 2);
        let inside = if row == 0 {
            0
        } else {
            (u64::MAX >> (64 - row)) << pad
        };
        let fill = _mm512_set1_epi8(zero as i8);
        let channels = self.channels_of(i);
        for y in range {
            let phases = self.phases.iter().enumerate();
            let mut phases = phases
                .filter(|(_, (py, _))| y % g.stride[1] == *py)
                .peekable();
            if phases.peek().is_none() {
                continue;
            }
            let mut pixels = [fill; NARROW / LANES];
            if let Some(y) = y.checked_sub(g.pad[1]).filter(|&y| y < rows) {
                let from = channels.map(|c| x[(c * rows + y) * row..][..row].as_ptr());
                for (c, pixels) in pixels[..total.div_ceil(LANES)].iter_mut().enumerate() {
                    let lanes = (inside >> (c * LANES)) as u16;
                    let bytes = |from: *const u8| {
                        let at = from.wrapping_add(c * LANES).wrapping_sub(pad);
                        // SAFETY: the lanes of the mask lie in the row.
                        _mm512_cvtepu8_epi32(unsafe { _mm_maskz_loadu_epi8(lanes, at.cast()) })
                    };
                    let [a, b, c, d] = from.map(bytes);
                    let low = _mm512_or_si512(a, _mm512_slli_epi32::<8>(b));
                    let high = _mm512_or_si512(c, _mm512_slli_epi32::<8>(d));
                    let quads = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                    *pixels = _mm512_mask_mov_epi32(fill, lanes, quads);
                }
            }
            for (slot, &(_, px)) in phases {
                let start = i * self.pitch + slot * self.plane + y / g.stride[1] * self.width * 4;
                assert!(start + self.width * 4 <= out.len());
                let step = LANES / stride;
                for (c, &pixels) in pixels.iter().enumerate().take(total.div_ceil(LANES)) {
                    let left = (self.width - c * step).min(step);
                    let kept = match stride {
                        1 => pixels,
                        _ => _mm512_maskz_compress_epi32(0x5555 << px, pixels),
                    };
                    let at = out.at(start + c * step * 4);
                    let lanes = (u32::MAX >> (32 - left)) as u16;
                    // SAFETY: the lanes of the mask lie in the row, which is this thread's.
                    unsafe { _mm512_mask_storeu_epi32(at.cast(), lanes, kept) };
                }
            }
        }
    }

    /// Lays out the row `y`, counted with the padding, of the quad `i` of all groups.
    fn row(&self, x: &[u8], i: usize, y: usize, zero: u8, out: &SharedMut<'_, u8>) {
        thread_local!(static ROW: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) });
        let g = &self.geometry;
        if self.phases.iter().all(|&(py, _)| y % g.stride[1] != py) {
            return;
        }
        ROW.with_borrow_mut(|wide| self.row_by(x, i, y, zero, wide, out));
    }

    fn row_by(
        &self,
        x: &[u8],
        i: usize,
        y: usize,
        zero: u8,
        wide: &mut Vec<u32>,
        out: &SharedMut<'_, u8>,
    ) {
        let g = &self.geometry;
        let (height, width) = (g.input[1], g.input[2]);
        let (pad, stride) = (g.pad[2], g.stride[2]);
        let rows = y.checked_sub(g.pad[1]).filter(|&y| y < height).map(|y| {
            let row = |c: usize| &x[(c * height + y) * width..][..width];
            self.channels_of(i).map(row)
        });
        if let (Some(rows), true) = (rows, stride > 1) {
            // One more than there are, so that pairs are whole.
            wide.resize(width + 1, 0);
            interleave(rows, bytemuck::cast_slice_mut(&mut wide[..width]));
        }
        for (slot, &(py, px)) in self.phases.iter().enumerate() {
            if y % g.stride[1] != py {
                continue;
            }
            let start = i * self.pitch + slot * self.plane + y / g.stride[1] * self.width * 4;
            #[expect(unsafe_code, reason = "tasks write disjoint parts")]
            // SAFETY: each row of each plane belongs to one row of the image.
            let out = unsafe { out.part(start..start + self.width * 4) };
            let Some(rows) = rows else {
                out.fill(zero);
                continue;
            };
            // The first of the row's pixels in this phase, and its place.
            let skip = (px + stride - pad % stride) % stride;
            let place = (skip + pad) / stride;
            let len = width.saturating_sub(skip).div_ceil(stride);
            let (left, rest) = out.split_at_mut(place.min(self.width) * 4);
            let (pixels, right) = rest.split_at_mut(len * 4);
            left.fill(zero);
            right.fill(zero);
            match stride {
                1 => interleave(rows, pixels),
                2 => halve(&wide[skip.min(width)..], pixels),
                _ => {
                    let wide = wide.iter().skip(skip).step_by(stride);
                    for (to, &quad) in pixels.chunks_exact_mut(4).zip(wide) {
                        to.copy_from_slice(&quad.to_ne_bytes());
                    }
                }
            }
        }
    }
}

/// How many of `count` rows or pixels a task lays out, at least `least`: all for one thread.
fn share(count: usize, threads: usize, least: usize) -> usize {
    // More tasks than threads, since a thread that slept is late for its first.
    let tasks = if threads <= 1 { 1 } else { 4 * threads };
    count.div_ceil(tasks).max(least).clamp(1, count.max(1))
}

lanes::by_isa! {
    /// Four rows of bytes as one row of quads.
    fn interleave(rows: [&[u8]; 4], out: &mut [u8]) = |_FMA| {
        let [a, b, c, d] = rows;
        for ((((to, &a), &b), &c), &d) in out.chunks_exact_mut(4).zip(a).zip(b).zip(c).zip(d) {
            to.copy_from_slice(&u32::from_le_bytes([a, b, c, d]).to_le_bytes());
        }
    }
}

lanes::by_isa! {
    /// Every second quad.
    fn halve(quads: &[u32], out: &mut [u8]) = |_FMA| {
        for (to, [quad, _]) in out.chunks_exact_mut(4).zip(quads.as_chunks::<2>().0) {
            to.copy_from_slice(&quad.to_ne_bytes());
        }
    }
}
