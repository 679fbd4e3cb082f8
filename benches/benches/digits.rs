//! Networks of the size of the main job: inference in f32 and in int8, and a training step.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use criterion::{Criterion, criterion_group, criterion_main};
use opt_core::nn::{Conv, Linear, ModelBuilder, zoo};
use opt_core::ops::UnaryOp;
use opt_core::{Backend, CompileSpec, Context, Graph, Pass, Result, Tensor};
use opt_data::{Scale, digits};
use opt_ndarray::{IntPath, NdarrayBackend};
use opt_quant::QuantizeStatic;
use opt_train::{Adam, CrossEntropy, StepOptions, training_graph};

/// Three convolutions of the given widths, two poolings and a linear layer.
fn cnn(widths: [usize; 3]) -> Result<Graph> {
    let mut b = ModelBuilder::new("cnn", 0);
    let mut x = b.batch("x", [1, 8, 8])?;
    for (i, width) in widths.into_iter().enumerate() {
        x = b.layer(&format!("c{i}"), Conv::new(width, [3, 3]).pad(1), x)?;
        x = b.unary(UnaryOp::Relu, x)?;
        if i > 0 {
            x = b.max_pool(x, 2)?;
        }
    }
    let x = b.flatten(x, 1)?;
    let y = b.layer("fc", Linear::new(10), x)?;
    b.output("logits", y)?;
    b.finish()
}

fn run(c: &mut Criterion, name: &str, graph: &Graph, backend: &NdarrayBackend, batch: usize) {
    let spec = CompileSpec::new().bind("batch", batch);
    let executable = backend.compile(graph, &spec).expect("the network compiles");
    let mut session = executable.session().expect("a session starts");
    let x = Tensor::full(opt_core::DType::F32, [batch, 1, 8, 8], 0.5).expect("a small tensor");
    let inputs = [x];
    let mut outputs = Vec::new();
    c.bench_function(&format!("{name}, batch {batch}"), |b| {
        b.iter(|| session.run_into(&inputs, &mut outputs).expect("it runs"));
    });
}

fn inference(c: &mut Criterion) {
    let backend = NdarrayBackend::new().threads(1);
    let data = digits().expect("the embedded digits");
    let scale = Scale::new(1.0 / 16.0, 0.0).expect("a factor");
    let samples = data.train.map(0, &scale).expect("pixels scale");
    for (name, widths) in [("small", [6, 10, 18]), ("teacher", [36, 80, 164])] {
        let graph = cnn(widths).expect("the network builds");
        let mut cx = Context::new()
            .with_backend(&backend)
            .with_calibration(&samples);
        let (int8, _) = QuantizeStatic::new()
            .apply(graph.clone(), &mut cx)
            .expect("the network quantizes");
        let portable = backend.clone().int_path(IntPath::Portable);
        for batch in [1, 64] {
            run(c, &format!("{name} f32"), &graph, &backend, batch);
            run(c, &format!("{name} int8"), &int8, &backend, batch);
            run(c, &format!("{name} int8 portable"), &int8, &portable, batch);
        }
    }
}

fn training(c: &mut Criterion) {
    let model = zoo::lenet_300_100(784, 10, 0).expect("the network builds");
    let options = StepOptions::default();
    let step =
        training_graph(&model, &CrossEntropy, &Adam::default(), &options).expect("the step builds");
    let spec = CompileSpec::new().bind("batch", 32);
    let executable = NdarrayBackend::new()
        .compile(&step, &spec)
        .expect("the step compiles");
    let mut session = executable.session().expect("a session starts");
    let inputs = [
        Tensor::full(opt_core::DType::F32, [32, 784], 0.1).expect("a small tensor"),
        Tensor::new([32], [3i64; 32]).expect("32 labels"),
        Tensor::scalar(1e-3f32),
    ];
    let mut outputs = Vec::new();
    c.bench_function("LeNet-300-100, Adam step, batch 32", |b| {
        b.iter(|| session.run_into(&inputs, &mut outputs).expect("it runs"));
    });
}

criterion_group!(benches, inference, training);
criterion_main!(benches);
