//! Networks and data that the tests share.

#![allow(dead_code, reason = "not every test file uses all of it")]

use opt_core::nn::{BatchNorm, Conv, Linear, ModelBuilder};
use opt_core::{Backend, Graph, Tensor};
use opt_data::{Scale, TensorDataset, digits};
use opt_ndarray::NdarrayBackend;
use opt_train::{Adam, Constant, CrossEntropy, Trainer};

/// Two convolutions with batch normalization and pooling, and a linear layer: layers `c1`, `n1`,
/// `c2`, `n2` and `fc` for images `[1, 8, 8]` of ten classes.
pub(crate) fn cnn(name: &str, widths: [usize; 2], seed: u64) -> Graph {
    let mut b = ModelBuilder::new(name, seed);
    let mut x = b.batch("x", [1, 8, 8]).unwrap();
    for (i, width) in widths.into_iter().enumerate() {
        let (conv, norm) = (format!("c{}", i + 1), format!("n{}", i + 1));
        let layer = Conv::new(width, [3, 3]).pad(1).bias(false);
        x = b.layer(&conv, layer, x).unwrap();
        x = b.layer(&norm, BatchNorm::new(), x).unwrap();
        x = b.relu(x).unwrap();
        x = b.max_pool(x, 2).unwrap();
    }
    let x = b.flatten(x, 1).unwrap();
    let y = b.layer("fc", Linear::new(10), x).unwrap();
    b.output("logits", y).unwrap();
    b.finish().unwrap()
}

/// A hidden layer `hidden` with a ReLU `relu` and a linear layer `head`, for 64 pixels.
pub(crate) fn mlp(name: &str, hidden: usize, seed: u64) -> Graph {
    let mut b = ModelBuilder::new(name, seed);
    let x = b.batch("x", [1, 8, 8]).unwrap();
    let x = b.flatten(x, 1).unwrap();
    let x = b.layer("hidden", Linear::new(hidden), x).unwrap();
    let x = b.relu(x).unwrap();
    let y = b.layer("head", Linear::new(10), x).unwrap();
    b.output("logits", y).unwrap();
    b.finish().unwrap()
}

/// Handwritten digits in `[0, 1]`: the first `train` to train on, the first `test` to test.
pub(crate) fn images(train: usize, test: usize) -> (TensorDataset, TensorDataset) {
    let all = digits().unwrap();
    let scale = Scale::new(1.0 / 16.0, 0.0).unwrap();
    let part = |data: &TensorDataset, n: usize| {
        let indices: Vec<usize> = (0..n).collect();
        data.select(&indices).unwrap().map(0, &scale).unwrap()
    };
    (part(&all.train, train), part(&all.test, test))
}

/// The examples without their labels.
pub(crate) fn unlabelled(data: &TensorDataset) -> TensorDataset {
    TensorDataset::new(vec![data.fields()[0].clone()]).unwrap()
}

pub(crate) fn trainer(lr: f64) -> Trainer {
    Trainer::new(CrossEntropy, Adam::default(), Constant(lr))
}

/// The content of all variables, by name.
pub(crate) fn weights(graph: &Graph) -> Vec<(String, Vec<f64>)> {
    graph
        .variables()
        .map(|(_, v, t)| (v.name().to_string(), t.to_f64s()))
        .collect()
}

/// A model's logits for a data set.
pub(crate) fn logits(graph: &Graph, data: &TensorDataset) -> Tensor {
    NdarrayBackend::new()
        .run_once(graph, &data.fields()[..1])
        .unwrap()
        .swap_remove(0)
}

/// The share of the examples whose largest logit is that of `expected`'s row.
pub(crate) fn agreement(found: &Tensor, expected: &[usize]) -> f64 {
    let classes = found.shape()[1];
    let found = found.to_f64s();
    let right = expected.iter().enumerate().filter(|(i, e)| {
        let row = &found[i * classes..(i + 1) * classes];
        (0..classes).all(|c| row[c] <= row[**e])
    });
    right.count() as f64 / expected.len() as f64
}

pub(crate) fn accuracy(graph: &Graph, data: &TensorDataset) -> f64 {
    let labels = data.fields()[1].to_vec::<i64>().unwrap();
    let labels: Vec<usize> = labels.into_iter().map(|l| l as usize).collect();
    agreement(&logits(graph, data), &labels)
}
