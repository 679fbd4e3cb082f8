//! Convolution and matrix product on integers: u8 or i8 activations, i8 weights, i32 sums, and
//! requantization in the same pass.
//!
//! A layer is the sum over contiguous runs of bytes of a patch: an image is laid out with its
//! channels fastest and a border of zero points, so that a kernel row of all channels is one run.
//! Runs are read four bytes at a time, against weights packed as `[16 outputs][4 inputs]`. The
//! portable loop and the vector one add the same integers and share the requantization, so that
//! they agree bit for bit.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::cell::RefCell;

use opt_core::{DType, Error, Result};

use super::conv::Geometry;
use super::{Arg, Kernel, Out, RunCx, parallel_chunks};

/// Which integer kernels a backend uses. All give the same results bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum IntPath {
    /// For each layer the fastest that the processor has.
    #[default]
    Auto,
    /// Products of tiles in AMX registers: Intel processors from 2023 on, under Linux.
    Amx,
    /// 8-bit dot products on 512-bit vectors (AVX-512 VNNI).
    Vnni,
    /// Plain loops: the reference that every other path equals bit for bit.
    Portable,
}

impl IntPath {
    /// Whether this processor, under this operating system, can run it.
    ///
    /// A backend with a path that is not available fails to compile a graph.
    ///
    /// ```
    /// use opt_ndarray::IntPath;
    ///
    /// assert!(IntPath::Auto.is_available() && IntPath::Portable.is_available());
    /// ```
    pub fn is_available(self) -> bool {
        match self {
            IntPath::Auto | IntPath::Portable => true,
            IntPath::Amx => has_amx(),
            IntPath::Vnni => has_vnni(),
        }
    }

    /// Fails if the path is not available.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_available() {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "the integer kernels IntPath::{self:?}: this processor or operating system does not \
             have the instructions; IntPath::Auto takes the fastest that it has"
        )))
    }
}

/// Outputs of a block: the lanes of a 512-bit vector.
const LANES: usize = 16;

/// Pixels of a tile: as many independent sums as hide the latency of the multiply-add.
const PIXELS: usize = 8;

/// What happens to a sum.
#[derive(Debug, Clone)]
pub(crate) enum Finish {
    /// `clamp(round_half_even(sum * multiplier) + zero, low, high)` as u8 or i8.
    Requantize { zero: i32, low: i32, high: i32 },
    /// `sum * multiplier` as f32, at least 0 with `relu`.
    Dequantize { relu: bool },
}

/// An integer layer: a convolution of two spatial axes at most, or a matrix product as a
/// convolution of single pixels.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// How the kernel lies on an image; `None` for a matrix product, whose rows are pixels.
    pub(crate) geometry: Option<Geometry>,
    pub(crate) groups: usize,
    /// Input channels of a group.
    pub(crate) inputs: usize,
    /// Output channels of a group.
    pub(crate) outputs: usize,
    /// `[groups * outputs, inputs, taps..]`
    pub(crate) weight: Vec<i8>,
    /// One an output channel.
    pub(crate) bias: Vec<i32>,
    /// The activation's zero point.
    pub(crate) zero: i32,
    /// The activation's type.
    pub(crate) dtype: DType,
    /// One an output channel.
    pub(crate) multiplier: Vec<f32>,
    pub(crate) finish: Finish,
    pub(crate) path: IntPath,
}

impl Layer {
    /// Entries of the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.geometry.as_ref().map_or(1, Geometry::taps)
    }

    /// What it is, for profiles.
    pub(crate) fn name(&self) -> String {
        let op = if self.geometry.is_some() {
            "int conv"
        } else {
            "int matmul"
        };
        match self.finish {
            Finish::Requantize { .. } => format!("{op}+requantize"),
            Finish::Dequantize { .. } => format!("{op}+dequantize"),
        }
    }
}

/// Packs a layer whose inputs are `rows` pixels (for a matrix product) or images.
pub(crate) fn compile(layer: Layer, rows: usize) -> Box<dyn Kernel> {
    #[cfg(target_arch = "x86_64")]
    {
        use super::amx::layer::AmxLayer;
        let wanted = match layer.path {
            IntPath::Amx => true,
            IntPath::Auto => has_amx() && AmxLayer::suits(&layer),
            IntPath::Vnni | IntPath::Portable => false,
        };
        // Tiles are finished without a thought for NaN, which comes of a multiplier only.
        let plain = matches!(layer.finish, Finish::Dequantize { .. })
            || layer.multiplier.iter().all(|m| m.is_finite());
        if wanted && plain {
            return Box::new(AmxLayer::new(layer, rows));
        }
    }
    Box::new(IntLayer::new(layer, rows))
}

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
    /// `bias - zero * sum(weight)` for each group and lane.
    start: Vec<i32>,
    multiplier: Vec<f32>,
    /// Where the patch of each output pixel starts in the laid-out image.
    bases: Vec<u32>,
    /// Height, width and padding of the laid-out image; a matrix product has rows of pixels.
    padded: (usize, usize),
    vector: bool,
}

