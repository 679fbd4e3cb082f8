//! Products with few rows or columns, which wait for memory: each entry of the large operand is
//! read once, in the order in which it lies there.

#![expect(unsafe_code, reason = "each task has entries of its own")]

use std::cell::RefCell;

use opt_core::tensor::Buffer;

use super::pack::room;
use super::{Base, Finish, Gemm, Lhs, Mat, Rhs};
use crate::kernels::lanes::by_isa;
use crate::kernels::tile::Isa;
use crate::kernels::{SharedMut, elementwise, parallel};

/// The most rows or columns that are few.
const FEW: usize = 4;

/// The shortest sums that are worth it.
const SHORTEST: usize = 32;

/// Rows of the large operand that are read at once.
const SIDE_BY_SIDE: usize = 4;

/// Entries of the large operand from which a second thread is worth its start.
const PARALLEL: usize = 1 << 17;

/// Entries of the large operand that are worth a task of their own.
const TASK: usize = 1 << 16;

/// Entries of a sum that are added side by side.
const LANES: usize = 16;

by_isa! {
    /// `sums[i][j]`, the product of row `i` of `few` and row `j` of `many`, each of `k` entries,
    /// rows a distance apart; counts up to [`FEW`] and [`SIDE_BY_SIDE`].
    fn dots(k: usize, few: (&[f32], usize, usize), many: (&[f32], usize, usize)) -> [[f32; SIDE_BY_SIDE]; FEW] = |FMA| {
        let (count, few) = (few.2, (few.0, few.1));
        let (rows, many) = (many.2, (many.0, many.1));
        match count {
            1 => dots_by::<FMA, 1>(k, few, many, rows),
            2 => dots_by::<FMA, 2>(k, few, many, rows),
            3 => dots_by::<FMA, 3>(k, few, many, rows),
            _ => dots_by::<FMA, 4>(k, few, many, rows),
        }
    }
}

#[inline(always)]
fn dots_by<const FMA: bool, const X: usize>(
    k: usize,
    few: (&[f32], usize),
    many: (&[f32], usize),
    rows: usize,
) -> [[f32; SIDE_BY_SIDE]; FEW] {
    let mut sums = [[0f32; SIDE_BY_SIDE]; FEW];
    if rows == SIDE_BY_SIDE {
        dots_of::<FMA, X, SIDE_BY_SIDE>(k, few, many, 0, &mut sums);
    } else {
        for j in 0..rows {
            dots_of::<FMA, X, 1>(k, few, many, j, &mut sums);
        }
    }
    sums
}

#[inline(always)]
fn dots_of<const FMA: bool, const X: usize, const Y: usize>(
    k: usize,
    (few, few_row): (&[f32], usize),
    (many, many_row): (&[f32], usize),
    first: usize,
    sums: &mut [[f32; SIDE_BY_SIDE]; FEW],
) {
    let x: [&[f32]; X] = std::array::from_fn(|i| &few[i * few_row..][..k]);
    let y: [&[f32]; Y] = std::array::from_fn(|j| &many[(first + j) * many_row..][..k]);
    let add = |sum: f32, x: f32, y: f32| {
        if FMA { x.mul_add(y, sum) } else { sum + x * y }
    };
    let mut lanes = [[[0f32; LANES]; Y]; X];
    for p in 0..k / LANES {
        let run = p * LANES..(p + 1) * LANES;
        for i in 0..X {
            for j in 0..Y {
                let (x, y) = (&x[i][run.clone()], &y[j][run.clone()]);
                for l in 0..LANES {
                    lanes[i][j][l] = add(lanes[i][j][l], x[l], y[l]);
                }
            }
        }
    }
    for i in 0..X {
        for j in 0..Y {
            let mut lanes = lanes[i][j];
            for p in k / LANES * LANES..k {
                lanes[p % LANES] = add(lanes[p % LANES], x[i][p], y[j][p]);
            }
            sums[i][first + j] = lanes.iter().sum();
        }
    }
}

thread_local! {
    static SIDE: RefCell<Option<Buffer>> = const { RefCell::new(None) };
}

/// One operand of [`Gemm::dots`]: `rows` sums' worth of entries.
#[derive(Clone, Copy)]
struct Rows<'a> {
    mat: Mat<'a>,
    count: usize,
}

