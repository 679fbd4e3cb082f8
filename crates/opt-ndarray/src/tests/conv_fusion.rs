//! What moves into convolutions, against the same graph of which every value is an output, so that
//! nothing moves.

use opt_core::ops::Window;
use opt_core::random::Philox;
use opt_core::{Backend, CompileSpec, DType, Graph, GraphBuilder, Tensor, TensorType, ValueId};

use crate::NdarrayBackend;

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let random = Philox::new(seed);
    let len = shape.iter().product::<usize>() as u64;
    let data: Vec<f32> = (0..len)
        .map(|i| random.uniform(0, i) as f32 * 2.0 - 1.0)
        .collect();
    Tensor::new(shape, data).unwrap()
}

/// Builds a graph; `keep` is given what is to be an output of the one of which nothing moves.
fn graph(
    shape: &[usize],
    all: bool,
    build: impl Fn(&mut GraphBuilder, ValueId, &mut dyn FnMut(ValueId)) -> ValueId,
) -> Graph {
    let mut b = GraphBuilder::new("net");
    let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
    let mut kept = Vec::new();
    let y = build(&mut b, x, &mut |v| kept.push(v));
    b.output("y", y).unwrap();
    if all {
        for (i, v) in kept.into_iter().enumerate() {
            b.output(&format!("v{i}"), v).unwrap();
        }
    }
    b.finish().unwrap()
}

/// Checks results, on one thread and on several, and the kernels.
fn check(
    shape: &[usize],
    kernels: &[&str],
    build: impl Fn(&mut GraphBuilder, ValueId, &mut dyn FnMut(ValueId)) -> ValueId,
) {
    let x = [noise(shape, 99)];
    let run = |graph: &Graph, threads: usize| {
        let backend = NdarrayBackend::new().threads(threads);
        let executable = backend.compile(graph, &CompileSpec::new()).unwrap();
        let mut session = executable.session().unwrap();
        // The second run finds what the first has left in the buffers.
        session.run(&x).unwrap();
        let steps = executable.steps().into_iter().map(|s| s.kernel);
        (
            session.run(&x).unwrap()[0].clone(),
            steps.collect::<Vec<_>>(),
        )
    };
    let fused = graph(shape, false, &build);
    let (found, steps) = run(&fused, 1);
    assert_eq!(steps, kernels);
    let (expected, _) = run(&graph(shape, true, &build), 1);
    for (a, b) in found.to_f64s().iter().zip(expected.to_f64s()) {
        assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "{a} {b}");
    }
    let (many, _) = run(&fused, 3);
    assert_eq!(found.bytes().unwrap(), many.bytes().unwrap());
}

fn parameter(b: &mut GraphBuilder, shape: &[usize], seed: u64) -> ValueId {
    b.variable(&format!("p{seed}"), noise(shape, seed)).unwrap()
}

fn norm(b: &mut GraphBuilder, x: ValueId, channels: usize, seed: u64) -> ValueId {
    let [scale, offset, mean] = [0, 1, 2].map(|i| parameter(b, &[channels], seed + i));
    let content = noise(&[channels], seed + 3).to_f64s();
    let content: Vec<f32> = content.into_iter().map(|v| v as f32 + 1.5).collect();
    let variance = Tensor::new([channels], content).unwrap();
    let variance = b.variable(&format!("p{}", seed + 3), variance).unwrap();
    b.batch_norm(x, scale, offset, mean, variance, 1e-5)
        .unwrap()
}

#[test]
fn a_residual_is_added_in_the_convolution() {
    // As panels, depthwise, and by columns.
    for (groups, channels) in [(1, 12), (2, 12), (12, 12)] {
        for swapped in [false, true] {
            check(&[2, channels, 9, 7], &["conv+add+relu"], |b, x, keep| {
                let w = parameter(b, &[channels, channels / groups, 3, 3], 1);
                let bias = parameter(b, &[channels], 2);
                let y = b
                    .conv(x, w, Some(bias), Window::new(2).pad(1), groups)
                    .unwrap();
                keep(y);
                let y = if swapped { b.add(x, y) } else { b.add(y, x) }.unwrap();
                keep(y);
                b.relu(y).unwrap()
            });
        }
    }
}

