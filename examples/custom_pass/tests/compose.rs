//! The op, pass, criterion and optimizer of this crate, composed with those of the libraries.

use custom_pass::{FromMean, Lion, ReluToSnake, Snake};
use opt_core::nn::zoo;
use opt_core::{Context, DType, GraphBuilder, Pass, Pipeline, Tensor, TensorType};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_prune::{ChannelPrune, UnstructuredPrune};
use opt_suite::Case;
use opt_train::{Constant, CrossEntropy, FineTune, Trainer};

/// Points in two classes by the parity of the unit square of a checkerboard they lie in.
fn checkerboard(n: usize) -> TensorDataset {
    let stream = opt_core::random::Philox::new(0);
    let (mut points, mut labels) = (Vec::new(), Vec::new());
    for i in 0..n as u64 {
        let [x, y] = [0, 1].map(|step| stream.uniform(step, i) * 2.0);
        points.extend([x as f32, y as f32]);
        labels.push((x.floor() + y.floor()) as i64 % 2);
    }
    TensorDataset::new(vec![
        Tensor::new([n, 2], points).unwrap(),
        Tensor::new([n], labels).unwrap(),
    ])
    .unwrap()
}

#[test]
fn the_ops_gradient_agrees_with_differences() {
    let mut b = GraphBuilder::new("snake");
    let x = b.input("x", TensorType::new(DType::F64, [3, 2])).unwrap();
    let y = Snake { frequency: 1.5 }.build(&mut b, x).unwrap();
    b.output("y", y).unwrap();
    let x = Tensor::new([3, 2], [0.3f64, -1.2, 0.0, 2.0, 0.7, -0.4]).unwrap();
    Case::gradients("snake", b.finish().unwrap(), vec![x])
        .run(&NdarrayBackend::new())
        .unwrap();
}

#[test]
fn everything_composes() {
    let (backend, data) = (NdarrayBackend::new(), checkerboard(512));
    let train = FineTune(
        Trainer::new(CrossEntropy, Lion::default(), Constant(2e-3))
            .epochs(20)
            .batch_size(32),
    );
    let pipeline = Pipeline::new()
        .then(ReluToSnake { frequency: 2.0 })
        .then(ChannelPrune::new(0.5).criterion(FromMean))
        .then(UnstructuredPrune::new(0.3).criterion(FromMean))
        .then(train);
    let mut cx = Context::new().with_backend(&backend).with_training(&data);
    let model = zoo::lenet_300_100(2, 2, 1).unwrap();
    let (small, reports) = pipeline.run(model.clone(), &mut cx).unwrap();
    assert_eq!(reports.len(), 4);
    assert_eq!(reports[0].1.changed, 2, "two ReLUs");
    assert!(small.parameter_count() * 3 < model.parameter_count());
    assert!(reports[3].1.figures["loss"] < 0.4, "{}", reports[3].1);
    small.verify().unwrap();
    let again = ReluToSnake { frequency: 2.0 }
        .apply(small, &mut cx)
        .unwrap();
    assert_eq!(again.1.changed, 0);
}