/// Whether the processor has products of tiles of bytes that this process may use.
fn has_amx() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        super::amx::available()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether the processor has 8-bit dot products on 512-bit vectors.
fn has_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

impl IntLayer {
    /// Packs a layer whose inputs are `rows` pixels (for a matrix product) or images.
    pub(crate) fn new(layer: Layer, rows: usize) -> IntLayer {
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
        let mut start = vec![0i32; layer.groups * blocks * LANES];
        let mut multiplier = vec![0f32; layer.groups * blocks * LANES];
        let count = taps.len();
        // Unsigned bytes: a signed activation is read with 128 added.
        let shift = if layer.dtype == DType::I8 { 128 } else { 0 };
        for group in 0..layer.groups {
            for o in 0..layer.outputs {
                let channel = group * layer.outputs + o;
                let source =
                    &layer.weight[channel * layer.inputs * count..][..layer.inputs * count];
                let slot = (group * blocks + o / LANES) * LANES + o % LANES;
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
                let sum: i32 = source.iter().map(|&w| i32::from(w)).sum();
                start[slot] = layer.bias[channel].wrapping_sub((layer.zero + shift) * sum);
                multiplier[slot] = layer.multiplier[channel];
            }
        }
        IntLayer {
            vector: layer.path != IntPath::Portable && has_vnni(),
            layer,
            runs: shape,
            quads,
            weight,
            start,
            multiplier,
            bases,
            padded,
        }
    }

    /// Lays an image out with its channels fastest and a border of zero points.
    fn lay_out(&self, x: &[u8], image: &mut [u8]) {
        let flip = if self.layer.dtype == DType::I8 {
            0x80
        } else {
            0
        };
        let Some(g) = &self.layer.geometry else {
            for (to, &from) in image.iter_mut().zip(x) {
                *to = from ^ flip;
            }
            return;
        };
        let channels = self.layer.groups * self.layer.inputs;
        let width = self.padded.1;
        if g.pad != [0; 3] || self.padded != (g.input[1], g.input[2]) {
            image.fill(self.layer.zero as u8 ^ flip);
        }
        for y in 0..g.input[1] {
            let row = ((y + g.pad[1]) * width + g.pad[2]) * channels;
            let row = &mut image[row..row + g.input[2] * channels];
            for c in 0..channels {
                let from = &x[(c * g.input[1] + y) * g.input[2]..][..g.input[2]];
                for (to, &v) in row[c..].iter_mut().step_by(channels).zip(from) {
                    *to = v ^ flip;
                }
            }
        }
    }

    /// The sums of a tile of pixels for a block of outputs.
    fn tile(
        &self,
        image: &[u8],
        bases: &[u32],
        group: usize,
        block: usize,
    ) -> [[i32; LANES]; PIXELS] {
        let blocks = self.layer.outputs.div_ceil(LANES);
        let at = group * blocks + block;
        let weight = &self.weight[at * self.quads * LANES * 4..][..self.quads * LANES * 4];
        let start: &[i32; LANES] = self.start[at * LANES..][..LANES]
            .try_into()
            .expect("a block of lanes");
        let channel = group * self.layer.inputs;
        #[cfg(target_arch = "x86_64")]
        if self.vector {
            let last = bases.iter().max().map_or(0, |&b| b as usize) + channel;
            let reach = self.runs.iter().map(|r| r.offset + 4 * r.quads).max();
            assert!(last + reach.unwrap_or(0) <= image.len());
            // SAFETY: `has_vnni` found the instructions; every quad that is read lies in the
            // image as asserted, and the weight has as many quads as the runs.
            return unsafe { self.vnni(image, bases, channel, weight, start) };
        }
        let mut sums = [*start; PIXELS];
        for (sum, &base) in sums.iter_mut().zip(bases) {
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
        sums
    }

    /// [`IntLayer::tile`] by 8-bit dot products.
    ///
    /// # Safety
    /// The processor has AVX-512 VNNI, and every quad of every base lies in the image.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn vnni(
        &self,
        image: &[u8],
        bases: &[u32],
        channel: usize,
        weight: &[i8],
        start: &[i32; LANES],
    ) -> [[i32; LANES]; PIXELS] {
        use std::arch::x86_64::{
            _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_storeu_si512,
        };
        // SAFETY: 16 integers of 4 bytes.
        let start = unsafe { _mm512_loadu_si512(start.as_ptr().cast()) };
        let mut sums = [start; PIXELS];
        let mut starts = [image.as_ptr(); PIXELS];
        for (i, s) in starts.iter_mut().enumerate() {
            // A tile that is not full computes its last pixel again.
            let base = bases[i.min(bases.len() - 1)] as usize + channel;
            *s = image.as_ptr().wrapping_add(base);
        }
        let mut w = weight.as_ptr();
        for run in &self.runs {
            for quad in 0..run.quads {
                // SAFETY: the weight has a block of 64 bytes for each quad.
                let block = unsafe { _mm512_loadu_si512(w.cast()) };
                w = w.wrapping_add(LANES * 4);
                for (sum, s) in sums.iter_mut().zip(&starts) {
                    let at = s.wrapping_add(run.offset + 4 * quad);
                    // SAFETY: the quad lies in the image as the caller vouches.
                    let x = unsafe { at.cast::<i32>().read_unaligned() };
                    *sum = _mm512_dpbusd_epi32(*sum, _mm512_set1_epi32(x), block);
                }
            }
        }
        let mut out = [[0i32; LANES]; PIXELS];
        for (o, s) in out.iter_mut().zip(sums) {
            // SAFETY: 16 integers of 4 bytes.
            unsafe { _mm512_storeu_si512(o.as_mut_ptr().cast(), s) };
        }
        out
    }

