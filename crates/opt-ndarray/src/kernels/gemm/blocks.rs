//! Products by register tiles: in which order, on which threads, and which operands are packed.
//!
//! For a range of `k` (a *depth*), a block of row tiles of the left operand meets one column panel
//! of the right operand after the other: the block stays in the second-level cache, the panel in
//! the first level or little beyond. Operands that lie badly for that are packed on the way.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::cell::RefCell;
use std::ops::Range;

use opt_core::tensor::Buffer;

use super::pack::{MR, PackedLhsKind, PackedRhsKind, RowTiles, pack_panel, pack_rows, room};
use super::{Base, Finish, Gemm, Lhs, Mat, Rhs};
use crate::kernels::tile::{Bias, Isa, Tile, panel, tile, wide};
use crate::kernels::{SharedMut, elementwise, parallel};

/// Bytes of the left operand that are used with one panel after the other.
const LEFT: usize = 768 << 10;

/// About the deepest range of `k`: shorter ones read and write the output more often for little.
const DEPTH: usize = 512;

/// Row tiles from which on it pays to pack the panel that they read.
const PACK_RIGHT: usize = 4;

/// Panels from which on it pays to pack the rows that they meet, if those lie side by side, and
/// if not.
const PACK_LEFT: (usize, usize) = (12, 2);

/// Multiply-adds from which a second thread is worth its start.
const PARALLEL: usize = 1 << 20;

/// Multiply-adds that are worth a task of their own.
const TASK: usize = 1 << 21;

/// Rows below which a product waits for its right operand: it takes as long as one of so many.
const FEW: usize = 8;

/// Entries of the largest tile.
const ENTRIES: usize = 384;

#[repr(align(64))]
struct Entries([f32; ENTRIES]);

/// How the range of `k` is cut: as equally as can be, into a multiple of eight each.
fn depths(k: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    // A short rest is not worth reading and writing the output once more.
    let count = k.div_ceil(DEPTH + DEPTH / 4).max(1);
    let size = k.div_ceil(count).next_multiple_of(8);
    let count = k.div_ceil(size.max(1)).max(1);
    (0..count).map(move |i| i * size..k.min((i + 1) * size))
}

/// Column panels: their width, and how many there are.
#[derive(Clone, Copy)]
struct Panels {
    width: usize,
    count: usize,
}

impl Gemm<'_> {
    pub(super) fn tiles(&self, isa: Isa, finish: Finish<'_>, out: &mut [f32], out_row: usize) {
        let Gemm { m, n, k, .. } = *self;
        let mut width = panel(isa, n);
        match self.a {
            Lhs::Plain(_) => {}
            Lhs::Packed(a) => assert!(
                matches!(&a.0, PackedLhsKind::Tiles(a) if a.typed::<f32>().len() == m * k),
                "the left operand was packed for other sizes"
            ),
        }
        match self.b {
            Rhs::Plain(b) => {
                let most = wide(isa, m.max(1)) * isa.lanes();
                if b.col == 1 && n >= most {
                    width = most.max(width);
                }
            }
            Rhs::Packed(b) => {
                let len = n.div_ceil(width) * width * k;
                assert!(
                    matches!(&b.0, PackedRhsKind::Tiles(b) if b.typed::<f32>().len() == len),
                    "the right operand was packed for other sizes"
                );
            }
        }
        let panels = Panels {
            width,
            count: n.div_ceil(width),
        };
        let out = SharedMut::new(out);
        let row_tiles = RowTiles::new(m);
        let tiles = row_tiles.count;
        let (over_tiles, over_panels) = self.split(tiles, panels);
        parallel(self.threads, over_tiles * over_panels, |task| {
            let part = |i: usize, parts: usize, of: usize| i * of / parts..(i + 1) * of / parts;
            let block = Block {
                gemm: self,
                isa,
                finish,
                width,
                out: &out,
                out_row,
                row_tiles,
                tiles: part(task % over_tiles, over_tiles, tiles),
                panels: part(task / over_tiles, over_panels, panels.count),
            };
            block.run();
        });
    }

    /// Into how many ranges of row tiles and of panels the work is cut.
    fn split(&self, tiles: usize, panels: Panels) -> (usize, usize) {
        let Gemm { m, n, k, .. } = *self;
        let work = m.max(FEW).saturating_mul(n).saturating_mul(k);
        if self.threads <= 1 || work < PARALLEL {
            return (1, 1);
        }
        // A few tasks a thread, so that a thread that starts late is no harm.
        let tasks = (work / TASK).clamp(self.threads, 4 * self.threads);
        // The largest task decides how long it takes; each packs what it needs of its own.
        let cost = |&(over_tiles, over_panels): &(usize, usize)| {
            let rounds = (over_tiles * over_panels).div_ceil(self.threads);
            let (rows, columns) = (
                tiles.div_ceil(over_tiles) * m.div_ceil(tiles),
                panels.count.div_ceil(over_panels) * panels.width,
            );
            let packed = |copied: bool, size: usize| if copied { 16 * size } else { 2 * size };
            let left = packed(!matches!(self.a, Lhs::Packed(_)), rows);
            let right = packed(!matches!(self.b, Rhs::Packed(_)), columns);
            rounds * (rows * columns + left + right)
        };
        (1..=tasks.min(panels.count))
            .map(|over_panels| (tasks.div_ceil(over_panels).min(tiles), over_panels))
            .min_by_key(cost)
            .unwrap_or((1, 1))
    }
}

