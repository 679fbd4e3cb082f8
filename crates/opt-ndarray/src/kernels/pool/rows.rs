//! Pooling of `f32` images by vectors of output pixels side by side: the maximum or the mean of what
//! lies under the kernel, read where it is.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use crate::kernels::conv::{Geometry, reach};
use crate::kernels::parallel_chunks;
use crate::kernels::tile::Isa;

/// Elements of an input that make a task.
const TASK: usize = 1 << 15;

/// Elements between a row and what is called for while it is pooled.
const AHEAD: usize = 1 << 10;

/// What a vector of output pixels reads of a row for a column of the kernel.
#[derive(Debug, Clone, Copy)]
struct Column {
    /// From the row's first pixel to what the first lane reads.
    from: i32,
    /// The elements from there on that are read.
    mask: u32,
    /// The output pixels that have an element there.
    lanes: u32,
}

/// Pooling in two dimensions.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    isa: Isa,
    geometry: Geometry,
    /// Those of each column of the kernel, for each vector of an output row.
    columns: Vec<Column>,
    /// What the sum of each output pixel is multiplied by; none for the maximum.
    factors: Option<Vec<f32>>,
}

impl Rows {
    /// The maximum of each window, all of which have pixels; `None` in three dimensions, and on
    /// processors without vectors for it.
    pub(crate) fn max(g: &Geometry) -> Option<Rows> {
        Rows::on(Isa::get(), g, None)
    }

    /// The sum of each window times the factor of its output pixel.
    pub(super) fn mean(g: &Geometry, factors: Vec<f32>) -> Option<Rows> {
        Rows::on(Isa::get(), g, Some(factors))
    }

    /// For instructions that the processor has.
    fn on(isa: Isa, g: &Geometry, factors: Option<Vec<f32>>) -> Option<Rows> {
        let flat = g.input[0] == 1 && g.output[0] == 1 && g.kernel[0] == 1 && g.pad[0] == 0;
        let sizes = [g.taps(), g.output_len(), g.input_len()];
        if isa == Isa::Portable || !flat || sizes.contains(&0) {
            return None;
        }
        i32::try_from(g.input_len()).ok()?;
        assert!(factors.as_ref().is_none_or(|f| f.len() == g.output_len()));
        let (width, lanes) = (g.output[2], isa.lanes());
        let mut columns = Vec::new();
        for x in (0..width).step_by(lanes) {
            for kx in 0..g.kernel[2] {
                let reach = reach(g, x, kx, lanes.min(width - x));
                let own = match g.stride[2] {
                    2 => (0..16).map(|i| (reach.mask >> (2 * i) & 1) << i).sum(),
                    _ => reach.mask,
                };
                columns.push(Column {
                    from: reach.from,
                    mask: reach.mask,
                    lanes: own,
                });
            }
        }
        Some(Rows {
            isa,
            geometry: g.clone(),
            columns,
            factors,
        })
    }

    /// Pools images of one channel.
    pub(crate) fn run(&self, x: &[f32], y: &mut [f32], threads: usize) {
        let (input, output) = (self.geometry.input_len(), self.geometry.output_len());
        let channels = (TASK / input).max(1);
        parallel_chunks(threads, y, channels * output, |task, y| {
            let x = &x[task * channels * input..];
            for (x, y) in x.chunks_exact(input).zip(y.chunks_exact_mut(output)) {
                self.channel(x, y);
            }
        });
    }

    fn channel(&self, x: &[f32], y: &mut [f32]) {
        let g = &self.geometry;
        assert!(x.len() >= g.input_len() && y.len() >= g.output_len());
        for (at, y) in y.chunks_exact_mut(g.output[2]).enumerate() {
            // The rows of the kernel that lie in the image.
            let start = at * g.stride[1];
            // Divisions would take as long as a vector.
            let steps = |distance: usize| match g.dilation[1] {
                1 => distance,
                dilation => distance.div_ceil(dilation),
            };
            let first = steps(g.pad[1].saturating_sub(start));
            let end = steps((g.input[1] + g.pad[1]).saturating_sub(start)).min(g.kernel[1]);
            let taps = first.min(end)..end;
            self.fetch(x, start * g.input[2] + AHEAD);
            let row = Row {
                x,
                y,
                at,
                taps: taps.clone(),
            };
            // SAFETY: `isa` is the processor's; the image has the geometry's sizes, the row is one
            // of its output, and the taps lie in the image.
            let strange = unsafe {
                match (self.isa, self.factors.is_none()) {
                    #[cfg(target_arch = "x86_64")]
                    (Isa::Avx512, true) => x86::max512(self, row),
                    #[cfg(target_arch = "x86_64")]
                    (Isa::Avx512, false) => x86::sum512(self, row),
                    #[cfg(target_arch = "x86_64")]
                    (Isa::Avx2, true) => x86::max256(self, row),
                    #[cfg(target_arch = "x86_64")]
                    (Isa::Avx2, false) => x86::sum256(self, row),
                    (Isa::Portable, _) => unreachable!("row {} of an image", row.at),
                }
            };
            if strange {
                self.maxima(x, at, taps, y);
            }
        }
    }

