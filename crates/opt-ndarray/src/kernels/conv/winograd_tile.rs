//! The innermost loops of Winograd's convolution: transforms of the image, products, and
//! transforms back, with 16 tiles of the image in the lanes.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use crate::kernels::tile::Isa;

/// Tiles in a vector.
pub(super) const LANES: usize = 16;

/// Output channels that [`product`] has in registers.
pub(super) const ROWS: usize = 8;

/// Whether there are such loops for an instruction set.
pub(super) fn serves(isa: Isa) -> bool {
    isa.lanes() == LANES
}

/// A channel of an image, and the first half of its transform.
#[derive(Clone, Copy)]
pub(super) struct Across {
    pub(super) x: *const f32,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Rows and columns of padding before the image.
    pub(super) pad: [usize; 2],
    /// Rows and columns of tiles.
    pub(super) tiles: [usize; 2],
    /// `[2, 4, plane]`: for even and odd rows each of the four columns of a tile.
    pub(super) out: *mut f32,
    pub(super) plane: usize,
}

/// The second half of a channel's transform, for a vector of tiles.
#[derive(Clone, Copy)]
pub(super) struct Down {
    /// The planes of [`Across::out`], from the vector's first tile on.
    pub(super) half: *const f32,
    pub(super) plane: usize,
    /// Tiles in a row.
    pub(super) row: usize,
    /// 16 vectors, so far from each other.
    pub(super) out: *mut f32,
    pub(super) step: usize,
}

/// Tiles of a vector that lie side by side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// The first lane.
    pub(super) lane: usize,
    /// The first pixel's row and column, and how many there are in a row.
    pub(super) y: usize,
    pub(super) x: usize,
    pub(super) len: usize,
}