/// Row tiles and column panels that nobody else writes meanwhile.
struct Block<'a> {
    gemm: &'a Gemm<'a>,
    isa: Isa,
    finish: Finish<'a>,
    width: usize,
    out: &'a SharedMut<'a, f32>,
    out_row: usize,
    row_tiles: RowTiles,
    tiles: Range<usize>,
    panels: Range<usize>,
}

thread_local! {
    static ROWS: RefCell<Option<Buffer>> = const { RefCell::new(None) };
    static PANEL: RefCell<Option<Buffer>> = const { RefCell::new(None) };
}

/// Where the entries of row tiles are.
#[derive(Clone, Copy)]
enum Left<'a> {
    Plain(Mat<'a>),
    /// Tile after tile from the first row on, a number of entries for each row, of which the
    /// range starts at the last number.
    Tiles(&'a [f32], usize, usize, usize),
}

impl Block<'_> {
    fn run(&self) {
        let k = self.gemm.k;
        for depth in depths(k) {
            let bytes = MR * depth.len() * size_of::<f32>();
            let size = (LEFT / bytes.max(1)).max(4);
            for start in self.tiles.clone().step_by(size) {
                let tiles = start..self.tiles.end.min(start + size);
                self.rows(depth.clone(), tiles);
            }
        }
    }

    /// Row tiles that stay in the cache.
    fn rows(&self, depth: Range<usize>, tiles: Range<usize>) {
        let k = self.gemm.k;
        let a = match self.gemm.a {
            Lhs::Packed(a) => match &a.0 {
                PackedLhsKind::Tiles(a) => {
                    return self.columns(&depth, &tiles, Left::Tiles(a.typed(), 0, k, depth.start));
                }
                PackedLhsKind::Rten(_) => unreachable!("checked by `tiles`"),
            },
            Lhs::Plain(a) => a,
        };
        let (beside, apart) = PACK_LEFT;
        let from = if a.col == 1 { beside } else { apart };
        if self.panels.len() < from {
            return self.columns(&depth, &tiles, Left::Plain(a));
        }
        ROWS.with_borrow_mut(|buffer| {
            let first = self.row_tiles.rows(tiles.start).start;
            let count = self.row_tiles.rows(tiles.end - 1).end - first;
            let packed = room(buffer, count * depth.len());
            let mut rest = &mut *packed;
            for t in tiles.clone() {
                let rows = self.row_tiles.rows(t);
                let (target, next) = rest.split_at_mut(rows.len() * depth.len());
                pack_rows(self.isa, a, rows, depth.clone(), target);
                rest = next;
            }
            self.columns(&depth, &tiles, Left::Tiles(packed, first, depth.len(), 0));
        });
    }

    /// Panel after panel.
    fn columns(&self, depth: &Range<usize>, tiles: &Range<usize>, a: Left<'_>) {
        let Gemm { n, k, .. } = *self.gemm;
        for j in self.panels.clone() {
            let cols = j * self.width..n.min((j + 1) * self.width);
            match self.gemm.b {
                Rhs::Packed(b) => match &b.0 {
                    PackedRhsKind::Tiles(b) => {
                        let start = (j * k + depth.start) * self.width;
                        let b = &b.typed::<f32>()[start..];
                        self.panel(depth, tiles, a, (b.as_ptr(), self.width), cols);
                    }
                    PackedRhsKind::Rten(_) => unreachable!("checked by `tiles`"),
                },
                Rhs::Plain(b) if cols.len() == self.width => {
                    self.plain(depth, tiles, a, b, cols);
                }
                Rhs::Plain(b) => {
                    let width = panel(self.isa, n).min(self.width);
                    for start in cols.clone().step_by(width) {
                        let cols = start..cols.end.min(start + width);
                        self.plain(depth, tiles, a, b, cols);
                    }
                }
            }
        }
    }

    /// A panel that is read in place, or packed first.
    fn plain(
        &self,
        depth: &Range<usize>,
        tiles: &Range<usize>,
        a: Left<'_>,
        b: Mat<'_>,
        cols: Range<usize>,
    ) {
        let lanes = self.isa.lanes();
        let whole = cols.len().is_multiple_of(lanes);
        // Whole vectors that lie in memory as a tile reads them. Rows apart, each read by many
        // tiles, are cheaper to pack first.
        if b.col == 1 && whole && (tiles.len() < PACK_RIGHT || b.row == cols.len()) {
            let at = depth.start * b.row + cols.start;
            let b = (b.data.as_ptr().wrapping_add(at), b.row);
            return self.panel(depth, tiles, a, b, cols);
        }
        PANEL.with_borrow_mut(|buffer| {
            let width = cols.len().next_multiple_of(lanes);
            let packed = room(buffer, width * depth.len());
            pack_panel(self.isa, b, depth.clone(), cols.clone(), width, packed);
            self.panel(depth, tiles, a, (packed.as_ptr(), width), cols);
        });
    }

    /// All tiles of a panel whose rows lie at a pointer, a distance apart.
    fn panel(
        &self,
        depth: &Range<usize>,
        tiles: &Range<usize>,
        a: Left<'_>,
        (b, b_row): (*const f32, usize),
        cols: Range<usize>,
    ) {
        let Gemm { n, k, .. } = *self.gemm;
        let vectors = cols.len().div_ceil(self.isa.lanes());
        let (first, last) = (depth.start == 0, depth.end == k);
        for t in tiles.clone() {
            let rows = self.row_tiles.rows(t);
            let (a, a_row, a_col) = match a {
                Left::Plain(a) => {
                    let at = rows.start * a.row + depth.start * a.col;
                    (a.data.as_ptr().wrapping_add(at), a.row, a.col)
                }
                Left::Tiles(a, row, each, skipped) => {
                    let at = (rows.start - row) * each + skipped * rows.len();
                    (a[at..].as_ptr(), 1, rows.len())
                }
            };
            let out = self.out.at(rows.start * self.out_row + cols.start);
            let (mut base, mut bias) = (None, Bias::None);
            if first {
                match self.gemm.base {
                    Base::Zero => {}
                    Base::Out => base = Some((out.cast_const(), self.out_row)),
                    Base::Row(row) => bias = Bias::Row(row[cols.start..].as_ptr()),
                    Base::Column(column) => bias = Bias::Column(column[rows.start..].as_ptr()),
                }
                if let Some(residual) = self.finish.residual {
                    base = Some((residual[rows.start * n + cols.start..].as_ptr(), n));
                }
            } else {
                base = Some((out.cast_const(), self.out_row));
            }
            let mut t = Tile {
                k: depth.len(),
                a,
                a_row,
                a_col,
                b,
                b_row,
                out,
                out_row: self.out_row,
                cols: cols.len(),
                base,
                bias,
            };
            if !last || self.finish.functions.is_empty() {
                // SAFETY: `run` has checked that operands, bias and output cover their sizes; a
                // panel has whole vectors to read; no other task has this tile.
                unsafe { tile(self.isa, rows.len(), vectors, t) };
                continue;
            }
            // By way of a tile of its own, to which functions apply in one go.
            let mut sums = Entries([0.0; ENTRIES]);
            let width = vectors * self.isa.lanes();
            let sums = &mut sums.0[..rows.len() * width];
            (t.out, t.out_row) = (sums.as_mut_ptr(), width);
            // SAFETY: as above.
            unsafe { tile(self.isa, rows.len(), vectors, t) };
            elementwise::apply(self.finish.functions, sums);
            for (r, sums) in rows.zip(sums.chunks_exact(width)) {
                let start = r * self.out_row + cols.start;
                // SAFETY: no other task has this tile.
                let out = unsafe { self.out.part(start..start + cols.len()) };
                out.copy_from_slice(&sums[..cols.len()]);
            }
        }
    }
}
