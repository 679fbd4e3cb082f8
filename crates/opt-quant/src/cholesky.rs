//! Dense linear algebra in `f64`: products, Cholesky's factor, and the factor of the inverse that
//! GPTQ walks along. Matrices are in row-major order.

use std::num::NonZero;
use std::ops::Range;
use std::thread;

/// Rows and columns of a block of the factorizations.
const BLOCK: usize = 64;
/// Columns of a product that are worked on at once: four rows of them lie in the first-level cache.
const PANEL: usize = 512;
/// Multiplications that are worth threads.
pub(crate) const PARALLEL: usize = 1 << 22;

/// A part of a row-major matrix: `start` is its first entry, `stride` the distance of rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) data: &'a [f64],
    pub(crate) start: usize,
    pub(crate) stride: usize,
}

impl<'a> View<'a> {
    /// A whole matrix of this many columns.
    pub(crate) fn new(data: &'a [f64], columns: usize) -> View<'a> {
        View {
            data,
            start: 0,
            stride: columns,
        }
    }

    /// The part from a row and a column on.
    pub(crate) fn from(self, row: usize, column: usize) -> View<'a> {
        View {
            start: self.start + row * self.stride + column,
            ..self
        }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        self.data[self.start + row * self.stride + column]
    }

    fn row(&self, row: usize, columns: Range<usize>) -> &'a [f64] {
        let start = self.start + row * self.stride;
        &self.data[start + columns.start..start + columns.end]
    }
}

/// Adds `factor * a * b` to the columns `columns` of `c`, rows of `stride` entries; `inner` is the
/// number of columns of `a` and of rows of `b`. The sums are the same whatever the number of
/// threads: each entry is made by one, in the order of the inner index.
pub(crate) fn add_product(
    c: &mut [f64],
    stride: usize,
    columns: Range<usize>,
    factor: f64,
    a: View<'_>,
    b: View<'_>,
    inner: usize,
) {
    let rows = c.len() / stride.max(1);
    let work = rows * columns.len() * inner;
    let threads = match work < PARALLEL {
        true => 1,
        false => thread::available_parallelism().map_or(1, NonZero::get),
    };
    let share = rows.div_ceil(threads).max(1);
    if threads == 1 {
        return product_rows(c, stride, columns, factor, a, b, inner);
    }
    thread::scope(|scope| {
        for (i, part) in c.chunks_mut(share * stride).enumerate() {
            let (a, columns) = (a.from(i * share, 0), columns.clone());
            scope.spawn(move || product_rows(part, stride, columns, factor, a, b, inner));
        }
    });
}

fn product_rows(
    c: &mut [f64],
    stride: usize,
    columns: Range<usize>,
    factor: f64,
    a: View<'_>,
    b: View<'_>,
    inner: usize,
) {
    let width = columns.len();
    for from in (0..width).step_by(PANEL) {
        let panel = from..width.min(from + PANEL);
        for k in (0..inner).step_by(BLOCK) {
            let ks = k..inner.min(k + BLOCK);
            for (i, row) in c.chunks_mut(stride).enumerate() {
                let row = &mut row[columns.start + panel.start..columns.start + panel.end];
                product_row(row, factor, a, i, b, ks.clone(), panel.clone());
            }
        }
    }
}

/// One row of a panel: four steps of the inner index at once, added in their order.
fn product_row(
    row: &mut [f64],
    factor: f64,
    a: View<'_>,
    i: usize,
    b: View<'_>,
    ks: Range<usize>,
    panel: Range<usize>,
) {
    let mut k = ks.start;
    while k + 4 <= ks.end {
        let f = [0, 1, 2, 3].map(|d| factor * a.at(i, k + d));
        let r = [0, 1, 2, 3].map(|d| b.row(k + d, panel.clone()));
        let pairs = row.iter_mut().zip(r[0]).zip(r[1]).zip(r[2]).zip(r[3]);
        for ((((c, &b0), &b1), &b2), &b3) in pairs {
            *c = (((*c + f[0] * b0) + f[1] * b1) + f[2] * b2) + f[3] * b3;
        }
        k += 4;
    }
    for k in k..ks.end {
        let f = factor * a.at(i, k);
        for (c, &b) in row.iter_mut().zip(b.row(k, panel.clone())) {
            *c += f * b;
        }
    }
}

