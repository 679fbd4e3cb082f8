//! Convolutions with weights that change, and both gradients: in `f32`, each on the way that serves its
//! sizes, beside `f64`, where all are products with columns.

use opt_core::ops::{Conv, ConvGradWeight, ConvTranspose, Op, Window};
use opt_core::random::Philox;
use opt_core::{Backend, DType, GraphBuilder, Tensor, TensorType};

use crate::NdarrayBackend;

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let stream = Philox::new(seed);
    let len: usize = shape.iter().product();
    let data: Vec<f64> = (0..len as u64)
        .map(|i| f64::from(stream.uniform(0, i) as f32 - 0.5))
        .collect();
    Tensor::from_f64s(DType::F64, shape, &data).unwrap()
}

fn run(op: &Op, inputs: &[Tensor], threads: usize) -> Tensor {
    let mut b = GraphBuilder::new("test");
    let mut ids = Vec::new();
    for (i, x) in inputs.iter().enumerate() {
        let ty = TensorType::new(x.dtype(), x.shape());
        ids.push(b.input(&format!("x{i}"), ty).unwrap());
    }
    let y = b.node(op.clone(), &ids).unwrap()[0];
    b.output("y", y).unwrap();
    let backend = NdarrayBackend::new().threads(threads);
    let graph = b.finish().unwrap();
    backend.run_once(&graph, inputs).unwrap().remove(0)
}

fn check(op: &Op, inputs: &[Tensor]) -> Tensor {
    let expected = run(op, inputs, 1);
    let single: Vec<Tensor> = inputs.iter().map(|x| x.cast(DType::F32)).collect();
    let found = run(op, &single, 1);
    for (i, (found, expected)) in found.to_f64s().iter().zip(expected.to_f64s()).enumerate() {
        let off = (found - expected).abs();
        assert!(
            off < 2e-5 * (1.0 + expected.abs()),
            "{op:?}, {i}: {found}, {expected}"
        );
    }
    let threaded = run(op, &single, 3);
    assert_eq!(found.to_f64s(), threaded.to_f64s());
    expected
}

#[test]
fn convolutions_and_their_gradients_agree_with_columns() {
    // Image, kernel, stride, padding, groups, and channels of a group.
    for (size, kernel, stride, pad, groups, channels) in [
        ([12, 10], [3, 3], 1, 1, 1, [16, 24]),
        ([8, 8], [3, 3], 1, 1, 1, [17, 16]),
        ([14, 15], [3, 3], 1, 0, 1, [20, 17]),
        ([13, 16], [3, 3], 2, 1, 1, [5, 20]),
        ([9, 9], [1, 1], 2, 0, 1, [6, 9]),
        ([12, 12], [5, 5], 1, 2, 1, [3, 6]),
        ([15, 14], [7, 7], 2, 3, 1, [3, 8]),
        ([10, 11], [3, 3], 2, 1, 2, [4, 8]),
        ([10, 11], [3, 3], 1, 1, 3, [2, 2]),
        ([10, 12], [3, 3], 2, 1, 7, [1, 1]),
        ([10, 12], [3, 3], 1, 1, 7, [1, 1]),
    ] {
        let window = Window {
            strides: [stride; 2].into_iter().collect(),
            dilations: [1, 1].into_iter().collect(),
            pads_begin: [pad; 2].into_iter().collect(),
            pads_end: [pad; 2].into_iter().collect(),
        };
        let [c, o] = channels;
        let x = noise(&[9, groups * c, size[0], size[1]], 1);
        let w = noise(&[groups * o, c, kernel[0], kernel[1]], 2);
        let conv = Conv {
            window: window.clone(),
            groups,
        };
        let bias = noise(&[groups * o], 3);
        let y = check(&conv.into(), &[x.clone(), w.clone(), bias]);
        let g = noise(y.shape(), 4);
        let rest = [0, 1].map(|a| (size[a] + 2 * pad - kernel[a]) % stride);
        let transpose = ConvTranspose {
            window: window.clone(),
            groups,
            output_padding: rest.into_iter().collect(),
        };
        let back = check(&transpose.into(), &[g.clone(), w]);
        assert_eq!(back.shape(), x.shape());
        let by_weight = ConvGradWeight {
            window,
            groups,
            kernel: kernel.into_iter().collect(),
        };
        check(&by_weight.into(), &[x, g]);
    }
}
