//! Eigenvalues and eigenvectors of symmetric matrices: Householder's reduction to tridiagonal form
//! and the QL method with implicit shifts (Martin, Reinsch & Wilkinson 1968; Bowdler, Martin,
//! Reinsch & Wilkinson 1968; EISPACK's `tred2` and `tql2`).

use crate::{Error, ErrorKind, Result};

/// Eigenvalues in descending order, and as many eigenvectors of length 1.
pub(super) struct Eigen {
    pub(super) values: Vec<f64>,
    /// By row.
    pub(super) vectors: Vec<f64>,
}

/// Of a symmetric matrix of finite values; only one of its triangles is read.
pub(super) fn symmetric(mut v: Vec<f64>, n: usize) -> Result<Eigen> {
    debug_assert_eq!(v.len(), n * n);
    if n == 0 {
        return Ok(Eigen {
            values: Vec::new(),
            vectors: Vec::new(),
        });
    }
    // Off-diagonal entries below the smallest normal number would be divided by.
    let largest = v.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    if largest == 0.0 {
        v.fill(0.0);
        (0..n).for_each(|i| v[i * n + i] = 1.0);
        return Ok(Eigen {
            values: vec![0.0; n],
            vectors: v,
        });
    }
    v.iter_mut().for_each(|x| *x /= largest);
    let (mut d, mut e) = (vec![0.0; n], vec![0.0; n]);
    tridiagonal(&mut v, &mut d, &mut e, n);
    implicit_ql(&mut v, &mut d, &mut e, n)?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| d[b].total_cmp(&d[a]));
    Ok(Eigen {
        values: order.iter().map(|&i| d[i] * largest).collect(),
        vectors: order
            .iter()
            .flat_map(|&i| v[i * n..(i + 1) * n].iter().copied())
            .collect(),
    })
}

/// Leaves the diagonal in `d`, the entries beside it in `e[1..]`, and the transformation in `v`,
/// whose column `j` is `v[j * n..][..n]`.
fn tridiagonal(v: &mut [f64], d: &mut [f64], e: &mut [f64], n: usize) {
    for j in 0..n {
        d[j] = v[j * n + n - 1];
    }
    for i in (1..n).rev() {
        let scale: f64 = d[..i].iter().map(|x| x.abs()).sum();
        let mut h = 0.0;
        if scale == 0.0 {
            e[i] = d[i - 1];
            for j in 0..i {
                d[j] = v[j * n + i - 1];
                v[j * n + i] = 0.0;
                v[i * n + j] = 0.0;
            }
        } else {
            for x in &mut d[..i] {
                *x /= scale;
                h += *x * *x;
            }
            let f = d[i - 1];
            let g = if f > 0.0 { -h.sqrt() } else { h.sqrt() };
            e[i] = scale * g;
            h -= f * g;
            d[i - 1] = f - g;
            e[..i].fill(0.0);
            for j in 0..i {
                let f = d[j];
                v[i * n + j] = f;
                let column = &v[j * n..][..n];
                let mut g = e[j] + column[j] * f;
                for k in j + 1..i {
                    g += column[k] * d[k];
                    e[k] += column[k] * f;
                }
                e[j] = g;
            }
            let mut f = 0.0;
            for j in 0..i {
                e[j] /= h;
                f += e[j] * d[j];
            }
            let hh = f / (h + h);
            for j in 0..i {
                e[j] -= hh * d[j];
            }
            for j in 0..i {
                let (f, g) = (d[j], e[j]);
                let column = &mut v[j * n..][..n];
                for k in j..i {
                    column[k] -= f * e[k] + g * d[k];
                }
                d[j] = column[i - 1];
                column[i] = 0.0;
            }
        }
        d[i] = h;
    }
    for i in 0..n - 1 {
        v[i * n + n - 1] = v[i * n + i];
        v[i * n + i] = 1.0;
        let h = d[i + 1];
        let (before, after) = v.split_at_mut((i + 1) * n);
        let next = &mut after[..=i];
        if h != 0.0 {
            for k in 0..=i {
                d[k] = next[k] / h;
            }
            for j in 0..=i {
                let column = &mut before[j * n..][..=i];
                let g: f64 = next.iter().zip(&*column).map(|(a, b)| a * b).sum();
                for k in 0..=i {
                    column[k] -= g * d[k];
                }
            }
        }
        next.fill(0.0);
    }
    for j in 0..n {
        d[j] = v[j * n + n - 1];
        v[j * n + n - 1] = 0.0;
    }
    v[n * n - 1] = 1.0;
    e[0] = 0.0;
}