/// A vector of transformed tiles of an output channel.
#[derive(Clone, Copy)]
pub(super) struct Back<'a> {
    /// 16 vectors, so far from each other.
    pub(super) sums: *const f32,
    pub(super) step: usize,
    pub(super) bias: f32,
    pub(super) runs: &'a [Run],
    pub(super) out: *mut f32,
    pub(super) height: usize,
    pub(super) width: usize,
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Across, Back, Down, LANES, ROWS};

    /// # Safety
    /// As [`super::across`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn across(t: Across) {
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
        let [rows, columns] = t.tiles;
        for y in 0..2 * rows + 2 {
            let out = t.out.wrapping_add(y % 2 * 4 * t.plane + y / 2 * columns);
            let row = y.wrapping_sub(t.pad[0]);
            for first in (0..columns).step_by(LANES) {
                let mut halves = [_mm512_setzero_ps(); 4];
                if row < t.height {
                    // Entries of the row from `start` on that are there.
                    let start = (2 * first).wrapping_sub(t.pad[1]).cast_signed();
                    let from = (-start).clamp(0, 34);
                    let to = (t.width.cast_signed() - start).clamp(from, 34);
                    let mask = (1u64 << to) - (1u64 << from);
                    let x = t.x.wrapping_add(row * t.width).wrapping_offset(start);
                    // SAFETY: only masked entries are read, which lie in the row.
                    let load = |at: usize| unsafe {
                        _mm512_maskz_loadu_ps((mask >> at) as __mmask16, x.wrapping_add(at))
                    };
                    let (near, far) = ([load(0), load(16)], [load(2), load(18)]);
                    let d0 = _mm512_permutex2var_ps(near[0], even, near[1]);
                    let d1 = _mm512_permutex2var_ps(near[0], odd, near[1]);
                    let d2 = _mm512_permutex2var_ps(far[0], even, far[1]);
                    let d3 = _mm512_permutex2var_ps(far[0], odd, far[1]);
                    halves = [
                        _mm512_sub_ps(d0, d2),
                        _mm512_add_ps(d1, d2),
                        _mm512_sub_ps(d2, d1),
                        _mm512_sub_ps(d1, d3),
                    ];
                }
                for (j, half) in halves.into_iter().enumerate() {
                    // SAFETY: what is written beyond the row of tiles is in the next one of the
                    // plane, which comes later, or in the vector that a plane has beyond its last.
                    unsafe { _mm512_storeu_ps(out.add(j * t.plane + first), half) };
                }
            }
        }
    }

    /// # Safety
    /// As [`super::down`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn down(t: Down) {
        for j in 0..4 {
            // SAFETY: the caller vouches for the planes and the result.
            unsafe {
                let (even, odd) = (t.half.add(j * t.plane), t.half.add((4 + j) * t.plane));
                let (h0, h2) = (_mm512_loadu_ps(even), _mm512_loadu_ps(even.add(t.row)));
                let (h1, h3) = (_mm512_loadu_ps(odd), _mm512_loadu_ps(odd.add(t.row)));
                let out = t.out.add(j * t.step);
                _mm512_storeu_ps(out, _mm512_sub_ps(h0, h2));
                _mm512_storeu_ps(out.add(4 * t.step), _mm512_add_ps(h1, h2));
                _mm512_storeu_ps(out.add(8 * t.step), _mm512_sub_ps(h2, h1));
                _mm512_storeu_ps(out.add(12 * t.step), _mm512_sub_ps(h1, h3));
            }
        }
    }

    /// # Safety
    /// As [`super::product`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn product<const NV: usize>(
        k: usize,
        a: *const f32,
        b: *const f32,
        out: *mut f32,
    ) {
        let mut sums = [[_mm512_setzero_ps(); NV]; ROWS];
        let (mut a, mut b) = (a, b);
        for _ in 0..k {
            // SAFETY: the caller vouches for `k` rows of both.
            unsafe {
                let mut columns = [_mm512_setzero_ps(); NV];
                for v in 0..NV {
                    columns[v] = _mm512_loadu_ps(b.add(v * LANES));
                }
                for r in 0..ROWS {
                    let x = _mm512_set1_ps(*a.add(r));
                    for v in 0..NV {
                        sums[r][v] = _mm512_fmadd_ps(x, columns[v], sums[r][v]);
                    }
                }
                a = a.add(ROWS);
                b = b.add(NV * LANES);
            }
        }
        for r in 0..ROWS {
            for v in 0..NV {
                // SAFETY: the caller vouches for the result.
                unsafe { _mm512_storeu_ps(out.add((r * NV + v) * LANES), sums[r][v]) };
            }
        }
    }

    /// # Safety
    /// As [`super::back`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn back(t: Back<'_>) {
        let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        let mut rows = [[_mm512_setzero_ps(); 4]; 2];
        for j in 0..4 {
            // SAFETY: the caller vouches for the sums.
            let m = |i: usize| unsafe { _mm512_loadu_ps(t.sums.add((4 * i + j) * t.step)) };
            let (m0, m1, m2, m3) = (m(0), m(1), m(2), m(3));
            rows[0][j] = _mm512_add_ps(_mm512_add_ps(m0, m1), m2);
            rows[1][j] = _mm512_sub_ps(_mm512_sub_ps(m1, m2), m3);
        }
        let bias = _mm512_set1_ps(t.bias);
        let mut pixels = [[0f32; 2 * LANES]; 2];
        for (row, pixels) in rows.iter().zip(&mut pixels) {
            let even = _mm512_add_ps(_mm512_add_ps(row[0], row[1]), row[2]);
            let odd = _mm512_sub_ps(_mm512_sub_ps(row[1], row[2]), row[3]);
            let (even, odd) = (_mm512_add_ps(even, bias), _mm512_add_ps(odd, bias));
            // SAFETY: two vectors of pixels.
            unsafe {
                let at = pixels.as_mut_ptr();
                _mm512_storeu_ps(at, _mm512_permutex2var_ps(even, low, odd));
                _mm512_storeu_ps(at.add(LANES), _mm512_permutex2var_ps(even, high, odd));
            }
        }
        for run in t.runs {
            for (i, pixels) in pixels.iter().enumerate().take(t.height - run.y) {
                let to = t.out.wrapping_add((run.y + i) * t.width + run.x);
                for at in (0..run.len).step_by(LANES) {
                    let mask = ((1u32 << (run.len - at).min(LANES)) - 1) as __mmask16;
                    let from = pixels.as_ptr().wrapping_add(2 * run.lane + at);
                    // SAFETY: a run's pixels are among the vector's, and lie in the output.
                    unsafe {
                        let v = _mm512_maskz_loadu_ps(mask, from);
                        _mm512_mask_storeu_ps(to.wrapping_add(at), mask, v);
                    }
                }
            }
        }
    }
}

/// Transforms the rows of a channel.
///
/// # Safety
/// [`serves`] is true of the processor's instruction set; the image has its rows; each of the eight
/// planes has the tiles, a row of tiles more, and a vector beyond.
pub(super) unsafe fn across(t: Across) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: passed on.
    unsafe {
        x86::across(t);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{} pixels", t.height * t.width);
}

/// Transforms the columns of a vector of tiles.
///
/// # Safety
/// As [`across`]; the planes have a vector and a row of tiles more, `out` its 16 vectors.
pub(super) unsafe fn down(t: Down) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: passed on.
    unsafe {
        x86::down(t);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{} tiles", t.row);
}

/// `out[r][j] = sum over p < k of a[p][r] * b[p][j]`, for [`ROWS`] rows and one to three vectors.
///
/// # Safety
/// As [`across`]; the pointers cover these sizes, without gaps between rows.
pub(super) unsafe fn product(
    vectors: usize,
    k: usize,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: passed on.
    unsafe {
        match vectors {
            1 => x86::product::<1>(k, a, b, out),
            2 => x86::product::<2>(k, a, b, out),
            _ => x86::product::<3>(k, a, b, out),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{vectors} vectors of {k} at {a:p}, {b:p}, {out:p}");
}

/// Transforms sums to pixels, and writes them.
///
/// # Safety
/// As [`across`]; there are 16 vectors of sums; runs have lanes of the vector, and rows (one at
/// least) and columns of the output.
pub(super) unsafe fn back(t: Back<'_>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: passed on.
    unsafe {
        x86::back(t);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{} runs", t.runs.len());
}