/// Replaces the lower triangle of a symmetric matrix by Cholesky's factor `L`, `A = L L^T`; what is
/// above the diagonal stays as it is and is not read.
///
/// # Errors
/// The first row where the matrix is not positive definite.
pub(crate) fn factor(a: &mut [f64], n: usize) -> Result<(), usize> {
    for start in (0..n).step_by(BLOCK) {
        let end = n.min(start + BLOCK);
        for i in start..n {
            let (above, from) = a.split_at_mut(i * n);
            let row = &mut from[..n];
            for j in start..end.min(i) {
                let other = &above[j * n..(j + 1) * n];
                row[j] = (row[j] - dot(&row[start..j], &other[start..j])) / other[j];
            }
            if i < end {
                let pivot = row[i] - dot(&row[start..i], &row[start..i]);
                // Also where it is NaN.
                if !(pivot > 0.0 && pivot.is_finite()) {
                    return Err(i);
                }
                row[i] = pivot.sqrt();
            }
        }
        let (width, rest) = (end - start, n - end);
        let mut below = vec![0.0; rest * width];
        let mut turned = vec![0.0; width * rest];
        for i in 0..rest {
            for k in 0..width {
                let value = a[(end + i) * n + start + k];
                below[i * width + k] = value;
                turned[k * rest + i] = value;
            }
        }
        for i in (0..rest).step_by(2 * BLOCK) {
            let last = rest.min(i + 2 * BLOCK);
            let rows = &mut a[(end + i) * n..(end + last) * n];
            let (l, t) = (View::new(&below, width), View::new(&turned, rest));
            add_product(rows, n, end..end + last, -1.0, l.from(i, 0), t, width);
        }
    }
    Ok(())
}

/// The inverse of a lower triangular matrix, with zeros above the diagonal.
pub(crate) fn invert_lower(l: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    for start in (0..n).step_by(BLOCK) {
        let end = n.min(start + BLOCK);
        let (done, rest) = out.split_at_mut(start * n);
        let rows = &mut rest[..(end - start) * n];
        for k in (0..start).step_by(BLOCK) {
            let a = View::new(l, n).from(start, k);
            let b = View::new(done, n).from(k, 0);
            add_product(rows, n, 0..k + BLOCK, -1.0, a, b, BLOCK);
        }
        for i in start..end {
            let (above, row) = rows.split_at_mut((i - start) * n);
            let row = &mut row[..n];
            row[i] = 1.0;
            for k in start..i {
                let factor = l[i * n + k];
                let other = &above[(k - start) * n..][..=k];
                for (x, &y) in row.iter_mut().zip(other) {
                    *x -= factor * y;
                }
            }
            let pivot = l[i * n + i];
            row[..=i].iter_mut().for_each(|x| *x /= pivot);
        }
    }
    out
}

/// The upper triangular `U` with `A^-1 = U^T U`, of a symmetric positive definite matrix.
///
/// With `J` the reversal of all rows and columns and `J A J = L L^T`, `U` is `J L^-1 J`: one
/// factorization and one inverse of a triangle, where inverting first takes two more.
///
/// # Errors
/// A row where the matrix is not positive definite.
pub(crate) fn inverse_factor(a: &[f64], n: usize) -> Result<Vec<f64>, usize> {
    let mut turned: Vec<f64> = a.iter().rev().copied().collect();
    factor(&mut turned, n).map_err(|row| n - 1 - row)?;
    let mut out = invert_lower(&turned, n);
    out.reverse();
    Ok(out)
}

