//! Fused and unfused, on one thread and on several: the same results.

use std::sync::Arc;

use opt_core::ops::{UnaryOp, Window};
use opt_core::random::Philox;
use opt_core::{CompileSpec, DType, Executable, Graph, GraphBuilder, Tensor, TensorType, ValueId};
use proptest::prelude::*;

use crate::compile;
use crate::kernels::team::Team;
use crate::session::CpuExecutable;

/// Runs a graph once, fused or not.
pub(super) fn run(graph: &Graph, inputs: &[Tensor], threads: usize, fusion: bool) -> Vec<Tensor> {
    let plan = compile::compile_with(
        graph,
        &CompileSpec::new(),
        threads,
        fusion,
        crate::IntPath::Auto,
    )
    .unwrap();
    let exe = CpuExecutable {
        plan: Arc::new(plan),
        team: Some(Team::new(threads).unwrap()),
    };
    let mut session = exe.session().unwrap();
    // The second run finds what the first has left in the buffers.
    session.run(inputs).unwrap();
    session.run(inputs).unwrap()
}

/// Numbers between -1 and 1.
pub(super) fn noise(shape: &[usize], seed: u64) -> Tensor {
    let stream = Philox::new(seed);
    let len: usize = shape.iter().product();
    let data: Vec<f32> = (0..len)
        .map(|i| stream.uniform(0, i as u64) as f32 * 2.0 - 1.0)
        .collect();
    Tensor::new(shape, data).unwrap()
}

/// The kernels of a graph.
pub(super) fn steps(graph: &Graph) -> Vec<String> {
    let plan = compile::compile(graph, &CompileSpec::new(), 1, crate::IntPath::Auto).unwrap();
    plan.infos().into_iter().map(|s| s.kernel).collect()
}

/// A graph of random nodes, from a list of numbers.
fn random_graph(choices: &[(u8, u8, u8)], shape: &[usize]) -> (Graph, Vec<Tensor>) {
    let mut b = GraphBuilder::new("random");
    let mut inputs = Vec::new();
    let mut values: Vec<ValueId> = Vec::new();
    let rank = shape.len();
    // The whole shape, one row, one column, a scalar.
    let shapes = [
        shape.to_vec(),
        shape[rank - 1..].to_vec(),
        [&shape[..rank - 1], &[1]].concat(),
        vec![],
    ];
    for (i, shape) in shapes.iter().enumerate() {
        let ty = TensorType::new(DType::F32, shape.as_slice());
        values.push(b.input(&format!("x{i}"), ty).unwrap());
        inputs.push(noise(shape, i as u64));
    }
    let width = shape[rank - 1];
    let w = b.variable("w", noise(&[width, width], 9)).unwrap();
    for &(kind, i, j) in choices {
        let x = values[i as usize % values.len()];
        let y = values[j as usize % values.len()];
        let full = b.type_of(x).shape == shapes[0].as_slice().into();
        let new = match kind % 14 {
            0 => b.add(x, y),
            1 => b.mul(x, y),
            2 => b.sub(x, y),
            3 => b.maximum(x, y),
            4 => b.unary(UnaryOp::Tanh, x),
            5 => b.unary(UnaryOp::Sigmoid, x),
            6 => b.unary(UnaryOp::Relu, x),
            7 => b.less(x, y).and_then(|c| b.select(c, x, y)),
            8 => b.greater(x, y).and_then(|c| b.cast(c, DType::F32)),
            9 if full => b.sum(x, &[rank - 1], true),
            10 if full => b.matmul(x, w),
            11 if full => b.softmax(x, rank - 1),
            12 => b.expand(x, shapes[0].as_slice()),
            _ => b.mul_scalar(x, 0.5),
        };
        values.push(new.unwrap());
    }
    for (i, &v) in values[4..].iter().rev().take(3).enumerate() {
        b.output(&format!("y{i}"), v).unwrap();
    }
    (b.finish().unwrap(), inputs)
}

#[test]
fn bias_and_activation_become_part_of_the_convolution() {
    for groups in [1, 4] {
        let mut b = GraphBuilder::new("conv");
        let x = b
            .input("x", TensorType::new(DType::F32, [2, 4, 6, 6]))
            .unwrap();
        let w = b.variable("w", noise(&[8, 4 / groups, 3, 3], 1)).unwrap();
        let bias = b.variable("bias", noise(&[8, 1, 1], 2)).unwrap();
        let y = b.conv(x, w, None, Window::new(2).pad(1), groups).unwrap();
        let y = b.add(bias, y).unwrap();
        let y = b.relu(y).unwrap();
        let y = b.mul_scalar(y, 2.0).unwrap();
        b.output("y", y).unwrap();
        let graph = b.finish().unwrap();
        assert_eq!(steps(&graph), ["conv+relu", "mul"]);
        let x = noise(&[2, 4, 6, 6], 3);
        let fused = run(&graph, std::slice::from_ref(&x), 1, true);
        let plain = run(&graph, &[x], 1, false);
        for (a, b) in fused[0].to_f64s().iter().zip(plain[0].to_f64s()) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn fused_is_unfused(
        choices in prop::collection::vec((0u8..255, 0u8..255, 0u8..255), 1..25),
        rows in 1usize..4, width in 1usize..300,
    ) {
        let (graph, inputs) = random_graph(&choices, &[2, rows, width]);
        let fused = run(&graph, &inputs, 1, true);
        let plain = run(&graph, &inputs, 1, false);
        for (a, b) in fused.iter().zip(&plain) {
            prop_assert_eq!(a.shape(), b.shape());
            for (a, b) in a.to_f64s().iter().zip(b.to_f64s()) {
                prop_assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{} {}", a, b);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn threads_do_not_change_results(
        choices in prop::collection::vec((0u8..255, 0u8..255, 0u8..255), 4..16),
        rows in 100usize..200, width in 150usize..260,
    ) {
        let (graph, inputs) = random_graph(&choices, &[12, rows, width]);
        let one = run(&graph, &inputs, 1, true);
        for threads in [2, 5] {
            let many = run(&graph, &inputs, threads, true);
            for (a, b) in one.iter().zip(&many) {
                prop_assert!(a.bytes().unwrap() == b.bytes().unwrap());
            }
        }
    }
}
