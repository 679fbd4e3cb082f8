//! Random orthogonal matrices, from Hadamard matrices where the size has one.

use opt_core::random::Philox;
use opt_core::{Error, Result};

/// The largest order of a matrix that is built from residues.
const LARGEST_BASE: usize = 1024;

/// The largest matrix without structure.
const LARGEST_DENSE: usize = 8192;

/// An orthogonal matrix Q, for row vectors: `x Q`.
#[derive(Debug, Clone)]
pub(crate) enum Orthogonal {
    /// `diag(signs) (H_2^k (x) base) / sqrt(size)`.
    Hadamard {
        signs: Vec<f64>,
        /// `order` by `order`, of 1 and -1.
        base: Vec<f64>,
        order: usize,
    },
    /// Any orthogonal matrix, by rows.
    Dense { rows: Vec<f64>, size: usize },
}

impl Orthogonal {
    /// A matrix of a size, by a seed: a Hadamard matrix with random signs for a power of two times 1
    /// or times an order of Paley's constructions (12, 20, 28, ..), else one that is uniformly random.
    ///
    /// # Errors
    /// For sizes without a Hadamard matrix that are so large that any other would take too long.
    pub(crate) fn random(size: usize, seed: u64) -> Result<Orthogonal> {
        let stream = Philox::new(seed);
        let base = (0..=size.trailing_zeros())
            .rev()
            .find_map(|k| Some((paley(size >> k)?, size >> k)));
        Ok(match base {
            Some((base, order)) => Orthogonal::Hadamard {
                signs: (0..size as u64)
                    .map(|i| {
                        if stream.uniform(0, i) < 0.5 {
                            -1.0
                        } else {
                            1.0
                        }
                    })
                    .collect(),
                base,
                order,
            },
            None if size > LARGEST_DENSE => {
                return Err(Error::unsupported(format!(
                    "a rotation of width {size}, which has no Hadamard matrix and is above \
                     {LARGEST_DENSE}"
                )));
            }
            None => Orthogonal::Dense {
                rows: gram_schmidt(size, &stream),
                size,
            },
        })
    }

    /// Whether it is a Hadamard matrix.
    pub(crate) fn is_hadamard(&self) -> bool {
        matches!(self, Orthogonal::Hadamard { .. })
    }

    pub(crate) fn size(&self) -> usize {
        match self {
            Orthogonal::Hadamard { signs, .. } => signs.len(),
            Orthogonal::Dense { size, .. } => *size,
        }
    }

    /// `x Q` in the place of x.
    pub(crate) fn apply(&self, x: &mut [f64]) {
        let size = self.size();
        let times = |x: &[f64], matrix: &[f64]| -> Vec<f64> {
            let mut out = vec![0.0; x.len()];
            for (v, row) in x.iter().zip(matrix.chunks_exact(x.len())) {
                for (sum, m) in out.iter_mut().zip(row) {
                    *sum += v * m;
                }
            }
            out
        };
        match self {
            Orthogonal::Dense { rows, .. } => x.copy_from_slice(&times(x, rows)),
            Orthogonal::Hadamard { signs, base, order } => {
                let scale = 1.0 / (size as f64).sqrt();
                x.iter_mut().zip(signs).for_each(|(v, s)| *v *= s * scale);
                // The fast Walsh-Hadamard transform of blocks.
                let mut step = *order;
                while step < size {
                    for pair in x.chunks_exact_mut(2 * step) {
                        let (one, two) = pair.split_at_mut(step);
                        for (a, b) in one.iter_mut().zip(two) {
                            (*a, *b) = (*a + *b, *a - *b);
                        }
                    }
                    step *= 2;
                }
                if *order > 1 {
                    for block in x.chunks_exact_mut(*order) {
                        block.copy_from_slice(&times(block, base));
                    }
                }
            }
        }
    }

    /// The matrix by rows.
    pub(crate) fn rows(&self) -> Vec<f64> {
        let size = self.size();
        let mut out = vec![0.0; size * size];
        for (i, row) in out.chunks_exact_mut(size).enumerate() {
            row[i] = 1.0;
            self.apply(row);
        }
        out
    }
}

