//! Dropout, and the ops that pass values on.

use opt_core::ops::{Dropout, Identity};
use opt_core::{DType, Tensor};

use super::{differences, signed, tensor, values};
use crate::Case;

/// The cases of the family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (p, training) in [(0.5, true), (0.0, true), (0.4, false)] {
        let name = format!("gradient/Dropout {p} {training}");
        let x = signed(&[4, 3], 90, 0.1, 1.0);
        let op = Dropout {
            p,
            seed: 7,
            training,
        };
        cases.push(differences(&name, vec![x], |b, x| {
            let mut inputs = vec![x[0]];
            if training {
                inputs.push(b.constant(Tensor::full(DType::I64, [], 3.0)?));
            }
            Ok(b.node(op, &inputs)?[0])
        }));
    }
    let x = signed(&[3], 91, 0.1, 1.0);
    cases.push(differences("gradient/Identity", vec![x], |b, x| {
        b.op(Identity, &[x[0]])
    }));
    let x = tensor(&[2], &[3.0, 4.0]);
    let name = "gradient/StopGradient lets one factor through";
    cases.push(values(
        name,
        vec![x.clone()],
        tensor(&[2], &[1.0; 2]),
        vec![x],
        |b, x| {
            let stopped = b.stop_gradient(x[0])?;
            b.mul(x[0], stopped)
        },
    ));
    cases
}
