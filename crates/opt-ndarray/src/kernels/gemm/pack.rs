//! Operands in the order in which the register tiles read them.

use std::ops::Range;

use opt_core::tensor::Buffer;

use super::rten;
use super::{Mat, Route, route};
use crate::kernels::lanes::by_isa;
use crate::kernels::tile::{Isa, panel};

/// The most rows of a register tile.
pub(super) const MR: usize = 12;

/// The tiles that rows are cut into: as equal as can be, at most [`MR`] rows each.
#[derive(Clone, Copy)]
pub(super) struct RowTiles {
    pub(super) count: usize,
    size: usize,
    /// So many tiles have a row more.
    larger: usize,
}

impl RowTiles {
    pub(super) fn new(rows: usize) -> RowTiles {
        let count = rows.div_ceil(MR);
        RowTiles {
            count,
            size: rows / count.max(1),
            larger: rows % count.max(1),
        }
    }

    /// The rows of a tile.
    pub(super) fn rows(self, t: usize) -> Range<usize> {
        let start = t * self.size + t.min(self.larger);
        start..start + self.size + usize::from(t < self.larger)
    }
}

/// A left operand that is packed once and used many times, for products of one size.
pub(crate) struct PackedLhs(pub(super) PackedLhsKind);

pub(super) enum PackedLhsKind {
    /// Row tile after row tile; within one, the rows' entries side by side for each `k`.
    Tiles(Buffer),
    Rten(rten::PackedLhs),
}

/// A right operand that is packed once and used many times, for products of one size.
pub(crate) struct PackedRhs(pub(super) PackedRhsKind);

pub(super) enum PackedRhsKind {
    /// Column panel after column panel; within one, rows of `panel(n)` entries, padded by zeros.
    Tiles(Buffer),
    Rten(rten::PackedRhs),
}

impl std::fmt::Debug for PackedLhs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PackedLhs")
    }
}

impl std::fmt::Debug for PackedRhs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PackedRhs")
    }
}

impl PackedLhs {
    /// Packs `a[m, k]` for products with `[k, n]`.
    pub(crate) fn new(a: Mat<'_>, m: usize, n: usize, k: usize) -> PackedLhs {
        PackedLhs::by(route(m, n, k), a, m, k)
    }

    pub(super) fn by(route: Route, a: Mat<'_>, m: usize, k: usize) -> PackedLhs {
        assert!(a.covers(m, k), "the left operand is too short");
        PackedLhs(match route {
            Route::Tiles(isa) => {
                let mut out = zeros(m * k);
                let target = out.typed_mut::<f32>();
                let tiles = RowTiles::new(m);
                for t in 0..tiles.count {
                    let rows = tiles.rows(t);
                    let target = &mut target[rows.start * k..rows.end * k];
                    pack_rows(isa, a, rows, 0..k, target);
                }
                PackedLhsKind::Tiles(out)
            }
            Route::Rten => PackedLhsKind::Rten(rten::pack_lhs(a, m, k)),
        })
    }
}

impl PackedRhs {
    /// Packs `b[k, n]` for products with `[m, k]`.
    pub(crate) fn new(b: Mat<'_>, m: usize, n: usize, k: usize) -> PackedRhs {
        PackedRhs::by(route(m, n, k), b, n, k)
    }

    pub(super) fn by(route: Route, b: Mat<'_>, n: usize, k: usize) -> PackedRhs {
        assert!(b.covers(k, n), "the right operand is too short");
        PackedRhs(match route {
            Route::Tiles(isa) => {
                let nr = panel(isa, n);
                let mut out = zeros(n.div_ceil(nr) * nr * k);
                let target = out.typed_mut::<f32>();
                for (i, target) in target.chunks_exact_mut((nr * k).max(1)).enumerate() {
                    pack_panel(isa, b, 0..k, i * nr..n.min((i + 1) * nr), nr, target);
                }
                PackedRhsKind::Tiles(out)
            }
            Route::Rten => PackedRhsKind::Rten(rten::pack_rhs(b, k, n)),
        })
    }
}

/// As many zeros, aligned to lines of the cache.
pub(super) fn zeros(len: usize) -> Buffer {
    Buffer::zeroed(len * size_of::<f32>())
}

/// At least so many entries of a buffer, content undefined.
pub(super) fn room(buffer: &mut Option<Buffer>, len: usize) -> &mut [f32] {
    let short = |b: &Buffer| b.bytes().len() < len * size_of::<f32>();
    if buffer.as_ref().is_none_or(short) {
        *buffer = Some(zeros(len));
    }
    match buffer {
        Some(buffer) => &mut buffer.typed_mut()[..len],
        None => &mut [],
    }
}

