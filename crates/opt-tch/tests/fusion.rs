//! Training steps run libtorch's fused kernels, and what they compute is what the nodes say.

use std::collections::BTreeMap;

use opt_core::nn::zoo::{self, LstmClassifier, TransformerClassifier};
use opt_core::{Backend, CompileSpec, DType, Graph, Tensor};
use opt_tch::{Device, TchBackend};
use opt_train::{Adam, AdamW, CrossEntropy, Optimizer, RmsProp, Sgd, StepOptions, training_graph};

const BATCH: usize = 4;

fn backend() -> TchBackend {
    TchBackend::new(Device::Cpu).unwrap()
}

fn spec() -> CompileSpec {
    CompileSpec::new().bind("batch", BATCH)
}

fn step(model: &Graph, optimizer: &dyn Optimizer) -> Graph {
    training_graph(model, &CrossEntropy, optimizer, &StepOptions::default()).unwrap()
}

/// How often each kernel runs in a step.
fn kernels(step: &Graph) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for step in backend().compile(step, &spec()).unwrap().steps() {
        *counts.entry(step.kernel).or_insert(0) += 1;
    }
    counts
}

fn encoder(dropout: f64) -> Graph {
    let config = TransformerClassifier {
        vocabulary: 50,
        steps: 16,
        width: 32,
        heads: 4,
        feedforward: 64,
        layers: 2,
        dropout,
        classes: 5,
    };
    zoo::transformer_classifier(&config, 1).unwrap()
}

fn lstm() -> Graph {
    let config = LstmClassifier {
        vocabulary: 50,
        steps: 16,
        width: 8,
        hidden: 12,
        bidirectional: true,
        classes: 5,
    };
    zoo::lstm_classifier(&config, 1).unwrap()
}

#[test]
fn steps_run_fused_kernels() {
    for (graph, expected) in [
        (
            step(&zoo::lenet5([1, 28, 28], 10, 0).unwrap(), &Adam::default()),
            vec![
                ("convolution", 2),
                ("convolution_backward", 2),
                ("max_pool_backward", 2),
                ("threshold_backward", 1),
                ("addmm", 2),
                ("cross_entropy_backward", 1),
                ("_fused_adam_", 1),
                ("where", 0),
            ],
        ),
        (
            step(
                &zoo::resnet20([3, 32, 32], 10, 0).unwrap(),
                &Sgd::nesterov(0.9),
            ),
            vec![
                ("convolution_backward", 19),
                ("batch_norm", 19),
                ("batch_norm_backward", 19),
                ("threshold_backward", 19),
                ("_fused_sgd_", 1),
                ("where", 0),
            ],
        ),
        (
            step(&encoder(0.1), &AdamW::default()),
            vec![
                ("attention_backward", 2),
                ("layer_norm_backward", 5),
                ("gelu_backward", 2),
                ("_fused_adamw_", 1),
                ("softmax", 0),
                ("erf", 0),
            ],
        ),
        (
            step(&lstm(), &Sgd::momentum(0.9)),
            vec![("lstm", 1), ("lstm_backward", 1), ("_fused_sgd_", 1)],
        ),
    ] {
        let counts = kernels(&graph);
        for (kernel, times) in expected {
            let found = counts.get(kernel).copied().unwrap_or(0);
            assert_eq!(found, times, "{kernel} in {}: {counts:#?}", graph.name());
        }
    }
}

/// Losses and one parameter after some steps.
fn run(backend: &TchBackend, step: &Graph, steps: usize) -> Vec<Tensor> {
    let mut inputs = Vec::new();
    for &id in step.inputs() {
        let value = step.value(id);
        let shape: Vec<usize> = value
            .ty()
            .shape
            .dims()
            .iter()
            .map(|d| d.as_fixed().unwrap_or(BATCH))
            .collect();
        let len: usize = shape.iter().product();
        inputs.push(match (value.name(), value.ty().dtype) {
            ("lr", _) => Tensor::scalar(0.01f32),
            (_, DType::I64) => {
                let ids: Vec<i64> = (0..len as i64).map(|i| i * 7 % 5).collect();
                Tensor::new(&shape[..], ids).unwrap()
            }
            (_, dtype) => opt_suite::uniform(dtype, &shape, 5, -1.0, 1.0).unwrap(),
        });
    }
    let mut session = backend.compile(step, &spec()).unwrap().session().unwrap();
    let mut out: Vec<Tensor> = (0..steps)
        .map(|_| session.run(&inputs).unwrap().swap_remove(0))
        .collect();
    let parameters = step.variables().map(|(id, ..)| id);
    out.extend(parameters.map(|id| session.variable(id).unwrap()));
    out
}

#[test]
fn fused_steps_compute_what_the_nodes_say() {
    let lenet = zoo::lenet5([1, 28, 28], 10, 0).unwrap();
    let resnet = zoo::resnet20([3, 16, 16], 10, 0).unwrap();
    let decayed = Sgd {
        weight_decay: 0.01,
        ..Sgd::momentum(0.9)
    };
    let adam = Adam {
        weight_decay: 0.01,
        ..Adam::default()
    };
    let steps: [(&str, Graph); 7] = [
        ("Adam", step(&lenet, &adam)),
        ("SGD", step(&lenet, &Sgd::default())),
        ("momentum", step(&lenet, &decayed)),
        ("RMSprop", step(&lenet, &RmsProp::default())),
        ("Nesterov", step(&resnet, &Sgd::nesterov(0.9))),
        ("AdamW", step(&encoder(0.1), &AdamW::default())),
        ("LSTM", step(&lstm(), &Sgd::momentum(0.9))),
    ];
    for (name, step) in &steps {
        let fused = run(&backend(), step, 5);
        let plain = run(&backend().fusion(false), step, 5);
        for (i, (f, p)) in fused.iter().zip(&plain).enumerate() {
            // Where a gradient is a sum that cancels, its quotient has few digits.
            let tolerance = if matches!(*name, "Adam" | "AdamW" | "RMSprop") {
                2e-3
            } else {
                2e-4
            };
            opt_suite::close(f, p, tolerance).unwrap_or_else(|e| panic!("{name}, value {i}: {e}"));
        }
    }
}