impl Gemm<'_> {
    /// Computes the product if it has few rows or columns, and operands that lie well for that;
    /// returns whether it did.
    pub(super) fn few(
        &self,
        isa: Isa,
        finish: Finish<'_>,
        out: &mut [f32],
        out_row: usize,
    ) -> bool {
        let Gemm { m, n, k, .. } = *self;
        let (Lhs::Plain(a), Rhs::Plain(b)) = (self.a, self.b) else {
            return false;
        };
        if m <= FEW && b.row == 1 && b.col != 1 && k >= SHORTEST {
            let (few, many) = (
                Rows { mat: a, count: m },
                Rows {
                    mat: b.transposed(),
                    count: n,
                },
            );
            self.dots(few, many, |i, j| (i, j), finish, out, out_row);
            return true;
        }
        if n <= FEW && m > FEW && a.col == 1 && k >= SHORTEST {
            let (few, many) = (
                Rows {
                    mat: b.transposed(),
                    count: n,
                },
                Rows { mat: a, count: m },
            );
            self.dots(few, many, |i, j| (j, i), finish, out, out_row);
            return true;
        }
        // A column as a row, where the rows of the other operand lie side by side then.
        if n == 1 && m > 1 && out_row == 1 && a.row == 1 {
            let turned = Gemm {
                m: 1,
                n: m,
                a: Lhs::Plain(b.transposed()),
                b: Rhs::Plain(a.transposed()),
                base: match self.base {
                    Base::Row(_) => return false,
                    Base::Column(bias) => Base::Row(bias),
                    other => other,
                },
                ..*self
            };
            turned.tiles(isa, finish, out, m);
            return true;
        }
        false
    }

    /// Each output as one sum of products of two rows; `place` says which from their numbers.
    fn dots(
        &self,
        few: Rows<'_>,
        many: Rows<'_>,
        place: impl Fn(usize, usize) -> (usize, usize) + Sync,
        finish: Finish<'_>,
        out: &mut [f32],
        out_row: usize,
    ) {
        if few.mat.col != 1 {
            // Taken out, since a thread that waits for others may start another task meanwhile.
            let mut buffer = SIDE.take();
            let side = room(&mut buffer, few.count * self.k);
            for (i, row) in side.chunks_exact_mut(self.k).enumerate() {
                for (p, x) in row.iter_mut().enumerate() {
                    *x = few.mat.data[i * few.mat.row + p * few.mat.col];
                }
            }
            let mat = Mat::new(side, self.k);
            let few = Rows { mat, ..few };
            self.dots_beside(few, many, place, finish, out, out_row);
            SIDE.set(buffer);
        } else {
            self.dots_beside(few, many, place, finish, out, out_row);
        }
    }

    /// [`dots`](Gemm::dots) of rows whose entries lie side by side.
    fn dots_beside(
        &self,
        few: Rows<'_>,
        many: Rows<'_>,
        place: impl Fn(usize, usize) -> (usize, usize) + Sync,
        finish: Finish<'_>,
        out: &mut [f32],
        out_row: usize,
    ) {
        let out = SharedMut::new(out);
        let size = many.count * self.k;
        let (threads, tasks) = if self.threads <= 1 || size < PARALLEL {
            (1, 1)
        } else {
            let tasks = (size / TASK).clamp(self.threads, 4 * self.threads);
            (self.threads, tasks.min(many.count))
        };
        parallel(threads, tasks, |task| {
            let rows = task * many.count / tasks..(task + 1) * many.count / tasks;
            for first in rows.clone().step_by(SIDE_BY_SIDE) {
                let count = SIDE_BY_SIDE.min(rows.end - first);
                let sums = dots(
                    self.k,
                    (few.mat.data, few.mat.row, few.count),
                    (&many.mat.data[first * many.mat.row..], many.mat.row, count),
                );
                for (i, sums) in sums.iter().enumerate().take(few.count) {
                    let mut results = [0f32; SIDE_BY_SIDE];
                    for (j, (y, &sum)) in results.iter_mut().zip(sums).enumerate().take(count) {
                        let (row, col) = place(i, first + j);
                        // SAFETY: each output belongs to one row of `many`, of one task.
                        let old = unsafe { *out.at(row * out_row + col) };
                        *y = sum + self.plus(finish, (row, col), old);
                    }
                    elementwise::apply(finish.functions, &mut results[..count]);
                    for (j, &y) in results.iter().enumerate().take(count) {
                        let (row, col) = place(i, first + j);
                        // SAFETY: as above.
                        unsafe { *out.at(row * out_row + col) = y };
                    }
                }
            }
        });
    }

    /// What is added to the sum of an output, which held `old`.
    fn plus(&self, finish: Finish<'_>, (row, col): (usize, usize), old: f32) -> f32 {
        let base = match self.base {
            Base::Zero => 0.0,
            Base::Out => old,
            Base::Row(bias) => bias[col],
            Base::Column(bias) => bias[row],
        };
        finish
            .residual
            .map_or(base, |r| base + r[row * self.n + col])
    }
}
