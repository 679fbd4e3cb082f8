//! What profiles say, and that profiling changes nothing.

use std::collections::HashMap;

use opt_core::autodiff::grad;
use opt_core::{
    Backend, CompileSpec, DType, ErrorKind, Executable, Graph, GraphBuilder, ProfileOptions,
    Tensor, TensorType, ValueId,
};

use super::f32s;
use crate::NdarrayBackend;

fn ramp(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    f32s(
        shape,
        &(0..len).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>(),
    )
}

/// A step of gradient descent of a layer with a bias and a ReLU, and its weight.
fn training_step() -> (Graph, ValueId) {
    let mut b = GraphBuilder::new("step");
    let x = b.input("x", TensorType::new(DType::F32, [64, 32])).unwrap();
    let w = b.variable("w", ramp(&[32, 16])).unwrap();
    let bias = b.variable("bias", ramp(&[16])).unwrap();
    let y = b.matmul(x, w).unwrap();
    let y = b.add(y, bias).unwrap();
    let y = b.relu(y).unwrap();
    let y = b.mul(y, y).unwrap();
    let loss = b.mean_all(y).unwrap();
    let gradients = grad(&mut b, loss, &[w, bias]).unwrap();
    for p in [w, bias] {
        let step = b.mul_scalar(gradients.of(p).unwrap(), 0.1).unwrap();
        let new = b.sub(p, step).unwrap();
        b.assign(p, new).unwrap();
    }
    b.output("loss", loss).unwrap();
    (b.finish().unwrap(), w)
}

fn compile(graph: &Graph, threads: usize) -> std::sync::Arc<dyn Executable> {
    let backend = NdarrayBackend::new().threads(threads);
    backend.compile(graph, &CompileSpec::new()).unwrap()
}

#[test]
fn every_step_is_there_and_the_times_add_up() {
    let (graph, _) = training_step();
    let executable = compile(&graph, 1);
    let options = ProfileOptions::new().warmup(1).runs(9);
    let profile = executable.profile(&[ramp(&[64, 32])], &options).unwrap();
    assert_eq!((&profile.backend[..], profile.threads), ("ndarray", 1));
    assert_eq!(profile.runs, 9);
    let steps: Vec<_> = profile
        .steps
        .iter()
        .map(|s| (s.kernel.clone(), s.nodes.clone()))
        .collect();
    let compiled: Vec<_> = executable
        .steps()
        .into_iter()
        .map(|s| (s.kernel, s.nodes))
        .collect();
    assert_eq!(steps, compiled);
    // Each run's steps lie within the run, so the shortest times lie within the shortest run.
    let shortest: u64 = profile.steps.iter().map(|s| s.time.min_ns).sum();
    assert!(shortest > 0 && profile.total.min_ns >= shortest + profile.outside.min_ns);
    for step in &profile.steps {
        assert!(step.time.median_ns >= step.time.min_ns, "{step:?}");
        assert!(step.read_bytes > 0 && step.written_bytes > 0, "{step:?}");
    }
    let events: serde_json::Value = serde_json::from_str(&profile.to_chrome_trace()).unwrap();
    let events = events["traceEvents"].as_array().unwrap();
    let complete = events.iter().filter(|e| e["ph"] == "X").count();
    assert_eq!(complete, compiled.len());
}

#[test]
fn steps_cost_what_their_nodes_cost() {
    let (graph, _) = training_step();
    let mut costs = HashMap::new();
    for (_, node) in graph.nodes() {
        let types =
            |ids: &[ValueId]| -> Vec<_> { ids.iter().map(|&v| graph.type_of(v).clone()).collect() };
        let (inputs, outputs) = (types(node.inputs()), types(node.outputs()));
        let cost = node.op().rules().cost(&inputs, &outputs).unwrap();
        costs.insert(node.name().to_string(), cost);
    }
    let options = ProfileOptions::new().warmup(0).runs(1);
    let profile = compile(&graph, 1)
        .profile(&[ramp(&[64, 32])], &options)
        .unwrap();
    let (mut macs, mut fused) = (0, 0);
    for step in &profile.steps {
        let of = step.nodes.iter().map(|n| costs[n]);
        assert_eq!(step.macs, of.clone().map(|c| c.macs).sum::<u64>());
        assert_eq!(step.elements, of.map(|c| c.elements).sum::<u64>());
        macs += step.macs;
        fused += usize::from(step.nodes.len() > 1);
    }
    // Forward and the weight's gradient: 64 x 32 x 16 each.
    assert_eq!(macs, 2 * 64 * 32 * 16);
    assert!(fused >= 2, "{profile}");
}

#[test]
fn bytes_are_those_of_operands_and_results() {
    let mut b = GraphBuilder::new("g");
    let x = b.input("x", TensorType::new(DType::F32, [8, 4])).unwrap();
    let w = b.variable("w", ramp(&[4, 2])).unwrap();
    let bias = b.variable("bias", ramp(&[2])).unwrap();
    let y = b.matmul(x, w).unwrap();
    let y = b.add(y, bias).unwrap();
    let square = b.mul(x, x).unwrap();
    let total = b.sum(square, &[1], false).unwrap();
    b.output("y", y).unwrap();
    b.output("total", total).unwrap();
    let options = ProfileOptions::new().warmup(0).runs(1);
    let profile = compile(&b.finish().unwrap(), 1)
        .profile(&[ramp(&[8, 4])], &options)
        .unwrap();
    let of = |macs: bool| {
        let mut steps = profile.steps.iter().filter(|s| (s.macs > 0) == macs);
        let step = steps.next().unwrap();
        (step.read_bytes, step.written_bytes)
    };
    assert_eq!(of(true), (4 * (8 * 4 + 4 * 2 + 2), 4 * 8 * 2));
    // Both factors are one operand.
    assert_eq!(of(false), (4 * 8 * 4, 4 * 8 * 4), "{profile}");
}