#[test]
fn a_residual_is_added_in_the_product() {
    for (weights, swapped) in [(true, false), (true, true), (false, false)] {
        // One product of all rows, and one for each matrix of a batch.
        let of = if weights {
            "matmul+add+relu"
        } else {
            "matmul+add"
        };
        check(&[5, 33, 33], &[of], |b, x, keep| {
            let mut y = if weights {
                let w = parameter(b, &[33, 33], 1);
                let y = b.matmul(x, w).unwrap();
                keep(y);
                let bias = parameter(b, &[33], 2);
                b.add(y, bias).unwrap()
            } else {
                let w = parameter(b, &[5, 33, 33], 1);
                b.matmul(x, w).unwrap()
            };
            keep(y);
            y = if swapped { b.add(x, y) } else { b.add(y, x) }.unwrap();
            keep(y);
            if weights { b.relu(y).unwrap() } else { y }
        });
    }
}

#[test]
fn a_clip_is_done_in_the_convolution() {
    for groups in [1, 8] {
        check(&[1, 8, 20, 20], &["conv+clip"], |b, x, keep| {
            let w = parameter(b, &[8, 8 / groups, 3, 3], 1);
            let y = b
                .conv(x, w, None, Window::new(2).pad(1).stride(2), groups)
                .unwrap();
            keep(y);
            let low = b.scalar(DType::F32, -0.5).unwrap();
            let y = b.maximum(y, low).unwrap();
            keep(y);
            let high = b.scalar(DType::F32, 0.75).unwrap();
            b.minimum(y, high).unwrap()
        });
    }
}

#[test]
fn functions_other_than_bounds_follow_the_sum() {
    check(&[1, 8, 15, 15], &["conv+add+silu"], |b, x, keep| {
        let w = parameter(b, &[8, 8, 3, 3], 1);
        let y = b.conv(x, w, None, Window::new(2).pad(1), 1).unwrap();
        keep(y);
        let y = b.add(y, x).unwrap();
        keep(y);
        b.silu(y).unwrap()
    });
}

#[test]
fn normalizations_by_constants_are_part_of_the_weight() {
    for groups in [1, 3, 6] {
        check(&[2, 6, 10, 10], &["conv+norm+add+relu"], |b, x, keep| {
            let w = parameter(b, &[6, 6 / groups, 3, 3], 1);
            let bias = parameter(b, &[6], 2);
            let y = b
                .conv(x, w, Some(bias), Window::new(2).pad(1), groups)
                .unwrap();
            keep(y);
            let y = norm(b, y, 6, 10);
            keep(y);
            let y = b.add(y, x).unwrap();
            keep(y);
            b.relu(y).unwrap()
        });
    }
}

#[test]
fn normalizations_before_are_part_of_reading() {
    for relu in [true, false] {
        let name = if relu {
            "norm+relu+conv+norm+relu"
        } else {
            "norm+conv+norm+relu"
        };
        check(&[2, 20, 10, 10], &[name], |b, x, keep| {
            let mut y = norm(b, x, 20, 10);
            keep(y);
            if relu {
                y = b.relu(y).unwrap();
                keep(y);
            }
            let w = parameter(b, &[12, 20, 1, 1], 1);
            let y = b.conv(y, w, None, Window::new(2), 1).unwrap();
            keep(y);
            let y = norm(b, y, 12, 20);
            keep(y);
            b.relu(y).unwrap()
        });
    }
    // Padding is not normalized.
    check(&[1, 5, 6, 6], &["batch norm", "conv"], |b, x, keep| {
        let y = norm(b, x, 5, 10);
        keep(y);
        let w = parameter(b, &[8, 5, 1, 1], 1);
        b.conv(y, w, None, Window::new(2).pad(1), 1).unwrap()
    });
}

