//! After the first run, a run allocates nothing.

#![allow(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use opt_core::autodiff::grad;
use opt_core::ops::Window;
use opt_core::pass::{MixedPrecision, TrainMode};
use opt_core::{Backend, CompileSpec, DType, Graph, GraphBuilder, Tensor, TensorType, ValueId};
use opt_ndarray::NdarrayBackend;

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller vouches.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller vouches.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn variable(b: &mut GraphBuilder, name: &str, shape: &[usize]) -> ValueId {
    let len: usize = shape.iter().product();
    let data: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 0.1).collect();
    b.variable(name, Tensor::new(shape, data).unwrap()).unwrap()
}

/// The loss, and a step of gradient descent.
fn descend(b: &mut GraphBuilder, logits: ValueId, labels: ValueId, parameters: &[ValueId]) {
    let losses = b.softmax_cross_entropy(logits, labels).unwrap();
    let loss = b.mean_all(losses).unwrap();
    let gradients = grad(b, loss, parameters).unwrap();
    for &p in parameters {
        let step = gradients.of(p).unwrap();
        let step = b.mul_scalar(step, 0.1).unwrap();
        let new = b.sub(p, step).unwrap();
        b.assign(p, new).unwrap();
    }
    b.output("loss", loss).unwrap();
    b.output("logits", logits).unwrap();
}

/// A training step of a small network, by plain gradient descent.
fn training_step(features: impl Fn(&mut GraphBuilder, ValueId) -> (ValueId, Vec<ValueId>)) {
    let mut b = GraphBuilder::new("step");
    let x = b
        .input("x", TensorType::new(DType::F32, [16, 1, 8, 8]))
        .unwrap();
    let labels = b
        .input("labels", TensorType::new(DType::I64, [16]))
        .unwrap();
    let (h, mut parameters) = features(&mut b, x);
    let width = b.type_of(h).shape[1].fixed().unwrap();
    let w = variable(&mut b, "w", &[width, 10]);
    let bias = variable(&mut b, "bias", &[10]);
    parameters.extend([w, bias]);
    let logits = b.matmul(h, w).unwrap();
    let logits = b.add(logits, bias).unwrap();
    descend(&mut b, logits, labels, &parameters);
    runs_without_allocating(&b.finish().unwrap());
}

/// The same in mixed precision: products and convolutions in `bf16`, forward and backward.
fn mixed_training_step() {
    let mut b = GraphBuilder::new("step");
    let x = b
        .input("x", TensorType::new(DType::F32, [16, 1, 8, 8]))
        .unwrap();
    let labels = b
        .input("labels", TensorType::new(DType::I64, [16]))
        .unwrap();
    let mut parameters = Vec::new();
    let w = variable(&mut b, "w1", &[4, 1, 3, 3]);
    let bias = variable(&mut b, "b1", &[4]);
    parameters.extend([w, bias]);
    let h = b.conv(x, w, Some(bias), Window::new(2).pad(1), 1).unwrap();
    let [scale, shift, mean] = ["scale", "shift", "mean"].map(|n| variable(&mut b, n, &[4]));
    let var = Tensor::full(DType::F32, [4], 1.0).unwrap();
    let var = b.variable("var", var).unwrap();
    parameters.extend([scale, shift]);
    let h = b.batch_norm(h, scale, shift, mean, var, 1e-5).unwrap();
    let h = b.relu(h).unwrap();
    let h = b.max_pool(h, 2).unwrap();
    let h = b.flatten(h, 1).unwrap();
    let w = variable(&mut b, "w", &[64, 10]);
    let bias = variable(&mut b, "bias", &[10]);
    parameters.extend([w, bias]);
    let logits = b.matmul(h, w).unwrap();
    let logits = b.add(logits, bias).unwrap();
    b.output("logits", logits).unwrap();
    let (graph, _) = MixedPrecision::bf16().convert(b.finish().unwrap()).unwrap();
    let (graph, _) = TrainMode::switch(graph).unwrap();
    let mut b = GraphBuilder::extend(graph);
    let logits = b.graph().output("logits").unwrap();
    b.clear_outputs();
    descend(&mut b, logits, labels, &parameters);
    runs_without_allocating(&b.finish().unwrap());
}

fn runs_without_allocating(graph: &Graph) {
    let exe = NdarrayBackend::new()
        .threads(1)
        .compile(graph, &CompileSpec::new())
        .unwrap();
    let mut session = exe.session().unwrap();
    let x: Vec<f32> = (0..16 * 64)
        .map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0)
        .collect();
    let labels: Vec<i64> = (0..16).map(|i| i % 10).collect();
    let inputs = [
        Tensor::new([16, 1, 8, 8], x).unwrap(),
        Tensor::new([16], labels).unwrap(),
    ];
    let mut outputs = Vec::new();
    session.run_into(&inputs, &mut outputs).unwrap();
    let first = outputs[0].item().unwrap();
    session.run_into(&inputs, &mut outputs).unwrap();
    let before = COUNT.load(Ordering::Relaxed);
    for _ in 0..20 {
        session.run_into(&inputs, &mut outputs).unwrap();
    }
    assert_eq!(
        COUNT.load(Ordering::Relaxed) - before,
        0,
        "{:?}",
        exe.steps()
    );
    let last = outputs[0].item().unwrap();
    assert!(last < first, "the loss went from {first} to {last}");
}

#[test]
fn a_run_allocates_nothing() {
    training_step(|b, x| {
        let x = b.flatten(x, 1).unwrap();
        let w = variable(b, "w1", &[64, 32]);
        let bias = variable(b, "b1", &[32]);
        let h = b.matmul(x, w).unwrap();
        let h = b.add(h, bias).unwrap();
        (b.tanh(h).unwrap(), vec![w, bias])
    });
    training_step(|b, x| {
        let w = variable(b, "w1", &[4, 1, 3, 3]);
        let bias = variable(b, "b1", &[4]);
        let h = b.conv(x, w, Some(bias), Window::new(2).pad(1), 1).unwrap();
        let h = b.relu(h).unwrap();
        let h = b.max_pool(h, 2).unwrap();
        (b.flatten(h, 1).unwrap(), vec![w, bias])
    });
    mixed_training_step();
}
