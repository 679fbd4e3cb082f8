//! How results of a run reach the caller's tensors.

use opt_core::{Backend, CompileSpec, DType, Graph, GraphBuilder, Tensor, TensorType};

use crate::NdarrayBackend;

/// Outputs that a step computes, once as it is and once reshaped, that are given twice, inputs and
/// constants.
fn graph(rows: usize) -> Graph {
    let mut b = GraphBuilder::new("outputs");
    let x = b
        .input("x", TensorType::new(DType::F32, [rows, 40]))
        .unwrap();
    let w = Tensor::new([40, 30], vec![0.5f32; 1200]).unwrap();
    let w = b.variable("w", w).unwrap();
    let y = b.matmul(x, w).unwrap();
    let z = b.relu(y).unwrap();
    let codes = b.cast(z, DType::I32).unwrap();
    let sum = b.sum(codes, &[1], false).unwrap();
    let large = b.cast(sum, DType::Bool).unwrap();
    let flat = b.flatten(codes, 0).unwrap();
    b.output("y", y).unwrap();
    b.output("again", y).unwrap();
    b.output("codes", flat).unwrap();
    b.output("sum", sum).unwrap();
    b.output("large", large).unwrap();
    b.output("w", w).unwrap();
    b.output("x", x).unwrap();
    b.finish().unwrap()
}

fn input(rows: usize, by: f32) -> Tensor {
    let x = (0..rows * 40)
        .map(|i| (i % 7) as f32 * by)
        .collect::<Vec<_>>();
    Tensor::new([rows, 40], x).unwrap()
}

#[test]
fn tensors_that_are_given_again_are_replaced() {
    for (rows, threads) in [(3, 1), (3, 2), (3000, 2)] {
        let backend = NdarrayBackend::new().threads(threads);
        let exe = backend.compile(&graph(rows), &CompileSpec::new()).unwrap();
        let mut session = exe.session().unwrap();
        let (a, b) = (input(rows, 1.0), input(rows, 2.0));
        let first = session.run(std::slice::from_ref(&a)).unwrap();
        assert_eq!(first[0], first[1]);
        assert_eq!(first[5].to_vec::<f32>().unwrap(), vec![0.5f32; 1200]);
        assert_eq!(first[6], a);
        let second = exe
            .session()
            .unwrap()
            .run(std::slice::from_ref(&b))
            .unwrap();
        assert_ne!(first[0], second[0]);
        let mut outputs = Vec::new();
        for round in 0..6 {
            let (x, expected) = match round % 2 {
                0 => (&a, &first),
                _ => (&b, &second),
            };
            // What somebody holds stays as it is.
            let held: Vec<Tensor> = match round {
                4 => outputs.clone(),
                _ => Vec::new(),
            };
            session
                .run_into(std::slice::from_ref(x), &mut outputs)
                .unwrap();
            assert_eq!(&outputs, expected, "{rows} rows, round {round}");
            assert!(held.is_empty() || held == second);
        }
        // Tensors of other types, and too many of them.
        let mut outputs = vec![Tensor::scalar(1u8); 9];
        session.run_into(&[a], &mut outputs).unwrap();
        assert_eq!(outputs, first);
    }
}

#[test]
fn a_result_is_handed_over_in_its_own_memory() {
    let mut b = GraphBuilder::new("product");
    let x = b.input("x", TensorType::new(DType::F32, [3, 40])).unwrap();
    let w = Tensor::new([40, 30], vec![0.5f32; 1200]).unwrap();
    let w = b.variable("w", w).unwrap();
    let y = b.matmul(x, w).unwrap();
    b.output("y", y).unwrap();
    let exe = NdarrayBackend::new()
        .compile(&b.finish().unwrap(), &CompileSpec::new())
        .unwrap();
    let mut session = exe.session().unwrap();
    let mut outputs = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..4 {
        session.run_into(&[input(3, 1.0)], &mut outputs).unwrap();
        addresses.push(outputs[0].bytes().unwrap().as_ptr());
    }
    // The session's memory and the caller's take turns.
    assert_ne!(addresses[0], addresses[1]);
    assert_eq!(addresses[..2], addresses[2..]);
}