/// The dot product, in eight running sums that do not depend on each other.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (heads, others) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = heads
        .remainder()
        .iter()
        .zip(others.remainder())
        .map(|(x, y)| x * y)
        .sum();
    let mut sums = [0f64; 8];
    for (x, y) in heads.zip(others) {
        for ((s, x), y) in sums.iter_mut().zip(x).zip(y) {
            *s += x * y;
        }
    }
    sums.iter().sum::<f64>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use opt_core::random::Philox;
    use proptest::prelude::*;

    fn random(rows: usize, columns: usize, seed: u64) -> Vec<f64> {
        let random = Philox::new(seed);
        (0..rows * columns)
            .map(|i| random.normal(0, i as u64))
            .collect()
    }

    fn naive(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
            }
        }
        c
    }

    fn transposed(a: &[f64], m: usize, n: usize) -> Vec<f64> {
        (0..m * n).map(|i| a[i % m * n + i / m]).collect()
    }

    fn close(a: &[f64], b: &[f64], tolerance: f64) {
        for (i, (x, y)) in a.iter().zip(b).enumerate() {
            assert!((x - y).abs() <= tolerance * (1.0 + y.abs()), "{i}: {x} {y}");
        }
    }

    /// Positive definite, of the rank that `rows` allow plus a tenth of the unit matrix.
    fn positive(n: usize, rows: usize, seed: u64) -> Vec<f64> {
        let x = random(rows, n, seed);
        let mut a = naive(&transposed(&x, rows, n), &x, n, rows, n);
        (0..n).for_each(|i| a[i * n + i] += 0.1);
        a
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn products_and_factors_are_those_of_the_definition(
            n in 1usize..150, rows in 1usize..40, seed: u64,
        ) {
            let (a, b) = (random(rows, n, seed), random(n, n, seed ^ 1));
            let mut c = random(rows, n + 3, seed ^ 2);
            let product = naive(&a, &b, rows, n, n);
            let expected: Vec<f64> = (0..c.len())
                .map(|i| (i / (n + 3), i % (n + 3)))
                .map(|(i, j)| {
                    let inside = (2..n + 2).contains(&j);
                    c[i * (n + 3) + j] - if inside { 2.0 * product[i * n + j - 2] } else { 0.0 }
                })
                .collect();
            let (left, right) = (View::new(&a, n), View::new(&b, n));
            add_product(&mut c, n + 3, 2..n + 2, -2.0, left, right, n);
            close(&c, &expected, 1e-11);

            let a = positive(n, rows, seed);
            let mut l = a.clone();
            factor(&mut l, n).unwrap();
            (0..n).for_each(|i| l[i * n + i + 1..(i + 1) * n].fill(0.0));
            close(&naive(&l, &transposed(&l, n, n), n, n, n), &a, 1e-11);

            let inverse = invert_lower(&l, n);
            let unit: Vec<f64> = (0..n * n).map(|i| f64::from(i / n == i % n)).collect();
            close(&naive(&l, &inverse, n, n, n), &unit, 1e-8);

            let u = inverse_factor(&a, n).unwrap();
            let inverse = naive(&transposed(&u, n, n), &u, n, n, n);
            close(&naive(&a, &inverse, n, n, n), &unit, 1e-7);
            prop_assert!((0..n * n).all(|i| i % n >= i / n || u[i] == 0.0), "upper");
        }
    }

    #[test]
    fn large_products_are_the_same_on_threads() {
        let n = 200;
        let (a, b) = (random(n, n, 1), random(n, n, 2));
        let mut whole = vec![0.0; n * n];
        add_product(
            &mut whole,
            n,
            0..n,
            1.0,
            View::new(&a, n),
            View::new(&b, n),
            n,
        );
        let mut alone = vec![0.0; n * n];
        product_rows(
            &mut alone,
            n,
            0..n,
            1.0,
            View::new(&a, n),
            View::new(&b, n),
            n,
        );
        assert!(n * n * n > PARALLEL);
        assert_eq!(whole, alone);
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_is_named_by_its_row() {
        let mut a = vec![1.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 2.0, 1.0];
        assert_eq!(factor(&mut a.clone(), 3), Err(2));
        assert_eq!(inverse_factor(&a, 3), Err(1));
        a[0] = f64::NAN;
        assert_eq!(factor(&mut a, 3), Err(0));
        assert_eq!(factor(&mut [], 0), Ok(()));
    }
}
