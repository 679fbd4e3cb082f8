//! Training steps run libtorch's fused kernels.

use std::collections::BTreeMap;

use opt_core::nn::zoo::{self, TransformerClassifier};
use opt_core::{Backend, CompileSpec, Graph};
use opt_tch::{Device, TchBackend};
use opt_train::{Adam, AdamW, CrossEntropy, Optimizer, Sgd, StepOptions, training_graph};

fn kernels(model: &Graph, optimizer: &dyn Optimizer) -> BTreeMap<String, usize> {
    let step = training_graph(model, &CrossEntropy, optimizer, &StepOptions::default()).unwrap();
    let spec = CompileSpec::new().bind("batch", 4);
    let executable = TchBackend::new(Device::Cpu).unwrap().compile(&step, &spec);
    let mut counts = BTreeMap::new();
    for step in executable.unwrap().steps() {
        *counts.entry(step.kernel).or_insert(0) += 1;
    }
    counts
}

#[test]
fn x() {
    println!("lenet {:#?}", kernels(&zoo::lenet5([1, 28, 28], 10, 0).unwrap(), &Adam::default()));
    println!("resnet {:#?}", kernels(&zoo::resnet20([3, 32, 32], 10, 0).unwrap(), &Sgd::nesterov(0.9)));
    let t = TransformerClassifier { vocabulary: 100, steps: 16, width: 32, heads: 4, feedforward: 64, layers: 2, dropout: 0.1, classes: 5 };
    println!("encoder {:#?}", kernels(&zoo::transformer_classifier(&t, 0).unwrap(), &AdamW::default()));
}