    /// Calls for the rows that one output row takes more than the one before it.
    fn fetch(&self, x: &[f32], from: usize) {
        let g = &self.geometry;
        for at in (from..from + g.stride[1] * g.input[2]).step_by(16) {
            let at = x.as_ptr().wrapping_add(at);
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a hint, which may name any address; every such processor has it.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(at.cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = at;
        }
    }

    /// A row of maxima, NaN where a pixel is.
    fn maxima(&self, x: &[f32], at: usize, taps: std::ops::Range<usize>, y: &mut [f32]) {
        let g = &self.geometry;
        y.fill(f32::NEG_INFINITY);
        for ky in taps {
            let row = &x[g.source(1, at, ky) * g.input[2]..];
            for kx in 0..g.kernel[2] {
                for i in g.inside(2, kx) {
                    let v = row[g.source(2, i, kx)];
                    if v > y[i] || v.is_nan() {
                        y[i] = v;
                    }
                }
            }
        }
    }
}

/// One row of an output.
struct Row<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    at: usize,
    /// The rows of the kernel that lie in the image.
    taps: std::ops::Range<usize>,
}

macro_rules! kernels {
    ($max:ident, $sum:ident, $row:ident, $features:literal, $lanes:literal, $splat:ident,
     $largest:ident, $add:ident, $mul:ident, $is_nan:ident, $any:expr, $keep:ident, $mask:ident,
     $load_mask:ident, $store_mask:ident, $bits:ident, $even:ident, $gather:ident) => {
        /// Whether some maximum may be NaN, and was not found. `SIDE` is the kernel's, if it is a
        /// square all of whose rows lie in the image, or else 0.
        ///
        /// # Safety
        /// The processor has the features; the rows and columns lie in the image.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $row<const STRIDE: usize, const MAX: bool, const SIDE: usize>(
            p: &Rows,
            r: Row<'_>,
        ) -> bool {
            let g = &p.geometry;
            let width = g.input[2];
            let (kernel, taps) = match SIDE {
                0 => (g.kernel[2], r.taps.len()),
                side => (side, side),
            };
            let start = if MAX { f32::NEG_INFINITY } else { 0.0 };
            let mut strange = false;
            for i in 0..r.y.len().div_ceil($lanes) {
                let columns = &p.columns[i * kernel..][..kernel];
                let mut result = $splat(start);
                let mut nan = $is_nan(result, result);
                let first = r.at * g.stride[1] + r.taps.start * g.dilation[1];
                // A window may have no row in the image.
                let first = first.wrapping_sub(g.pad[1]).wrapping_mul(width);
                let first = r.x.as_ptr().wrapping_add(first);
                for kx in 0..kernel {
                    let column = &columns[kx];
                    let mut from = first.wrapping_offset(column.from as isize);
                    let (low, high) = ($bits(column.mask), $bits(column.mask >> $lanes));
                    let mut found = [$splat(start); 2];
                    for _ in 0..taps {
                        // SAFETY: the masks let elements of the row through only.
                        let own = unsafe {
                            match STRIDE {
                                1 => [$load_mask(from, low), $splat(start)],
                                2 => [
                                    $load_mask(from, low),
                                    $load_mask(from.wrapping_add($lanes), high),
                                ],
                                _ => [$gather(from, low, g.stride[2]), $splat(start)],
                            }
                        };
                        if MAX {
                            nan |= $is_nan(own[0], own[1]);
                        }
                        for half in 0..if STRIDE == 2 { 2 } else { 1 } {
                            found[half] = match MAX {
                                true => $largest(found[half], own[half]),
                                false => $add(found[half], own[half]),
                            };
                        }
                        from = from.wrapping_add(g.dilation[1] * width);
                    }
                    let found = match STRIDE {
                        2 => $even(found[0], found[1]),
                        _ => found[0],
                    };
                    result = match MAX {
                        true => $keep(result, $bits(column.lanes), $largest(result, found)),
                        false => $add(result, found),
                    };
                }
                strange |= MAX && $any(nan);
                let mask = $mask((r.y.len() - i * $lanes).min($lanes));
                if let Some(factors) = &p.factors {
                    let at = r.at * g.output[2] + i * $lanes;
                    // SAFETY: masked to the row.
                    let by = unsafe { $load_mask(factors.as_ptr().wrapping_add(at), mask) };
                    result = $mul(result, by);
                }
                // SAFETY: masked to the row.
                unsafe { $store_mask(r.y.as_mut_ptr().wrapping_add(i * $lanes), mask, result) };
            }
            strange
        }

        /// # Safety
        /// As the row.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $max(p: &Rows, r: Row<'_>) -> bool {
            // SAFETY: passed on.
            unsafe {
                let side = p.geometry.kernel[2];
                let square = side == r.taps.len();
                match (p.geometry.stride[2], side) {
                    (1, 3) if square => $row::<1, true, 3>(p, r),
                    (1, _) => $row::<1, true, 0>(p, r),
                    (2, 2) if square => $row::<2, true, 2>(p, r),
                    (2, 3) if square => $row::<2, true, 3>(p, r),
                    (2, _) => $row::<2, true, 0>(p, r),
                    _ => $row::<3, true, 0>(p, r),
                }
            }
        }

        /// # Safety
        /// As the row.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $sum(p: &Rows, r: Row<'_>) -> bool {
            // SAFETY: passed on.
            unsafe {
                let side = p.geometry.kernel[2];
                let square = side == r.taps.len();
                match (p.geometry.stride[2], side) {
                    (1, 3) if square => $row::<1, false, 3>(p, r),
                    (1, _) => $row::<1, false, 0>(p, r),
                    (2, 2) if square => $row::<2, false, 2>(p, r),
                    (2, 3) if square => $row::<2, false, 3>(p, r),
                    (2, _) => $row::<2, false, 0>(p, r),
                    _ => $row::<3, false, 0>(p, r),
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Row, Rows};
    use crate::kernels::conv::masks::x86::*;

    #[target_feature(enable = "avx512f")]
    fn nan512(a: __m512, b: __m512) -> __mmask16 {
        _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, b)
    }

    #[target_feature(enable = "avx512f")]
    fn keep512(old: __m512, mask: __mmask16, new: __m512) -> __m512 {
        _mm512_mask_mov_ps(old, mask, new)
    }

    kernels!(
        max512,
        sum512,
        row512,
        "avx512f",
        16,
        _mm512_set1_ps,
        _mm512_max_ps,
        _mm512_add_ps,
        _mm512_mul_ps,
        nan512,
        |nan: __mmask16| nan != 0,
        keep512,
        mask512,
        load_mask512,
        _mm512_mask_storeu_ps,
        bits512,
        even512,
        gather512
    );

    /// A bit for each lane where one is NaN.
    #[target_feature(enable = "avx2,fma")]
    fn nan256(a: __m256, b: __m256) -> i32 {
        _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, b))
    }

    #[target_feature(enable = "avx2,fma")]
    fn keep256(old: __m256, mask: __m256i, new: __m256) -> __m256 {
        _mm256_blendv_ps(old, new, _mm256_castsi256_ps(mask))
    }

    kernels!(
        max256,
        sum256,
        row256,
        "avx2,fma",
        8,
        _mm256_set1_ps,
        _mm256_max_ps,
        _mm256_add_ps,
        _mm256_mul_ps,
        nan256,
        |nan: i32| nan != 0,
        keep256,
        mask256,
        load_mask256,
        _mm256_maskstore_ps,
        bits256,
        even256,
        gather256
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::conv::testing::{geometry, isas, values};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn it_agrees_with_the_definition(
            size in [1usize..20, 1usize..70], kernel in [1usize..5, 1usize..5],
            strides in [1usize..4, 1usize..4], dilations in [1usize..3, 1usize..3],
            pad in [0usize..3, 0usize..3], end in [0usize..3, 0usize..3], nan in 0usize..200,
        ) {
            let found = geometry(size, kernel, strides, dilations, pad, end);
            prop_assume!(found.is_some());
            let g = found.unwrap();
            let (input, output) = (g.input_len(), g.output_len());
            let mut x = values(1, 3 * input);
            if nan < x.len() {
                x[nan] = f32::NAN;
            }
            let factors = values(2, output);
            for isa in isas() {
                let max = Rows::on(isa, &g, None).unwrap();
                let sum = Rows::on(isa, &g, Some(factors.clone())).unwrap();
                let mut found = [0, 1].map(|_| vec![7f32; 3 * output]);
                max.run(&x, &mut found[0], 2);
                sum.run(&x, &mut found[1], 2);
                for at in 0..3 * output {
                    let (channel, y) = (at / output, at % output / g.output[2]);
                    let (mut pixels, mut sum) = (Vec::new(), 0f32);
                    for kx in 0..kernel[1] {
                        let (column, mut part) = (at % g.output[2], 0f32);
                        for ky in (0..kernel[0]).filter(|&k| g.inside(1, k).contains(&y)) {
                            if g.inside(2, kx).contains(&column) {
                                let row = g.source(1, y, ky) * size[1];
                                pixels.push(x[channel * input + row + g.source(2, column, kx)]);
                                part += pixels[pixels.len() - 1];
                            }
                        }
                        sum += part;
                    }
                    let largest = pixels.iter().fold(f32::NEG_INFINITY, |best, &v| {
                        if v > best || v.is_nan() { v } else { best }
                    });
                    let total = sum * factors[at % output];
                    let pairs = [(found[0][at], largest), (found[1][at], total)];
                    for (i, (found, expected)) in pairs.into_iter().enumerate() {
                        prop_assert!(
                            found == expected || found.is_nan() && expected.is_nan(),
                            "{} {} {} {}", isa as usize, i, found, expected
                        );
                    }
                }
            }
        }
    }
}