#[test]
fn dense_blocks_grow_in_place() {
    let names = ["conv", "concat", "conv", "concat", "conv", "concat", "conv"];
    check(&[1, 6, 8, 8], &names, |b, x, keep| {
        let mut features = vec![x];
        let mut y = x;
        for layer in 0..3 {
            let w = parameter(b, &[4, 6 + 4 * layer, 3, 3], layer as u64);
            let new = b.conv(y, w, None, Window::new(2).pad(1), 1).unwrap();
            features.push(new);
            y = b.concat(&features, 1).unwrap();
            keep(y);
        }
        let w = parameter(b, &[4, 18, 1, 1], 9);
        b.conv(y, w, None, Window::new(2), 1).unwrap()
    });
}

#[test]
fn what_is_read_after_a_block_has_grown_is_kept() {
    check(
        &[1, 2, 4, 4],
        &["concat", "exp", "concat", "conv", "mul"],
        |b, x, keep| {
            let first = b.concat(&[x, x], 1).unwrap();
            keep(first);
            let more = b.exp(x).unwrap();
            let second = b.concat(&[x, x, more], 1).unwrap();
            keep(second);
            let w = parameter(b, &[4, 6, 1, 1], 1);
            let y = b.conv(second, w, None, Window::new(2), 1).unwrap();
            keep(y);
            b.mul(y, first).unwrap()
        },
    );
}

#[test]
fn folded_weights_follow_their_variables() {
    let build = graph(&[1, 3, 5, 5], false, |b, x, _| {
        let w = parameter(b, &[4, 3, 3, 3], 1);
        let y = b.conv(x, w, None, Window::new(2), 1).unwrap();
        norm(b, y, 4, 10)
    });
    let backend = NdarrayBackend::new().threads(1);
    let executable = backend.compile(&build, &CompileSpec::new()).unwrap();
    let mut session = executable.session().unwrap();
    let x = [noise(&[1, 3, 5, 5], 5)];
    let before = session.run(&x).unwrap()[0].to_f64s();
    let (scale, _) = (build.values())
        .find(|(_, v)| v.name() == "p10")
        .expect("the scale");
    let offset: Vec<f64> = noise(&[4], 11).to_f64s();
    session
        .set_variable(scale, &Tensor::full(DType::F32, [4], 0.0).unwrap())
        .unwrap();
    let after = session.run(&x).unwrap()[0].to_f64s();
    assert_ne!(before, after);
    for (i, v) in after.iter().enumerate() {
        assert!((v - offset[i / 9]).abs() < 1e-6, "{v}");
    }
}

#[test]
fn pieces_are_computed_where_a_concatenation_has_them() {
    let branches = |b: &mut GraphBuilder, x| {
        let (narrow, wide) = (
            parameter(b, &[5, 6, 1, 1], 1),
            parameter(b, &[4, 6, 3, 3], 2),
        );
        let first = b.conv(x, narrow, None, Window::new(2), 1).unwrap();
        let second = b.conv(x, wide, None, Window::new(2).pad(1), 1).unwrap();
        (b.relu(first).unwrap(), b.relu(second).unwrap())
    };
    // Of a single image they lie one after the other.
    for (images, names) in [
        (1, &["conv+relu", "conv+relu", "conv"][..]),
        (2, &["conv+relu", "conv+relu", "concat", "conv"][..]),
    ] {
        check(&[images, 6, 9, 7], names, |b, x, keep| {
            let (first, second) = branches(b, x);
            let both = b.concat(&[second, first], 1).unwrap();
            keep(both);
            let w = parameter(b, &[3, 9, 1, 1], 3);
            b.conv(both, w, None, Window::new(2), 1).unwrap()
        });
    }
    // One that is read elsewhere, or twice, has memory of its own.
    check(
        &[1, 6, 9, 7],
        &["conv+relu", "conv+relu", "concat", "conv", "conv+add"],
        |b, x, keep| {
            let (first, second) = branches(b, x);
            let both = b.concat(&[first, second, second], 1).unwrap();
            keep(both);
            let (all, own) = (
                parameter(b, &[5, 13, 1, 1], 3),
                parameter(b, &[5, 5, 1, 1], 4),
            );
            let y = b.conv(first, own, None, Window::new(2), 1).unwrap();
            let z = b.conv(both, all, None, Window::new(2), 1).unwrap();
            b.add(z, y).unwrap()
        },
    );
}