/// Leaves the eigenvalues in `d` and the eigenvectors in the columns of `v`.
fn implicit_ql(v: &mut [f64], d: &mut [f64], e: &mut [f64], n: usize) -> Result<()> {
    /// Rounds until an eigenvalue stands; two or three are usual, EISPACK allows 30.
    const ROUNDS: usize = 60;
    e.copy_within(1.., 0);
    e[n - 1] = 0.0;
    let (mut shift, mut size) = (0.0, 0.0f64);
    for l in 0..n {
        size = size.max(d[l].abs() + e[l].abs());
        let small = f64::EPSILON * size;
        // The last entry is 0.
        let m = (l..n).find(|&m| e[m].abs() <= small).unwrap_or(n - 1);
        let mut rounds = 0;
        while m > l && (rounds == 0 || e[l].abs() > small) {
            rounds += 1;
            if rounds > ROUNDS {
                let message = format!("eigenvalue {l} of {n} does not converge");
                return Err(Error::new(ErrorKind::Data, message));
            }
            let g = d[l];
            let p = (d[l + 1] - g) / (2.0 * e[l]);
            let r = p.hypot(1.0).copysign(p);
            d[l] = e[l] / (p + r);
            d[l + 1] = e[l] * (p + r);
            let next = d[l + 1];
            let h = g - d[l];
            for x in &mut d[l + 2..] {
                *x -= h;
            }
            shift += h;
            let mut p = d[m];
            let (mut c, mut c2, mut c3) = (1.0, 1.0, 1.0);
            let (mut s, mut s2) = (0.0, 0.0);
            let beside = e[l + 1];
            for i in (l..m).rev() {
                (c3, c2, s2) = (c2, c, s);
                let (g, h) = (c * e[i], c * p);
                let r = p.hypot(e[i]);
                e[i + 1] = s * r;
                (s, c) = (e[i] / r, p / r);
                p = c * d[i] - s * g;
                d[i + 1] = h + s * (c * g + s * d[i]);
                let (left, right) = v.split_at_mut((i + 1) * n);
                for (a, b) in left[i * n..].iter_mut().zip(&mut right[..n]) {
                    (*a, *b) = (c * *a - s * *b, s * *a + c * *b);
                }
            }
            let p = -s * s2 * c3 * beside * e[l] / next;
            e[l] = s * p;
            d[l] = c * p;
        }
        d[l] += shift;
        e[l] = 0.0;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(a: &[f64], n: usize) {
        let eigen = symmetric(a.to_vec(), n).unwrap();
        let size = a.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert!(eigen.values.is_sorted_by(|x, y| x >= y));
        let vector = |i: usize| &eigen.vectors[i * n..(i + 1) * n];
        for i in 0..n {
            for j in 0..n {
                let dot: f64 = vector(i).iter().zip(vector(j)).map(|(a, b)| a * b).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((dot - expected).abs() < 1e-12, "{i} {j}: {dot}");
                let row: f64 = (0..n).map(|k| a[j * n + k] * vector(i)[k]).sum();
                let expected = eigen.values[i] * vector(i)[j];
                assert!((row - expected).abs() <= 1e-12 * size * n as f64, "{i} {j}");
            }
        }
    }

    #[test]
    fn known_matrices() {
        let two = symmetric(vec![2., 1., 1., 2.], 2).unwrap();
        assert!((two.values[0] - 3.0).abs() < 1e-15 && (two.values[1] - 1.0).abs() < 1e-15);
        // The second difference's eigenvalues are 2 - 2 cos(k pi / (n + 1)).
        let n = 20;
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            a[i * n + i] = 2.0;
            if i > 0 {
                a[i * n + i - 1] = -1.0;
                a[(i - 1) * n + i] = -1.0;
            }
        }
        check(&a, n);
        let values = symmetric(a, n).unwrap().values;
        for (k, value) in values.iter().rev().enumerate() {
            let angle = (k + 1) as f64 * std::f64::consts::PI / (n + 1) as f64;
            assert!((value - (2.0 - 2.0 * angle.cos())).abs() < 1e-14);
        }
        check(&[0.0; 9], 3);
        check(&[5.0], 1);
        check(&[1., 0., 0., 0., 1., 0., 0., 0., 1.], 3);
        assert!(symmetric(vec![], 0).unwrap().values.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn random_matrices(n in 1usize..13, rank in 1usize..13, seed: u64, log in -150i32..150) {
            let random = opt_core::random::Philox::new(seed);
            let scale = 10f64.powi(log);
            let b: Vec<f64> = (0..n * rank).map(|i| random.normal(0, i as u64)).collect();
            let sign = |k: usize| if k.is_multiple_of(3) { -1.0 } else { 1.0 };
            let a: Vec<f64> = (0..n * n)
                .map(|at| {
                    let (i, j) = (at / n, at % n);
                    let (i, j) = (i.min(j), i.max(j));
                    (0..rank).map(|k| sign(k) * b[i * rank + k] * b[j * rank + k]).sum::<f64>() * scale
                })
                .collect();
            check(&a, n);
        }
    }
}