#[test]
fn integer_layers_read_the_weights_that_they_hold() {
    let mut b = GraphBuilder::new("int8");
    let x = b.input("x", TensorType::new(DType::U8, [4, 8])).unwrap();
    let scale = b.scalar(DType::F32, 0.5).unwrap();
    let zero = b.constant(Tensor::scalar(3u8));
    let x = b.dequantize(x, scale, zero, None).unwrap();
    let w: Vec<i8> = (0..24).map(|i| i - 12).collect();
    let w = b.constant(Tensor::new([8, 3], w).unwrap());
    let none = b.constant(Tensor::scalar(0i8));
    let w = b.dequantize(w, scale, none, None).unwrap();
    let y = b.matmul(x, w).unwrap();
    let y = b.quantize(y, scale, zero, None).unwrap();
    b.output("y", y).unwrap();
    let graph = b.finish().unwrap();
    let input = Tensor::zeros(DType::U8, [4, 8]).unwrap();
    let options = ProfileOptions::new().warmup(0).runs(1);
    let profile = compile(&graph, 1).profile(&[input], &options).unwrap();
    let layer = profile
        .steps
        .iter()
        .find(|s| s.kernel.starts_with("int "))
        .unwrap();
    // [4, 8] by [8, 3], all in 8 bits; bias and multipliers have 4 bytes a channel.
    assert_eq!(layer.macs, 4 * 8 * 3);
    assert_eq!(layer.read_bytes, 4 * 8 + 8 * 3 + 3 * (4 + 4));
}

#[test]
fn profiling_leaves_variables_as_they_were() {
    let (graph, w) = training_step();
    let x = ramp(&[64, 32]);
    for threads in [1, 2] {
        let executable = compile(&graph, threads);
        let mut session = executable.session().unwrap();
        session.run(std::slice::from_ref(&x)).unwrap();
        let before = session.variable(w).unwrap();
        let options = ProfileOptions::new().runs(3);
        let profile = executable.profile(std::slice::from_ref(&x), &options);
        profile.unwrap();
        assert_eq!(session.variable(w).unwrap(), before);
        let fresh = executable.session().unwrap();
        assert_eq!(fresh.variable(w).unwrap(), ramp(&[32, 16]));
        // Nor is the next run another one.
        session.run(std::slice::from_ref(&x)).unwrap();
        let mut alone = compile(&graph, threads).session().unwrap();
        alone.run(std::slice::from_ref(&x)).unwrap();
        alone.run(std::slice::from_ref(&x)).unwrap();
        assert_eq!(session.variable(w).unwrap(), alone.variable(w).unwrap());
    }
}

#[test]
fn profiles_with_threads_name_their_number() {
    let mut b = GraphBuilder::new("wide");
    let x = b
        .input("x", TensorType::new(DType::F32, [128, 128]))
        .unwrap();
    let y = b.matmul(x, x).unwrap();
    b.output("y", y).unwrap();
    let options = ProfileOptions::new().runs(2);
    let profile = compile(&b.finish().unwrap(), 2)
        .profile(&[ramp(&[128, 128])], &options)
        .unwrap();
    assert_eq!((profile.threads, profile.steps.len()), (2, 1));
    assert!(profile.steps[0].gflops().unwrap() > 0.0);
}

#[test]
fn bad_inputs_are_the_errors_of_a_run() {
    let (graph, _) = training_step();
    let executable = compile(&graph, 1);
    let options = ProfileOptions::new();
    let fails = |inputs: &[Tensor], options: &ProfileOptions| {
        executable.profile(inputs, options).unwrap_err()
    };
    let error = fails(&[], &options);
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("takes 1 inputs"), "{error}");
    let error = fails(&[ramp(&[3, 32])], &options);
    assert_eq!(
        (error.kind(), error.path().next()),
        (ErrorKind::Shape, Some("x"))
    );
    let error = fails(&[Tensor::zeros(DType::F64, [64, 32]).unwrap()], &options);
    assert_eq!(
        (error.kind(), error.path().next()),
        (ErrorKind::DType, Some("x"))
    );
    let error = fails(&[ramp(&[64, 32])], &options.clone().runs(0));
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);

    // A fault of a kernel, in the first run and at its node.
    let mut b = GraphBuilder::new("rows");
    let table = b
        .input("table", TensorType::new(DType::F32, [4, 2]))
        .unwrap();
    let at = b.input("at", TensorType::new(DType::I64, [3])).unwrap();
    let rows = b.gather(table, at, 0).unwrap();
    b.output("rows", rows).unwrap();
    let at = Tensor::new([3], [0i64, 9, 1]).unwrap();
    let rows = compile(&b.finish().unwrap(), 1);
    for warmup in [0, 2] {
        let options = options.clone().warmup(warmup);
        let inputs = [ramp(&[4, 2]), at.clone()];
        let mut session = rows.session().unwrap();
        let usual = session.run(&inputs).unwrap_err().to_string();
        let error = rows.profile(&inputs, &options).unwrap_err();
        assert_eq!(error.to_string(), usual);
    }
}

#[test]
fn a_graph_without_steps_has_a_profile() {
    let mut b = GraphBuilder::new("same");
    let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
    b.output("y", x).unwrap();
    let profile = compile(&b.finish().unwrap(), 1)
        .profile(&[ramp(&[2])], &ProfileOptions::new())
        .unwrap();
    assert!(profile.steps.is_empty() && profile.by_kernel().is_empty());
    assert!(profile.to_string().contains("0 steps"), "{profile}");
}
