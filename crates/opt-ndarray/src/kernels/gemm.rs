//! Matrix products of two matrices: `out = a * b (+ out) (+ bias)`.
//!
//! Where there are vector instructions that this file has register tiles for (AVX-512, AVX2),
//! those tiles do it: they read strided operands as they are, cost nothing to start, and measured
//! 60 to 120 GFLOP/s on sizes where `rten-gemm` reached 20 to 70, and the same beyond. Elsewhere
//! (NEON, WebAssembly) all but the smallest products go to `rten-gemm`. Which of the two is a
//! function of the processor and the sizes, and both split the work over outputs only, so that a
//! result does not depend on the number of threads.

mod blocks;
mod few;
mod pack;
mod rten;

use opt_core::ops::UnaryOp;

pub(in crate::kernels) use pack::transpose;
pub(crate) use pack::{PackedLhs, PackedRhs};

use super::elementwise;
use super::tile::Isa;

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

/// What else happens to a product before it is written.
#[derive(Clone, Copy, Default)]
pub(crate) struct Finish<'a> {
    /// `[m, n]` entries that are added too, the rows side by side; not with [`Base::Out`].
    pub(crate) residual: Option<&'a [f32]>,
    /// Functions that are applied at last, in order.
    pub(crate) functions: &'a [UnaryOp],
}

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

impl Gemm<'_> {
    /// Computes the product into `out`, whose rows are `out_row` apart.
    ///
    /// # Panics
    /// If an operand or `out` is too short for its sizes, or a packed operand was packed for
    /// other sizes: errors of the kernel that calls it.
    pub(crate) fn run(&self, out: &mut [f32], out_row: usize) {
        self.run_with(Finish::default(), out, out_row);
    }

    /// Computes the product and finishes it, in one pass over memory.
    ///
    /// # Panics
    /// As [`run`](Gemm::run); if there is a residual that has not `m * n` entries.
    pub(crate) fn run_with(&self, finish: Finish<'_>, out: &mut [f32], out_row: usize) {
        self.by(route(self.m, self.n, self.k), finish, out, out_row);
    }

    fn by(&self, route: Route, finish: Finish<'_>, out: &mut [f32], out_row: usize) {
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
        if let Some(residual) = finish.residual {
            assert_eq!(residual.len(), m * n, "a residual entry for each output");
            assert!(!matches!(self.base, Base::Out), "one matrix to add to");
        }
        if let Lhs::Plain(a) = self.a {
            assert!(a.covers(m, k), "the left operand is too short");
        }
        if let Rhs::Plain(b) = self.b {
            assert!(b.covers(k, n), "the right operand is too short");
        }
        match route {
            Route::Tiles(isa) => {
                if !self.few(isa, finish, out, out_row) {
                    self.tiles(isa, finish, out, out_row);
                }
            }
            Route::Rten => {
                self.rten(out, out_row);
                finish.pass(m, n, out, out_row);
            }
        }
    }
}

impl Finish<'_> {
    /// Finishes a product `[m, n]` that lies in `out`.
    fn pass(&self, m: usize, n: usize, out: &mut [f32], out_row: usize) {
        for (i, out) in out.chunks_mut(out_row).enumerate().take(m) {
            let out = &mut out[..n];
            if let Some(residual) = self.residual {
                for (out, &x) in out.iter_mut().zip(&residual[i * n..][..n]) {
                    *out += x;
                }
            }
            elementwise::apply(self.functions, out);
        }
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
mod tests;
