//! Convolutions, pooling and normalization.

use opt_core::ops::{
    AvgPool, BatchNorm, Conv, ConvTranspose, GroupNorm, InstanceNorm, MaxPool, RmsNorm, Window,
};
use opt_core::{DType, Tensor};

use super::differences;
use crate::{Case, uniform};

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    uniform(DType::F64, shape, seed, -1.0, 1.0).expect("small shapes")
}

fn positive(shape: &[usize], seed: u64) -> Tensor {
    uniform(DType::F64, shape, seed, 0.5, 1.5).expect("small shapes")
}

fn window(spatial: usize, stride: usize, pad: usize, dilation: usize) -> Window {
    Window::new(spatial)
        .stride(stride)
        .pad(pad)
        .dilation(dilation)
}

/// All cases of the family.
pub fn cases() -> Vec<Case> {
    [convolutions(), transposed(), pools(), norms()].concat()
}

fn convolutions() -> Vec<Case> {
    let mut uneven = window(2, 2, 0, 1);
    uneven.pads_begin[0] = 2;
    uneven.pads_end[1] = 1;
    let table: [(&str, &[usize], &[usize], Window, usize); 9] = [
        ("conv 1-d", &[2, 3, 7], &[4, 3, 3], window(1, 1, 1, 1), 1),
        (
            "conv stride 2, left-over",
            &[2, 2, 6, 7],
            &[3, 2, 3, 3],
            window(2, 2, 0, 1),
            1,
        ),
        (
            "conv dilation",
            &[1, 2, 7, 7],
            &[2, 2, 3, 2],
            window(2, 1, 2, 2),
            1,
        ),
        (
            "conv uneven padding",
            &[2, 2, 5, 5],
            &[3, 2, 3, 3],
            uneven,
            1,
        ),
        (
            "conv groups",
            &[2, 4, 5, 5],
            &[6, 2, 3, 3],
            window(2, 1, 1, 1),
            2,
        ),
        (
            "conv depthwise",
            &[2, 3, 6, 5],
            &[3, 1, 3, 3],
            window(2, 2, 1, 1),
            3,
        ),
        (
            "conv depthwise x2",
            &[1, 2, 5, 5],
            &[4, 1, 3, 3],
            window(2, 1, 1, 1),
            2,
        ),
        (
            "conv pointwise",
            &[2, 3, 4, 4],
            &[5, 3, 1, 1],
            window(2, 1, 0, 1),
            1,
        ),
        (
            "conv 3-d",
            &[1, 2, 3, 4, 5],
            &[2, 2, 2, 3, 2],
            window(3, 2, 1, 1),
            1,
        ),
    ];
    table
        .into_iter()
        .map(|(name, x, w, window, groups)| {
            let inputs = vec![tensor(x, 1), tensor(w, 2), tensor(&w[..1], 3)];
            differences(name, inputs, |b, v| b.op(Conv { window, groups }, v))
        })
        .collect()
}

fn transposed() -> Vec<Case> {
    let table: [(&str, &[usize], &[usize], Window, usize, usize); 4] = [
        (
            "conv transpose",
            &[2, 3, 3, 4],
            &[3, 2, 3, 3],
            window(2, 2, 1, 1),
            1,
            0,
        ),
        (
            "conv transpose, output padding",
            &[1, 3, 3, 4],
            &[3, 2, 3, 3],
            window(2, 2, 1, 1),
            1,
            1,
        ),
        (
            "conv transpose groups",
            &[2, 4, 4],
            &[4, 3, 3],
            window(1, 1, 0, 2),
            2,
            0,
        ),
        (
            "conv transpose 3-d",
            &[1, 2, 2, 3, 2],
            &[2, 1, 2, 2, 2],
            window(3, 2, 0, 1),
            1,
            0,
        ),
    ];
    table
        .into_iter()
        .map(|(name, x, w, window, groups, padding)| {
            let out = w[1] * groups;
            let inputs = vec![tensor(x, 4), tensor(w, 5), tensor(&[out], 6)];
            let output_padding = std::iter::repeat_n(padding, window.rank()).collect();
            let op = ConvTranspose {
                window,
                groups,
                output_padding,
            };
            differences(name, inputs, |b, v| b.op(op, v))
        })
        .collect()
}

