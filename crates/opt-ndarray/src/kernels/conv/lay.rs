//! Copies of images with their padding.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use crate::kernels::tile::Isa;

/// Entries after the last row's pitch that [`rows`] may write: less than a vector.
pub(super) const SLACK: usize = 16;

/// Rows of a distance from each other, to be copied to rows of another one.
#[derive(Clone, Copy)]
struct Rows {
    from: *const f32,
    /// Entries of a row; the next one follows.
    width: usize,
    to: *mut f32,
    pitch: usize,
    count: usize,
}

macro_rules! kernel {
    ($name:ident, $features:literal, $lanes:literal, $store:ident, $mask:ident, $load_mask:ident) => {
        /// # Safety
        /// The processor has the features; `from` has the rows, `to` the rows and [`SLACK`] more.
        #[target_feature(enable = $features)]
        unsafe fn $name(r: Rows) {
            for i in 0..r.count {
                for at in (0..r.pitch).step_by($lanes) {
                    let mask = $mask(r.width.saturating_sub(at).min($lanes));
                    // SAFETY: read in the row only. What is written beyond its pitch is in the
                    // next row, which comes later, or in what follows the last.
                    unsafe {
                        let from = r.from.wrapping_add(i * r.width + at);
                        $store(r.to.add(i * r.pitch + at), $load_mask(from, mask));
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::masks::x86::*;
    use super::Rows;

    kernel!(
        rows512,
        "avx512f",
        16,
        _mm512_storeu_ps,
        mask512,
        load_mask512
    );
    kernel!(
        rows256,
        "avx2,fma",
        8,
        _mm256_storeu_ps,
        mask256,
        load_mask256
    );

    /// # Safety
    /// As [`rows512`].
    pub(super) unsafe fn avx512(r: Rows) {
        // SAFETY: passed on.
        unsafe { rows512(r) }
    }

    /// # Safety
    /// As [`rows256`].
    pub(super) unsafe fn avx2(r: Rows) {
        // SAFETY: passed on.
        unsafe { rows256(r) }
    }
}

/// A channel of an image with its padding.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plane {
    /// Entries of a row of the image.
    pub(super) width: usize,
    /// Rows and columns of padding before the image.
    pub(super) pad: [usize; 2],
    /// Rows, as far as they are kept, and the distance between their starts.
    pub(super) rows: usize,
    pub(super) pitch: usize,
    /// Entries of a channel.
    pub(super) len: usize,
}

impl Plane {
    /// Copies channels one after the other; [`SLACK`] entries after the last may be written.
    pub(super) fn fill(self, isa: Isa, x: &[f32], height: usize, out: &mut [f32]) {
        let inside = self.pad[0].min(self.rows)..(self.pad[0] + height).min(self.rows);
        let at = |row: usize| self.pad[1] + row * self.pitch;
        for (channel, x) in x.chunks_exact((height * self.width).max(1)).enumerate() {
            let out = &mut out[channel * self.len..];
            out[..at(inside.start)].fill(0.0);
            let x = &x[..inside.len() * self.width];
            rows(isa, x, self.width, &mut out[at(inside.start)..], self.pitch);
            out[at(inside.end)..self.len].fill(0.0);
        }
    }
}

/// Copies rows of `width` entries, one after the other, to rows that start `pitch` apart, with
/// zeros between them. `out` has [`SLACK`] entries after the last row's pitch, which may be written,
/// too.
fn rows(isa: Isa, x: &[f32], width: usize, out: &mut [f32], pitch: usize) {
    assert!(width <= pitch);
    let count = x.len().checked_div(width).unwrap_or(0);
    assert!(out.len() >= count * pitch + SLACK);
    let r = Rows {
        from: x.as_ptr(),
        width,
        to: out.as_mut_ptr(),
        pitch,
        count,
    };
    match isa {
        // SAFETY: lengths were checked; instruction sets come from `Isa::get`.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::avx512(r) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::avx2(r) },
        Isa::Portable => {
            for (out, x) in out.chunks_mut(r.pitch).zip(x.chunks_exact(r.width)) {
                out[..r.width].copy_from_slice(x);
                out[r.width..].fill(0.0);
            }
            let _ = (r.from, r.to, r.count);
        }
    }
}
