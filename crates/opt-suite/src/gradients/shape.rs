//! Ops that move elements, indices, and recurrent ops.

use opt_core::ops::{Direction, Gru, Lstm, PadMode, ScatterReduction, Slice};
use opt_core::{DType, Tensor};

use super::differences;
use crate::{Case, uniform};

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    uniform(DType::F64, shape, seed, -1.0, 1.0).expect("small shapes")
}

fn indices(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::new(shape, values).expect("as many values as the shape has")
}

/// All cases of the families.
pub fn cases() -> Vec<Case> {
    [moves(), indexed(), recurrent()].concat()
}

fn moves() -> Vec<Case> {
    let x = || vec![tensor(&[2, 3, 4], 1)];
    let slice = Slice {
        axes: [1, 2].into_iter().collect(),
        starts: [2, 0].into_iter().collect(),
        ends: [-1, 4].into_iter().collect(),
        steps: [-2, 3].into_iter().collect(),
    };
    vec![
        differences("reshape", x(), |b, v| b.reshape(v[0], [4, 6])),
        differences("transpose", x(), |b, v| b.transpose(v[0], &[2, 0, 1])),
        differences("slice", x(), |b, v| b.slice(v[0], 1, 1, 3)),
        differences("slice with steps", x(), |b, v| b.op(slice, v)),
        differences("pad constant", x(), |b, v| {
            b.pad(v[0], &[0, 2, 1], &[1, 0, 0], PadMode::Constant(0.5))
        }),
        differences("pad reflect", x(), |b, v| {
            b.pad(v[0], &[0, 2, 1], &[0, 1, 3], PadMode::Reflect)
        }),
        differences("pad edge", x(), |b, v| {
            b.pad(v[0], &[1, 0, 3], &[0, 2, 0], PadMode::Edge)
        }),
        differences("expand", vec![tensor(&[3, 1], 2)], |b, v| {
            b.expand(v[0], [2, 3, 4])
        }),
        differences("tile", x(), |b, v| b.tile(v[0], &[2, 1, 3])),
        differences("squeeze and unsqueeze", x(), |b, v| {
            let y = b.unsqueeze(v[0], &[0, 3])?;
            b.squeeze(y, &[0])
        }),
        differences(
            "concat",
            vec![tensor(&[2, 3], 3), tensor(&[2, 1], 4)],
            |b, v| b.concat(v, 1),
        ),
        differences("split, one part used", x(), |b, v| {
            Ok(b.split(v[0], 2, &[1, 3])?[1])
        }),
    ]
}

fn indexed() -> Vec<Case> {
    let data = || tensor(&[3, 4], 5);
    let repeated = || indices(&[2, 2], &[2, 0, -1, 2]);
    let updates = || tensor(&[2, 2], 6);
    vec![
        differences("gather", vec![data(), repeated()], |b, v| {
            b.gather(v[0], v[1], 1)
        }),
        differences(
            "embedding",
            vec![data(), indices(&[3], &[1, 1, 0])],
            |b, v| b.embedding(v[0], v[1]),
        ),
        differences("gather elements", vec![data(), repeated()], |b, v| {
            b.gather_elements(v[0], v[1], 0)
        }),
        differences(
            "scatter add",
            vec![data(), repeated(), updates()],
            |b, v| b.scatter_elements(v[0], v[1], v[2], 0, ScatterReduction::Add),
        ),
        differences(
            "scatter",
            vec![data(), indices(&[2, 2], &[2, 0, 1, 2]), updates()],
            |b, v| b.scatter_elements(v[0], v[1], v[2], 0, ScatterReduction::None),
        ),
    ]
}

fn recurrent() -> Vec<Case> {
    let mut cases = Vec::new();
    let (t, n, i, h) = (3, 2, 2, 3);
    for direction in [
        Direction::Forward,
        Direction::Reverse,
        Direction::Bidirectional,
    ] {
        let d = direction.count();
        for initial in [false, true] {
            let inputs = |gates: usize, states: usize| {
                let mut out = vec![
                    tensor(&[t, n, i], 7),
                    tensor(&[d, gates * h, i], 8),
                    tensor(&[d, gates * h, h], 9),
                    tensor(&[d, 2 * gates * h], 10),
                ];
                if initial {
                    out.extend((0..states).map(|s| tensor(&[d, n, h], 11 + s as u64)));
                }
                out
            };
            let lstm = Lstm {
                hidden: h,
                direction,
                initial,
            };
            let gru = Gru {
                hidden: h,
                direction,
                initial,
                linear_before_reset: true,
            };
            let name = |op: &str| format!("{op} {direction:?}, initial {initial}");
            cases.push(differences(&name("lstm"), inputs(4, 2), |b, v| {
                let out = b.node(lstm, v)?;
                let y = b.sum(out[0], &[0], false)?;
                let y = b.transpose(y, &[0, 1, 2])?;
                let states = b.mul(out[1], out[2])?;
                b.add(y, states)
            }));
            cases.push(differences(&name("gru"), inputs(3, 1), |b, v| {
                let out = b.node(gru, v)?;
                let y = b.sum(out[0], &[0], false)?;
                b.add(y, out[1])
            }));
        }
    }
    cases
}