fn pools() -> Vec<Case> {
    let x = || vec![tensor(&[2, 3, 7, 6], 7)];
    let max = |kernel: usize, window, ceil_mode| MaxPool {
        kernel: std::iter::repeat_n(kernel, 2).collect(),
        window,
        ceil_mode,
    };
    let avg = |kernel: usize, window, ceil_mode, count_include_pad| AvgPool {
        kernel: std::iter::repeat_n(kernel, 2).collect(),
        window,
        ceil_mode,
        count_include_pad,
    };
    vec![
        differences("max pool 2", x(), |b, v| b.max_pool(v[0], 2)),
        differences("max pool overlapping", x(), |b, v| {
            b.op(max(3, window(2, 2, 1, 1), true), v)
        }),
        differences("max pool dilated", x(), |b, v| {
            b.op(max(2, window(2, 1, 0, 2), false), v)
        }),
        differences("average pool 2", x(), |b, v| b.avg_pool(v[0], 2)),
        differences("average pool padded", x(), |b, v| {
            b.op(avg(3, window(2, 2, 1, 1), false, false), v)
        }),
        differences("average pool ceil", x(), |b, v| {
            b.op(avg(3, window(2, 2, 1, 1), true, true), v)
        }),
        differences("global average pool", x(), |b, v| b.global_avg_pool(v[0])),
    ]
}

fn norms() -> Vec<Case> {
    let channels = |x: &[usize]| {
        let c = &x[1..2];
        vec![
            tensor(x, 8),
            tensor(c, 9),
            tensor(c, 10),
            tensor(c, 11),
            positive(c, 12),
        ]
    };
    let batch = |training| BatchNorm {
        epsilon: 1e-3,
        momentum: 0.1,
        training,
    };
    let three = |x: &[usize]| vec![tensor(x, 13), positive(&x[1..2], 14), tensor(&x[1..2], 15)];
    let tail = || {
        vec![
            tensor(&[3, 2, 4], 16),
            positive(&[2, 4], 17),
            tensor(&[2, 4], 18),
        ]
    };
    let epsilon = 1e-3;
    vec![
        differences("batch norm eval", channels(&[3, 2, 4, 3]), |b, v| {
            b.op(batch(false), v)
        }),
        differences("batch norm training", channels(&[3, 2, 4]), |b, v| {
            let y = b.node(batch(true), v)?[0];
            // A weighting that is not constant within a channel: the plain sum has gradient 0.
            let y = b.mul(y, y)?;
            let keep = b.add(v[3], v[4])?;
            let keep = b.sum_all(keep)?;
            b.add(y, keep)
        }),
        differences(
            "batch norm training, two axes",
            channels(&[5, 3]),
            |b, v| {
                let y = b.node(batch(true), v)?[0];
                let y = b.mul(y, v[0])?;
                let keep = b.add(v[3], v[4])?;
                let keep = b.sum_all(keep)?;
                b.add(y, keep)
            },
        ),
        differences("layer norm", tail(), |b, v| {
            b.layer_norm(v[0], v[1], Some(v[2]), 1, epsilon)
        }),
        differences("rms norm", tail()[..2].to_vec(), |b, v| {
            b.op(RmsNorm { axis: 1, epsilon }, v)
        }),
        differences("group norm", three(&[2, 4, 3]), |b, v| {
            b.op(GroupNorm { groups: 2, epsilon }, v)
        }),
        differences("instance norm", three(&[2, 3, 3, 2]), |b, v| {
            b.op(InstanceNorm { epsilon }, v)
        }),
    ]
}