/// A Hadamard matrix of an order by the quadratic residues of a prime (Paley 1933), or of order 1.
fn paley(order: usize) -> Option<Vec<f64>> {
    if order == 1 {
        return Some(vec![1.0]);
    }
    if order > LARGEST_BASE || !order.is_multiple_of(4) {
        return None;
    }
    let first = order - 1;
    if is_prime(first) && first % 4 == 3 {
        // I + S, with the skew matrix of the residues.
        let mut out = border(first, -1.0);
        (0..order).for_each(|i| out[i * order + i] = 1.0);
        return Some(out);
    }
    let second = (order / 2).checked_sub(1)?;
    if !is_prime(second) || second % 4 != 1 {
        return None;
    }
    // Each entry of the symmetric matrix of the residues as two by two.
    let (small, half) = (border(second, 1.0), order / 2);
    let mut out = vec![0.0; order * order];
    for i in 0..half {
        for j in 0..half {
            let block = match i == j {
                true => [1.0, -1.0, -1.0, -1.0],
                false => [1.0, 1.0, 1.0, -1.0].map(|v| v * small[i * half + j]),
            };
            for (k, v) in block.into_iter().enumerate() {
                out[(2 * i + k / 2) * order + 2 * j + k % 2] = v;
            }
        }
    }
    Some(out)
}

/// The residues' characters of differences, with a border of ones, `side` in the first column and 0
/// on the diagonal.
fn border(prime: usize, side: f64) -> Vec<f64> {
    let mut character = vec![-1.0; prime];
    (0..prime).for_each(|i| character[i * i % prime] = 1.0);
    character[0] = 0.0;
    let order = prime + 1;
    let mut out = vec![0.0; order * order];
    for i in 0..order {
        for j in 0..order {
            out[i * order + j] = match (i, j) {
                (0, 0) => 0.0,
                (0, _) => 1.0,
                (_, 0) => side,
                _ => character[(i + prime - j) % prime],
            };
        }
    }
    out
}

fn is_prime(n: usize) -> bool {
    n > 1
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

/// A random orthogonal matrix by rows: normal numbers made orthogonal, twice for the digits that the
/// first time loses.
fn gram_schmidt(size: usize, stream: &Philox) -> Vec<f64> {
    let mut rows: Vec<f64> = (0..(size * size) as u64)
        .map(|i| stream.normal(1, i))
        .collect();
    for i in 0..size {
        let (before, row) = rows.split_at_mut(i * size);
        let row = &mut row[..size];
        for _ in 0..2 {
            for other in before.chunks_exact(size) {
                let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
            }
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.iter_mut().for_each(|v| *v /= norm);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sizes_are_orthogonal() {
        let hadamard = [
            1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 40, 44, 48, 56, 60, 72, 76, 96, 144, 384,
        ];
        let sizes = hadamard.into_iter().chain([3, 7, 18, 50]);
        for size in sizes {
            let q = Orthogonal::random(size, 5).unwrap();
            assert_eq!(q.is_hadamard(), hadamard.contains(&size), "{size}");
            let rows = q.rows();
            if q.is_hadamard() {
                let entry = 1.0 / (size as f64).sqrt();
                assert!(rows.iter().all(|v| (v.abs() - entry).abs() < 1e-12));
            }
            for i in 0..size {
                for j in 0..size {
                    let dot: f64 = (0..size)
                        .map(|k| rows[i * size + k] * rows[j * size + k])
                        .sum();
                    let expected = f64::from(u8::from(i == j));
                    assert!((dot - expected).abs() < 1e-12, "{size}: {i} {j} {dot}");
                }
            }
        }
        // The widths of well-known networks.
        for size in [
            320, 640, 768, 896, 1152, 1280, 1536, 1600, 2560, 3584, 5120, 14_336,
        ] {
            let base = (0..=usize::trailing_zeros(size)).find_map(|k| paley(size >> k));
            assert!(base.is_some(), "{size}");
        }
    }

    #[test]
    fn seeds_decide() {
        let rows = |seed| Orthogonal::random(12, seed).unwrap().rows();
        assert_eq!(rows(1), rows(1));
        assert_ne!(rows(1), rows(2));
        assert!(Orthogonal::random(LARGEST_DENSE + 1, 1).is_err());
    }
}
