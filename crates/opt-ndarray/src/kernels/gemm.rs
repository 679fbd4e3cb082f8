//! Matrix products of two matrices: `out = a * b (+ out) (+ bias)`.
//!
//! Where there are vector instructions that this file has register tiles for (AVX-512, AVX2),
//! those tiles do it: they read strided operands as they are, cost nothing to start, and measured
//! 60 to 120 GFLOP/s on sizes where `rten-gemm` reached 20 to 70, and the same beyond. Elsewhere
//! (NEON, WebAssembly) all but the smallest products go to `rten-gemm`. Which of the two is a
//! function of the processor and the sizes, and both split the work over outputs only, so that a
//! result does not depend on the number of threads.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

use rten_gemm::{
    BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedAMatrix, PackedBMatrix,
};
use rten_tensor::NdTensorView;

use super::tile::{Init, Isa, Tile, panel, tile};
use super::{SharedMut, parallel};

/// A matrix operand: entry `(i, j)` is `data[i * row + j * col]`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T = f32> {
    pub(crate) data: &'a [T],
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A row-major matrix without gaps.
    pub(crate) fn new(data: &'a [T], cols: usize) -> Mat<'a, T> {
        Mat {
            data,
            row: cols,
            col: 1,
        }
    }

    /// The same memory, read with rows and columns swapped.
    pub(crate) fn transposed(self) -> Mat<'a, T> {
        Mat {
            data: self.data,
            row: self.col,
            col: self.row,
        }
    }

    fn covers(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// The left operand, `[m, k]`.
#[derive(Clone, Copy)]
pub(crate) enum Lhs<'a> {
    /// In memory as it is.
    Plain(Mat<'a>),
    /// Prepacked by [`PackedLhs::new`].
    Packed(&'a PackedLhs),
}

/// The right operand, `[k, n]`.
#[derive(Clone, Copy)]
pub(crate) enum Rhs<'a> {
    /// In memory as it is.
    Plain(Mat<'a>),
    /// Prepacked by [`PackedRhs::new`].
    Packed(&'a PackedRhs),
}

/// What the product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Base<'a> {
    /// Nothing: what `out` held is overwritten.
    Zero,
    /// What `out` holds.
    Out,
    /// Entry `j` to column `j`; `n` entries.
    Row(&'a [f32]),
    /// Entry `i` to row `i`; `m` entries.
    Column(&'a [f32]),
}

/// A product in `f32`: `out[m, n] = a[m, k] * b[k, n] + base`.
#[derive(Clone, Copy)]
pub(crate) struct Gemm<'a> {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: Lhs<'a>,
    pub(crate) b: Rhs<'a>,
    pub(crate) base: Base<'a>,
    /// How many threads it may use.
    pub(crate) threads: usize,
}

/// Bytes of a page of memory.
const PAGE: usize = 4096;

/// Bytes over which the rows of a panel may be spread: what the processor has addresses ready for.
const SPREAD: usize = 1 << 20;

/// Bytes of the left operand that are used with one panel after the other.
const LEFT: usize = 512 << 10;

/// Who computes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Tiles(Isa),
    Rten,
}

fn route(m: usize, n: usize, k: usize) -> Route {
    let isa = Isa::get();
    if isa != Isa::Portable || m.saturating_mul(n).saturating_mul(k) <= 1 << 15 {
        Route::Tiles(isa)
    } else {
        Route::Rten
    }
}

/// Whether a product runs on the own tiles, several of which can run at once on one thread each.
pub(crate) fn on_tiles(m: usize, n: usize, k: usize) -> bool {
    route(m, n, k) != Route::Rten
}

/// A left operand that is packed once and used many times, for products of one size.
pub(crate) struct PackedLhs(PackedLhsKind);

enum PackedLhsKind {
    /// Row tile after row tile; within one, the rows' entries side by side for each `k`.
    Tiles(Vec<f32>),
    Rten(PackedAMatrix<f32>),
}

/// A right operand that is packed once and used many times, for products of one size.
pub(crate) struct PackedRhs(PackedRhsKind);

enum PackedRhsKind {
    /// Column panel after column panel; within one, rows of `panel(n)` entries, padded by zeros.
    Tiles(Vec<f32>),
    Rten(PackedBMatrix<f32>),
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

    fn by(route: Route, a: Mat<'_>, m: usize, k: usize) -> PackedLhs {
        assert!(a.covers(m, k), "the left operand is too short");
        PackedLhs(match route {
            Route::Tiles(_) => {
                let mut out = Vec::with_capacity(m * k);
                for rows in row_tiles(m) {
                    for p in 0..k {
                        out.extend(rows.clone().map(|i| a.data[i * a.row + p * a.col]));
                    }
                }
                PackedLhsKind::Tiles(out)
            }
            Route::Rten => PackedLhsKind::Rten(rten().prepack_a(view(a, m, k))),
        })
    }
}

impl PackedRhs {
    /// Packs `b[k, n]` for products with `[m, k]`.
    pub(crate) fn new(b: Mat<'_>, m: usize, n: usize, k: usize) -> PackedRhs {
        PackedRhs::by(route(m, n, k), b, n, k)
    }

    fn by(route: Route, b: Mat<'_>, n: usize, k: usize) -> PackedRhs {
        assert!(b.covers(k, n), "the right operand is too short");
        PackedRhs(match route {
            Route::Tiles(isa) => {
                let nr = panel(isa, n);
                let mut out = vec![0f32; n.div_ceil(nr) * nr * k];
                for (i, target) in out.chunks_exact_mut((nr * k).max(1)).enumerate() {
                    pack_panel(isa, b, k, i * nr..n.min((i + 1) * nr), nr, target);
                }
                PackedRhsKind::Tiles(out)
            }
            Route::Rten => PackedRhsKind::Rten(rten().prepack_b(view(b, k, n))),
        })
    }
}

/// An executor holds no state but which instructions the processor has.
fn rten() -> GemmExecutor<f32> {
    GemmExecutor::new()
}

fn view(a: Mat<'_>, rows: usize, cols: usize) -> NdTensorView<'_, f32, 2> {
    NdTensorView::from_slice_with_strides([rows, cols], a.data, [a.row, a.col])
        .expect("the operand covers its shape")
}

/// Copies the columns `cols` of `b` into a panel of `nr` columns, padded by zeros.
fn pack_panel(isa: Isa, b: Mat<'_>, k: usize, cols: Range<usize>, nr: usize, target: &mut [f32]) {
    let width = cols.len();
    if b.col == 1 {
        for (p, row) in target.chunks_exact_mut(nr).take(k).enumerate() {
            row[..width].copy_from_slice(&b.data[p * b.row + cols.start..][..width]);
            row[width..].fill(0.0);
        }
        return;
    }
    if width < nr {
        target[..k * nr].fill(0.0);
    }
    // A transposed operand: whole squares through registers, the rest one by one.
    let (squares, depth) = if b.row == 1 && isa.lanes() >= 8 {
        (width / 8 * 8, k / 8 * 8)
    } else {
        (0, 0)
    };
    #[cfg(target_arch = "x86_64")]
    for j in (0..squares).step_by(8) {
        for p in (0..depth).step_by(8) {
            let source = &b.data[(cols.start + j) * b.col + p..];
            // SAFETY: the processor has vectors of eight lanes.
            unsafe { super::tile::x86::transpose8(source, b.col, &mut target[p * nr + j..], nr) };
        }
    }
    for (j, col) in cols.enumerate() {
        let source = &b.data[col * b.col..];
        for p in if j < squares { depth } else { 0 }..k {
            target[p * nr + j] = source[p * b.row];
        }
    }
}

/// The most rows of a register tile.
const MR: usize = 12;

/// The tiles that `m` rows are cut into: as equal as can be, at most [`MR`] rows each.
fn row_tiles(m: usize) -> impl ExactSizeIterator<Item = Range<usize>> + Clone {
    let tiles = m.div_ceil(MR);
    (0..tiles).map(move |t| row_tile(m, t))
}

fn row_tile(m: usize, t: usize) -> Range<usize> {
    let tiles = m.div_ceil(MR);
    let (size, extra) = (m / tiles, m % tiles);
    let start = t * size + t.min(extra);
    start..start + size + usize::from(t < extra)
}

/// Multiply-adds from which a second thread is worth its start.
const PARALLEL: usize = 1 << 19;

impl Gemm<'_> {
    /// Computes the product into `out`, whose rows are `out_row` apart.
    ///
    /// # Panics
    /// If an operand or `out` is too short for its sizes, or a packed operand was packed for
    /// other sizes: errors of the kernel that calls it.
    pub(crate) fn run(&self, out: &mut [f32], out_row: usize) {
        self.by(route(self.m, self.n, self.k), out, out_row);
    }

    fn by(&self, route: Route, out: &mut [f32], out_row: usize) {
        let Gemm { m, n, k, .. } = *self;
        if m == 0 || n == 0 {
            return;
        }
        assert!(
            out_row >= n && (m - 1) * out_row + n <= out.len(),
            "the output is too short"
        );
        match self.base {
            Base::Row(bias) => assert_eq!(bias.len(), n, "a bias entry a column"),
            Base::Column(bias) => assert_eq!(bias.len(), m, "a bias entry a row"),
            Base::Zero | Base::Out => {}
        }
        if let Lhs::Plain(a) = self.a {
            assert!(a.covers(m, k), "the left operand is too short");
        }
        if let Rhs::Plain(b) = self.b {
            assert!(b.covers(k, n), "the right operand is too short");
        }
        match route {
            Route::Tiles(isa) => self.tiles(isa, out, out_row),
            Route::Rten => self.rten_strided(out, out_row),
        }
    }

    fn tiles(&self, isa: Isa, out: &mut [f32], out_row: usize) {
        let Gemm { m, n, k, .. } = *self;
        let nr = panel(isa, n);
        let panels = n.div_ceil(nr);
        match self.a {
            Lhs::Packed(PackedLhs(PackedLhsKind::Tiles(a))) => assert_eq!(a.len(), m * k),
            Lhs::Packed(_) => panic!("the left operand was packed for other sizes"),
            Lhs::Plain(_) => {}
        }
        match self.b {
            Rhs::Packed(PackedRhs(PackedRhsKind::Tiles(b))) => assert_eq!(b.len(), panels * nr * k),
            Rhs::Packed(_) => panic!("the right operand was packed for other sizes"),
            Rhs::Plain(_) => {}
        }
        let out = SharedMut::new(out);
        let tiles = m.div_ceil(MR);
        if self.threads <= 1 || m * n * k < PARALLEL || panels * tiles == 1 {
            return self.blocks(isa, &out, out_row, 0..tiles, 0..panels);
        }
        // A few tasks a thread, so that a thread that starts late is no harm; cut over panels
        // first, since each task packs the panels that it needs.
        let tasks = self.threads * 4;
        let over_panels = panels.min(tasks);
        let over_tiles = tasks.div_ceil(over_panels).min(tiles);
        parallel(self.threads, over_panels * over_tiles, |task| {
            let part = |i: usize, parts: usize, of: usize| i * of / parts..(i + 1) * of / parts;
            let tile_range = part(task % over_tiles, over_tiles, tiles);
            let panel_range = part(task / over_tiles, over_panels, panels);
            self.blocks(isa, &out, out_row, tile_range, panel_range);
        });
    }

    /// Computes the given row tiles and column panels, some tiles at a time: those whose rows of
    /// the left operand stay in the second-level cache while the panels pass by.
    fn blocks(
        &self,
        isa: Isa,
        out: &SharedMut<'_, f32>,
        out_row: usize,
        tiles: Range<usize>,
        panels: Range<usize>,
    ) {
        let size = (LEFT / (MR * self.k * size_of::<f32>()).max(1)).max(4);
        for start in tiles.clone().step_by(size) {
            let part = start..tiles.end.min(start + size);
            self.block(isa, out, out_row, part, panels.clone());
        }
    }

    /// Computes the given row tiles and column panels, which nobody else writes meanwhile.
    fn block(
        &self,
        isa: Isa,
        out: &SharedMut<'_, f32>,
        out_row: usize,
        tiles: Range<usize>,
        panels: Range<usize>,
    ) {
        thread_local!(static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
        let Gemm { m, n, k, .. } = *self;
        let (lanes, nr) = (isa.lanes(), panel(isa, n));
        for j in panels {
            let cols = j * nr..n.min((j + 1) * nr);
            let run = |b: *const f32, b_row: usize| {
                for i in tiles.clone() {
                    let rows = row_tile(m, i);
                    let (a, a_row, a_col) = match self.a {
                        Lhs::Plain(a) => (
                            a.data.as_ptr().wrapping_add(rows.start * a.row),
                            a.row,
                            a.col,
                        ),
                        Lhs::Packed(PackedLhs(PackedLhsKind::Tiles(a))) => {
                            (a[rows.start * k..].as_ptr(), 1, rows.len())
                        }
                        Lhs::Packed(_) => unreachable!("checked by `tiles`"),
                    };
                    let init = match self.base {
                        Base::Zero => Init::Zero,
                        Base::Out => Init::Out,
                        Base::Row(bias) => Init::Row(bias[cols.start..].as_ptr()),
                        Base::Column(bias) => Init::Column(bias[rows.start..].as_ptr()),
                    };
                    let t = Tile {
                        k,
                        a,
                        a_row,
                        a_col,
                        b,
                        b_row,
                        out: out.at(rows.start * out_row + cols.start),
                        out_row,
                        cols: cols.len(),
                        init,
                    };
                    // SAFETY: `run` has checked that operands, bias and output cover their
                    // sizes; a panel has `nr` readable columns; no other task has this tile.
                    unsafe { tile(isa, rows.len(), cols.len().div_ceil(lanes), t) };
                }
            };
            match self.b {
                Rhs::Packed(PackedRhs(PackedRhsKind::Tiles(b))) => {
                    run(b[j * nr * k..].as_ptr(), nr);
                }
                Rhs::Packed(_) => unreachable!("checked by `tiles`"),
                // Rows of a panel that lie in memory as a tile reads them. Rows far apart, each
                // read by many tiles, are cheaper to pack first.
                Rhs::Plain(b)
                    if b.col == 1
                        && cols.len() == nr
                        && (tiles.len() < 4
                            || b.row * size_of::<f32>() < PAGE
                                && b.row * k * size_of::<f32>() < SPREAD) =>
                {
                    run(b.data.as_ptr().wrapping_add(cols.start), b.row);
                }
                Rhs::Plain(b) => PANEL.with_borrow_mut(|buffer| {
                    if buffer.len() < nr * k {
                        buffer.resize(nr * k, 0.0);
                    }
                    pack_panel(isa, b, k, cols.clone(), nr, buffer);
                    run(buffer.as_ptr(), nr);
                }),
            }
        }
    }

    fn rten_strided(&self, out: &mut [f32], out_row: usize) {
        let Gemm { m, n, k, .. } = *self;
        let a = match self.a {
            Lhs::Plain(a) => GemmInputA::Unpacked(view(a, m, k)),
            Lhs::Packed(PackedLhs(PackedLhsKind::Rten(a))) => GemmInputA::Packed(a),
            Lhs::Packed(_) => panic!("the left operand was packed for other sizes"),
        };
        let b = match self.b {
            Rhs::Plain(b) => GemmInputB::Unpacked(view(b, k, n)),
            Rhs::Packed(PackedRhs(PackedRhsKind::Rten(b))) => GemmInputB::Packed(b),
            Rhs::Packed(_) => panic!("the right operand was packed for other sizes"),
        };
        if out_row == n {
            return self.rten(a, b, &mut out[..m * n]);
        }
        thread_local!(static DENSE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
        DENSE.with_borrow_mut(|dense| {
            dense.resize(m * n, 0.0);
            if matches!(self.base, Base::Out) {
                for (to, from) in dense.chunks_exact_mut(n).zip(out.chunks(out_row)) {
                    to.copy_from_slice(&from[..n]);
                }
            }
            self.rten(a, b, dense);
            for (from, to) in dense.chunks_exact(n).zip(out.chunks_mut(out_row)) {
                to[..n].copy_from_slice(from);
            }
        });
    }

    fn rten(&self, a: GemmInputA<'_, f32>, b: GemmInputB<'_, f32>, out: &mut [f32]) {
        let bias = match self.base {
            Base::Row(bias) => Some(BiasVector::Row(bias)),
            Base::Column(bias) => Some(BiasVector::Column(bias)),
            Base::Zero | Base::Out => None,
        };
        let options = GemmOptions {
            beta: if matches!(self.base, Base::Out) {
                1.0
            } else {
                0.0
            },
            bias,
            ..GemmOptions::default()
        };
        // It splits its work over the pool that it is called in: with one thread, a pool of one,
        // entered only for products that take far longer than that.
        let result = if self.threads <= 1 {
            one_thread(|| rten().gemm(out, a, b, options))
        } else {
            rten().gemm(out, a, b, options)
        };
        result.expect("sizes were checked and operands packed for them");
    }
}

fn one_thread<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| rayon::ThreadPoolBuilder::new().num_threads(1).build().ok());
    match pool {
        Some(pool) => pool.install(f),
        // Without a thread to be had the caller's pool has to do.
        None => f(),
    }
}

/// Numbers of the plain product.
pub(crate) trait Number:
    Copy + Default + Send + Sync + std::ops::Add<Output = Self> + std::ops::Mul<Output = Self>
{
}

impl Number for f32 {}
impl Number for f64 {}

/// A product in any number type: `out[m, n] (+)= a[m, k] * b[k, n]`, `out`'s rows side by side.
pub(crate) fn plain<T: Number>(
    m: usize,
    n: usize,
    k: usize,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    accumulate: bool,
    out: &mut [T],
) {
    if !accumulate {
        out[..m * n].fill(T::default());
    }
    if n == 0 {
        return;
    }
    for (i, row) in out[..m * n].chunks_exact_mut(n).enumerate() {
        for p in 0..k {
            let x = a.data[i * a.row + p * a.col];
            if b.col == 1 {
                for (sum, &y) in row.iter_mut().zip(&b.data[p * b.row..][..n]) {
                    *sum = *sum + x * y;
                }
            } else {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = *sum + x * b.data[p * b.row + j * b.col];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(n: usize, seed: u64) -> Vec<f32> {
        let stream = opt_core::random::Philox::new(seed);
        (0..n)
            .map(|i| stream.uniform(0, i as u64) as f32 - 0.5)
            .collect()
    }

    /// The instruction sets that this processor has.
    fn isas() -> Vec<Isa> {
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if Isa::get() != Isa::Portable {
                all.push(Isa::Avx2);
            }
            if Isa::get() == Isa::Avx512 {
                all.push(Isa::Avx512);
            }
        }
        all
    }

    /// The product by the plain loops in `f64`.
    fn reference(m: usize, n: usize, k: usize, a: Mat<'_>, b: Mat<'_>) -> Vec<f64> {
        let mut out = vec![0f64; m * n];
        for i in 0..m {
            for j in 0..n {
                out[i * n + j] = (0..k)
                    .map(|p| {
                        f64::from(a.data[i * a.row + p * a.col])
                            * f64::from(b.data[p * b.row + j * b.col])
                    })
                    .sum();
            }
        }
        out
    }

    fn check(route: Route, m: usize, n: usize, k: usize, trans_a: bool, trans_b: bool) {
        let (a, b, bias) = (values(m * k, 1), values(k * n, 2), values(m.max(n), 3));
        let a = if trans_a {
            Mat::new(&a, m).transposed()
        } else {
            Mat::new(&a, k)
        };
        let b = if trans_b {
            Mat::new(&b, k).transposed()
        } else {
            Mat::new(&b, n)
        };
        let expected = reference(m, n, k, a, b);
        let (pa, pb) = (PackedLhs::by(route, a, m, k), PackedRhs::by(route, b, n, k));
        let row = n + 3;
        for threads in [1, 3] {
            for packed in [false, true] {
                for base in [
                    Base::Zero,
                    Base::Out,
                    Base::Row(&bias[..n]),
                    Base::Column(&bias[..m]),
                ] {
                    let mut out = vec![0.25f32; m * row];
                    let gemm = Gemm {
                        m,
                        n,
                        k,
                        a: if packed {
                            Lhs::Packed(&pa)
                        } else {
                            Lhs::Plain(a)
                        },
                        b: if packed {
                            Rhs::Packed(&pb)
                        } else {
                            Rhs::Plain(b)
                        },
                        base,
                        threads,
                    };
                    gemm.by(route, &mut out, row);
                    for i in 0..m {
                        for j in 0..row {
                            let found = out[i * row + j];
                            if j >= n {
                                assert_eq!(found, 0.25, "written beyond the row");
                                continue;
                            }
                            let plus = match base {
                                Base::Zero => 0.0,
                                Base::Out => 0.25,
                                Base::Row(b) => b[j],
                                Base::Column(b) => b[i],
                            };
                            let want = expected[i * n + j] as f32 + plus;
                            assert!(
                                (found - want).abs() <= 1e-5 * (1.0 + (k as f32).sqrt()),
                                "{m}x{n}x{k} ({i}, {j}): {found} against {want}"
                            );
                        }
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn tiles_agree_with_the_definition(
            m in 0usize..40, n in 0usize..70, k in 0usize..40, ta: bool, tb: bool
        ) {
            for isa in isas() {
                check(Route::Tiles(isa), m, n, k, ta, tb);
            }
            // Never chosen for products without terms, which it cannot pack.
            if m * n * k > 0 {
                check(Route::Rten, m, n, k, ta, tb);
            }
        }
    }

    #[test]
    fn large_products_agree_with_the_definition() {
        for route in [Route::Tiles(Isa::get()), Route::Rten] {
            check(route, 300, 401, 500, false, true);
            check(route, 61, 1100, 129, true, false);
        }
    }

    #[test]
    fn results_do_not_depend_on_threads() {
        let (m, n, k) = (97, 131, 65);
        let (a, b) = (values(m * k, 4), values(k * n, 5));
        let run = |threads| {
            let mut out = vec![0f32; m * n];
            let gemm = Gemm {
                m,
                n,
                k,
                a: Lhs::Plain(Mat::new(&a, k)),
                b: Rhs::Plain(Mat::new(&b, n)),
                base: Base::Zero,
                threads,
            };
            gemm.run(&mut out, n);
            out
        };
        let one = run(1);
        assert!((2..6).all(|threads| run(threads) == one));
    }
}