by_isa! {
    /// Copies rows of `width` entries, `from` apart, to rows that are `width` apart. A constant
    /// width saves a call a row.
    fn copy_rows(source: &[f32], from: usize, target: &mut [f32], width: usize, count: usize) = |_FMA| {
        match width {
            64 => copy_fixed::<64>(source, from, target, count),
            32 => copy_fixed::<32>(source, from, target, count),
            16 => copy_fixed::<16>(source, from, target, count),
            12 => copy_fixed::<12>(source, from, target, count),
            11 => copy_fixed::<11>(source, from, target, count),
            10 => copy_fixed::<10>(source, from, target, count),
            8 => copy_fixed::<8>(source, from, target, count),
            _ => {
                for (i, row) in target.chunks_exact_mut(width).take(count).enumerate() {
                    row.copy_from_slice(&source[i * from..][..width]);
                }
            }
        }
    }
}

#[inline(always)]
fn copy_fixed<const WIDTH: usize>(source: &[f32], from: usize, target: &mut [f32], count: usize) {
    for (i, row) in target.as_chunks_mut::<WIDTH>().0[..count]
        .iter_mut()
        .enumerate()
    {
        row.copy_from_slice(&source[i * from..][..WIDTH]);
    }
}

/// Squares of eight rows and columns through registers: entry `(i, p)` of `source`, whose rows
/// are `from` apart, goes to `target[p * to + i]`, for `i` below `rows` and `p` below `count`.
/// The last square overlaps the one before, where the sizes are no multiples of eight.
///
/// Returns whether it could: not without vectors of eight lanes, nor for fewer than eight.
pub(in crate::kernels) fn transpose(
    isa: Isa,
    source: &[f32],
    from: usize,
    target: &mut [f32],
    to: usize,
    (rows, count): (usize, usize),
) -> bool {
    if isa.lanes() < 8 || rows < 8 || count < 8 {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    for i in (0..rows.div_ceil(8)).map(|i| (8 * i).min(rows - 8)) {
        for p in (0..count.div_ceil(8)).map(|p| (8 * p).min(count - 8)) {
            let (source, target) = (&source[i * from + p..], &mut target[p * to + i..]);
            #[expect(unsafe_code, reason = "vector instructions")]
            // SAFETY: the processor has vectors of eight lanes.
            unsafe {
                crate::kernels::tile::x86::transpose8(source, from, target, to);
            }
        }
    }
    cfg!(target_arch = "x86_64")
}

/// Copies rows of `a`, for a range of `k`, to a row tile: their entries side by side.
pub(super) fn pack_rows(
    isa: Isa,
    a: Mat<'_>,
    rows: Range<usize>,
    depth: Range<usize>,
    target: &mut [f32],
) {
    let (count, k) = (rows.len(), depth.len());
    let source = &a.data[(rows.start * a.row + depth.start * a.col).min(a.data.len())..];
    if a.row == 1 {
        copy_rows(source, a.col, target, count, k);
    } else if a.col != 1 || !transpose(isa, source, a.row, target, count, (count, k)) {
        for i in 0..count {
            for p in 0..k {
                target[p * count + i] = source[i * a.row + p * a.col];
            }
        }
    }
}

/// Copies columns of `b`, for a range of `k`, to a panel of `nr` columns, padded by zeros.
pub(super) fn pack_panel(
    isa: Isa,
    b: Mat<'_>,
    depth: Range<usize>,
    cols: Range<usize>,
    nr: usize,
    target: &mut [f32],
) {
    let (width, k) = (cols.len(), depth.len());
    let source = &b.data[(depth.start * b.row + cols.start * b.col).min(b.data.len())..];
    if b.col == 1 && width == nr {
        return copy_rows(source, b.row, target, nr, k);
    }
    if width < nr {
        target[..k * nr].fill(0.0);
    }
    if b.col == 1 {
        for (p, row) in target.chunks_exact_mut(nr).take(k).enumerate() {
            row[..width].copy_from_slice(&source[p * b.row..][..width]);
        }
    } else if b.row != 1 || !transpose(isa, source, b.col, target, nr, (width, k)) {
        for j in 0..width {
            for p in 0..k {
                target[p * nr + j] = source[j * b.col + p * b.row];
            }
        }
    }
}
