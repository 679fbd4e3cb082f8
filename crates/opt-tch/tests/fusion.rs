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

/// Models in f64, so that nothing but a wrong formula makes a difference.
mod exact {
    use opt_core::nn::{
        BatchNorm, Conv, Embedding, LayerNorm, Linear, Lstm, ModelBuilder, TransformerEncoderLayer,
    };
    use opt_core::ops::UnaryOp;
    use opt_core::{DType, Graph, Result};

    pub(super) fn convolutions() -> Result<Graph> {
        let mut m = ModelBuilder::new("convolutions", 3).with_dtype(DType::F64);
        let x = m.batch("x", [2, 8, 8])?;
        let x = m.layer("c1", Conv::new(4, [3, 3]).pad(1), x)?;
        let x = m.layer("n1", BatchNorm::new(), x)?;
        let y = m.relu(x)?;
        let z = m.layer("c2", Conv::new(4, [3, 3]).pad(1).bias(false), y)?;
        let z = m.unary(UnaryOp::Gelu { tanh: true }, z)?;
        let x = m.add(y, z)?;
        let x = m.max_pool(x, 2)?;
        let x = m.unary(UnaryOp::LeakyRelu { alpha: 0.1 }, x)?;
        let x = m.flatten(x, 1)?;
        let y = m.layer("fc", Linear::new(5), x)?;
        m.output("logits", y)?;
        m.finish()
    }

    pub(super) fn encoder() -> Result<Graph> {
        let mut m = ModelBuilder::new("encoder", 3).with_dtype(DType::F64);
        let tokens = m.batch_of(DType::I64, "tokens", [7])?;
        let mut x = m.layer("embedding", Embedding::new(9, 8), tokens)?;
        for (name, causal) in [("a", false), ("b", true)] {
            let layer = TransformerEncoderLayer::new(2, 12)
                .activation(UnaryOp::Gelu { tanh: false })
                .dropout(0.1)
                .norm_first(causal)
                .causal(causal);
            x = m.layer(name, layer, x)?;
        }
        let x = m.layer("norm", LayerNorm::new(), x)?;
        let x = m.mean(x, &[1], false)?;
        let y = m.layer("fc", Linear::new(5), x)?;
        m.output("logits", y)?;
        m.finish()
    }

    pub(super) fn lstm() -> Result<Graph> {
        let mut m = ModelBuilder::new("lstm", 3).with_dtype(DType::F64);
        let tokens = m.batch_of(DType::I64, "tokens", [7])?;
        let x = m.layer("embedding", Embedding::new(9, 4), tokens)?;
        let states = m.scope("lstm", |m| Lstm::new(6).states(m, x))?;
        let y = m.layer("fc", Linear::new(5), states.last)?;
        m.output("logits", y)?;
        m.finish()
    }
}

#[test]
fn fused_steps_compute_what_the_nodes_say() {
    let decay = 0.01;
    // A key's bias has a gradient of 0 but for rounding, which the usual 1e-8 would blow up.
    let plain = Adam {
        eps: 1e-3,
        ..Adam::default()
    };
    let adam = Adam {
        weight_decay: decay,
        ..plain
    };
    let decoupled = AdamW {
        adam: plain,
        ..AdamW::default()
    };
    let rms = RmsProp {
        eps: 1e-3,
        ..RmsProp::default()
    };
    let momentum = Sgd {
        weight_decay: decay,
        ..Sgd::momentum(0.9)
    };
    let nesterov = Sgd {
        weight_decay: decay,
        ..Sgd::nesterov(0.9)
    };
    let optimizers: [(&dyn Optimizer, &str); 7] = [
        (&adam, "_fused_adam_"),
        (&decoupled, "_fused_adamw_"),
        (&plain, "_fused_adam_"),
        (&Sgd::default(), "_fused_sgd_"),
        (&momentum, "_fused_sgd_"),
        (&nesterov, "_fused_sgd_"),
        (&rms, "sqrt"),
    ];
    for model in [exact::convolutions(), exact::encoder(), exact::lstm()] {
        let model = model.unwrap();
        for (optimizer, kernel) in optimizers {
            let step = step(&model, optimizer);
            assert!(kernels(&step).contains_key(kernel), "{kernel}");
            let fused = run(&backend(), &step, 5);
            let plain = run(&backend().fusion(false), &step, 5);
            for (i, (f, p)) in fused.iter().zip(&plain).enumerate() {
                opt_suite::close(f, p, 1e-8).unwrap_or_else(|e| {
                    panic!("{} with {optimizer:?}, value {i}: {e}", model.name())
                });
            }
        }
    }
}
