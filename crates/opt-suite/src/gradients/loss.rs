//! Losses that are ops.

use opt_core::Tensor;

use super::{differences, signed};
use crate::Case;

/// The cases of the family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (logits, labels) in [
        (&[3usize, 4][..], &[3usize][..]),
        (&[2, 3, 2], &[2, 2]),
        (&[1, 5, 2, 2], &[1, 2, 2]),
    ] {
        let name = format!("gradient/SoftmaxCrossEntropy {logits:?}");
        let x = signed(logits, 80, 0.1, 3.0);
        let classes: Vec<i64> = (0..labels.iter().product::<usize>() as i64)
            .map(|i| (i * 2 + 1) % logits[1] as i64)
            .collect();
        let labels = Tensor::new(labels, classes).expect("a label an entry");
        cases.push(differences(&name, vec![x, labels], |b, x| {
            b.softmax_cross_entropy(x[0], x[1])
        }));
    }
    cases
}