    /// Runs the tiles of an image and hands each to `store(channel, first pixel, sums)`.
    fn image(&self, image: &[u8], mut store: impl FnMut(usize, usize, &[[i32; LANES]], usize)) {
        let blocks = self.layer.outputs.div_ceil(LANES);
        for group in 0..self.layer.groups {
            for block in 0..blocks {
                let first = group * self.layer.outputs + block * LANES;
                let slot = (group * blocks + block) * LANES;
                for (t, bases) in self.bases.chunks(PIXELS).enumerate() {
                    let sums = self.tile(image, bases, group, block);
                    store(first, t * PIXELS, &sums[..bases.len()], slot);
                }
            }
        }
    }

    /// Output channels of the block that starts at a channel.
    fn lanes(&self, first: usize) -> usize {
        LANES.min(self.layer.outputs - first % self.layer.outputs)
    }

    fn requantize(&self, image: &[u8], out: &mut [u8], zero: i32, low: i32, high: i32) {
        let pixels = self.bases.len();
        let rows = self.layer.geometry.is_none();
        let width = self.layer.groups * self.layer.outputs;
        self.image(image, |first, at, sums, slot| {
            let multiplier = &self.multiplier[slot..slot + LANES];
            let lanes = self.lanes(first);
            for (p, sums) in sums.iter().enumerate() {
                let mut bytes = [0u8; LANES];
                requantize(sums, multiplier, zero, low, high, &mut bytes);
                if rows {
                    out[(at + p) * width + first..][..lanes].copy_from_slice(&bytes[..lanes]);
                } else {
                    for (o, &b) in bytes[..lanes].iter().enumerate() {
                        out[(first + o) * pixels + at + p] = b;
                    }
                }
            }
        });
    }

    fn dequantize(&self, image: &[u8], out: &mut [f32], relu: bool) {
        let pixels = self.bases.len();
        let rows = self.layer.geometry.is_none();
        let width = self.layer.groups * self.layer.outputs;
        self.image(image, |first, at, sums, slot| {
            for (p, sums) in sums.iter().enumerate() {
                for o in 0..self.lanes(first) {
                    let v = sums[o] as f32 * self.multiplier[slot + o];
                    // 0 where it is a NaN.
                    let v = if !relu || v > 0.0 { v } else { 0.0 };
                    let place = if rows {
                        (at + p) * width + first + o
                    } else {
                        (first + o) * pixels + at + p
                    };
                    out[place] = v;
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

impl Kernel for IntLayer {
    fn name(&self) -> String {
        self.layer.name()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        thread_local!(static IMAGE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        let (inputs, outputs) = match &self.layer.geometry {
            Some(g) => (g.input_len(), g.output_len()),
            None => (self.bases.len(), self.bases.len()),
        };
        let input = self.layer.groups * self.layer.inputs * inputs;
        let output = (self.layer.groups * self.layer.outputs * outputs).max(1);
        let x = args[0].bytes;
        let with_image = |n: usize, run: &mut dyn FnMut(&[u8])| {
            // Taken out, since a thread that waits for others may start another task meanwhile.
            let mut image = IMAGE.take();
            image.resize(self.image_len(), 0);
            self.lay_out(&x[n * input..][..input], &mut image);
            run(&image);
            IMAGE.set(image);
        };
        match self.layer.finish {
            Finish::Requantize { zero, low, high } => {
                parallel_chunks(cx.threads, outs[0].bytes, output, |n, out| {
                    with_image(n, &mut |image| self.requantize(image, out, zero, low, high));
                });
            }
            Finish::Dequantize { relu } => {
                parallel_chunks(cx.threads, outs[0].typed::<f32>(), output, |n, out| {
                    with_image(n, &mut |image| self.dequantize(image, out, relu));
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
