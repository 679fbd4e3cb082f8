//! Gradients that are added while dimensions are symbols, and run with any size.

use opt_core::{DType, Dim, Shape, Tensor, TensorType};

use super::{tensor, values_of};
use crate::Case;

fn ty(dims: impl IntoIterator<Item = Dim>) -> TensorType {
    TensorType::new(DType::F64, Shape::new(dims))
}

/// The cases of the family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in [1, 3] {
        let (batch, one) = (|| Dim::from("batch"), tensor(&[], &[1.0]));
        let x: Vec<f64> = (0..2 * n).map(|i| i as f64).collect();
        cases.push(values_of(
            &format!("gradient/mean over a batch of {n}"),
            &[ty([batch(), 2.into()])],
            vec![tensor(&[n, 2], &x)],
            one.clone(),
            vec![tensor(&[n, 2], &vec![0.5 / n as f64; 2 * n])],
            |b, x| b.mean_all(x[0]),
        ));
        // sum(x w) by w is the sum of x over all rows, by x the sum of w over its columns.
        let rows: Vec<f64> = (0..2 * n).map(|i| i as f64 + 1.0).collect();
        let sum = |k: usize| rows.iter().skip(k).step_by(2).sum::<f64>();
        let (even, odd) = (sum(0), sum(1));
        cases.push(values_of(
            &format!("gradient/matrix product of a batch of {n}"),
            &[ty([batch(), 1.into(), 2.into()]), ty([2.into(), 3.into()])],
            vec![
                tensor(&[n, 1, 2], &rows),
                tensor(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            ],
            one.clone(),
            vec![
                tensor(&[n, 1, 2], &[6.0, 15.0].repeat(n)),
                tensor(&[2, 3], &[even, even, even, odd, odd, odd]),
            ],
            |b, x| b.matmul(x[0], x[1]),
        ));
        // With equal scores a query spreads evenly over the keys up to its own position.
        let seq = || Dim::from("sequence");
        let zeros = tensor(&[n, 2], &vec![0.0; 2 * n]);
        let share = |j: usize| (j..n).map(|i| 1.0 / (i as f64 + 1.0)).sum::<f64>();
        let shares: Vec<f64> = (0..n).map(share).collect();
        cases.push(values_of(
            &format!("gradient/causal attention over {n} steps"),
            &[
                ty([seq(), 2.into()]),
                ty([seq(), 2.into()]),
                ty([seq(), 1.into()]),
            ],
            vec![zeros.clone(), zeros.clone(), tensor(&[n, 1], &vec![1.0; n])],
            one.clone(),
            vec![zeros.clone(), zeros, tensor(&[n, 1], &shares)],
            |b, x| b.attention(x[0], x[1], x[2], None, true),
        ));
        let labels = Tensor::new([n], vec![1i64; n]).expect("a label a row");
        let logits = tensor(&[n, 2], &vec![0.0; 2 * n]);
        let half = 0.5 / n as f64;
        cases.push(values_of(
            &format!("gradient/mean cross-entropy of a batch of {n}"),
            &[
                ty([batch(), 2.into()]),
                TensorType::new(DType::I64, Shape::new([batch()])),
            ],
            vec![logits, labels],
            one,
            vec![tensor(&[n, 2], &[half, -half].repeat(n))],
            |b, x| {
                let loss = b.softmax_cross_entropy(x[0], x[1])?;
                b.mean_all(loss)
            },
        ));
    }
    cases
}
