//! Passes that must not change what a graph computes.

use opt_core::autodiff::grad;
use opt_core::nn::zoo::{TransformerClassifier, transformer_classifier};
use opt_core::nn::{BatchNorm, Conv, Linear, ModelBuilder, zoo};
use opt_core::ops::UnaryOp;
use opt_core::pass::{
    CommonSubexpressions, DeadCode, EvalMode, FoldBatchNorm, FoldConstants, MixedPrecision,
    TrainMode,
};
use opt_core::{
    Backend, Context, DType, Fact, Graph, GraphBuilder, Pass, Result, Tensor, TensorType,
};
use opt_ndarray::NdarrayBackend;
use opt_suite::{close, roundoff, uniform};

/// Convolution and linear layers, each before a batch normalization with statistics of its own.
fn normalized() -> Result<Graph> {
    let mut b = ModelBuilder::new("m", 3);
    let mut x = b.batch("x", [2, 5, 5])?;
    for (name, bias) in [("a", true), ("b", false)] {
        x = b.layer(name, Conv::new(4, [3, 3]).bias(bias), x)?;
        x = b.layer(&format!("{name}n"), BatchNorm::new(), x)?;
        x = b.unary(UnaryOp::Tanh, x)?;
    }
    let x = b.flatten(x, 1)?;
    let x = b.layer("fc", Linear::new(3), x)?;
    let y = b.layer("fcn", BatchNorm::new(), x)?;
    b.output("y", y)?;
    let mut graph = b.finish()?;
    let norms: Vec<_> = graph
        .variables()
        .filter(|(_, v, _)| v.name().contains("n."))
        .map(|(id, _, t)| (id, t.shape().to_vec()))
        .collect();
    for (i, (id, shape)) in norms.into_iter().enumerate() {
        graph.set_variable(id, uniform(DType::F32, &shape, i as u64, 0.5, 1.5)?)?;
    }
    Ok(graph)
}

fn run(graph: &Graph, seed: u64) -> Result<Tensor> {
    let shape: Vec<usize> = graph
        .type_of(graph.inputs()[0])
        .shape
        .dims()
        .iter()
        .map(|d| d.as_fixed().unwrap_or(3))
        .collect();
    let x = uniform(DType::F32, &shape, seed, -1.0, 1.0)?;
    Ok(NdarrayBackend::new().run_once(graph, &[x])?.remove(0))
}

#[test]
fn folding_batch_normalization_keeps_the_function_names_and_masks() {
    let mut graph = normalized().unwrap();
    let w = graph.find("a.weight").unwrap();
    let mut keep = vec![true; 72];
    keep[7] = false;
    let mut content = graph.value(w).tensor().unwrap().to_vec::<f32>().unwrap();
    content[7] = 0.0;
    graph
        .set_variable(w, Tensor::new([4, 2, 3, 3], content).unwrap())
        .unwrap();
    let mask = Tensor::from_bools([4, 2, 3, 3], keep).unwrap();
    graph.facts_mut().insert(w, Fact::Mask(mask));
    let (folded, report) = FoldBatchNorm
        .apply(graph.clone(), &mut Context::new())
        .unwrap();
    assert_eq!(report.changed, 3);
    assert!(folded.nodes().all(|(_, n)| n.op().name() != "BatchNorm"));
    close(&run(&folded, 1).unwrap(), &run(&graph, 1).unwrap(), 1e-5).unwrap();
    let w = folded.find("a.weight").unwrap();
    assert!(folded.facts().mask(w).is_some());
    folded.verify().unwrap();
}

#[test]
fn a_read_intermediate_is_not_folded_away() {
    let mut graph = normalized().unwrap();
    let conv = graph
        .nodes()
        .find(|(_, n)| n.op().name() == "Conv")
        .map(|(_, n)| n.outputs()[0])
        .unwrap();
    let mut b = GraphBuilder::extend(graph);
    b.output("raw", conv).unwrap();
    graph = b.finish().unwrap();
    let (_, report) = FoldBatchNorm.apply(graph, &mut Context::new()).unwrap();
    assert_eq!(report.changed, 2);
}

#[test]
fn constants_fold_but_variables_do_not() {
    let mut b = GraphBuilder::new("g");
    let x = b.input("x", TensorType::new(DType::F32, [2, 2])).unwrap();
    let c = b.constant(Tensor::new([2, 2], [1f32, 2.0, 3.0, 4.0]).unwrap());
    let t = b.transpose(c, &[1, 0]).unwrap();
    let t = b.exp(t).unwrap();
    let v = b
        .variable("v", Tensor::full(DType::F32, [2, 2], 0.5).unwrap())
        .unwrap();
    let v = b.exp(v).unwrap();
    let y = b.add(x, t).unwrap();
    let y = b.mul(y, v).unwrap();
    b.output("y", y).unwrap();
    let graph = b.finish().unwrap();
    let backend = NdarrayBackend::new();
    let mut cx = Context::new().with_backend(&backend);
    let (folded, report) = FoldConstants.apply(graph.clone(), &mut cx).unwrap();
    assert_eq!(report.changed, 1);
    let names: Vec<_> = folded
        .nodes()
        .map(|(_, n)| n.op().name().to_string())
        .collect();
    assert_eq!(names, ["Exp", "Add", "Mul"]);
    close(&run(&folded, 2).unwrap(), &run(&graph, 2).unwrap(), 0.0).unwrap();
}

#[test]
fn merging_removing_and_switching_modes_keep_the_function() {
    let graph = zoo::resnet20([3, 8, 8], 10, 1).unwrap();
    let expected = run(&graph, 3).unwrap();
    let mut cx = Context::new();
    let (merged, _) = CommonSubexpressions.apply(graph.clone(), &mut cx).unwrap();
    close(&run(&merged, 3).unwrap(), &expected, 1e-6).unwrap();
    let mut b = GraphBuilder::extend(graph.clone());
    let x = b.graph().inputs()[0];
    b.tanh(x).unwrap();
    let (clean, report) = DeadCode.apply(b.finish().unwrap(), &mut cx).unwrap();
    assert_eq!(report.changed, 1);
    assert_eq!(clean.nodes().count(), graph.nodes().count());
    let (training, _) = TrainMode::switch(graph).unwrap();
    let (back, _) = EvalMode::switch(training).unwrap();
    close(&run(&back, 3).unwrap(), &expected, 0.0).unwrap();
}

/// The outputs in eval mode, and the gradients in training mode of the mean square of the output
/// by all parameters, in one row.
fn outputs_and_gradients(graph: &Graph, x: &Tensor) -> Result<(Vec<f64>, Vec<f64>)> {
    let backend = NdarrayBackend::new();
    let outputs = backend.run_once(graph, std::slice::from_ref(x))?[0].to_f64s();
    let (training, _) = TrainMode::switch(graph.clone())?;
    let parameters = training.parameters();
    let out = training.outputs().next().expect("an output");
    let mut b = GraphBuilder::extend(training);
    b.clear_outputs();
    let square = b.mul(out, out)?;
    let loss = b.mean_all(square)?;
    let gradients = grad(&mut b, loss, &parameters)?;
    for (i, &p) in parameters.iter().enumerate() {
        b.output(&format!("g{i}"), gradients.of(p)?)?;
    }
    let found = backend.run_once(&b.finish()?, std::slice::from_ref(x))?;
    assert!(found.iter().all(|g| g.dtype() == DType::F32));
    Ok((outputs, found.iter().flat_map(Tensor::to_f64s).collect()))
}

/// In mixed precision models compute what they do in `f32`, up to a multiple of the dtype's unit
/// roundoff that does not depend on the dtype: each layer rounds its result once. Outputs are off
/// by 1 to 2 roundoffs, gradients by 1 to 5, but by 50 where 19 batch normalizations in a row
/// subtract the means of what was rounded; the bounds are about twice that.
#[test]
fn mixed_precision_keeps_outputs_and_gradients_within_its_roundoff() {
    let transformer = TransformerClassifier {
        vocabulary: 20,
        steps: 6,
        width: 16,
        heads: 2,
        feedforward: 32,
        layers: 2,
        dropout: 0.0,
        classes: 5,
    };
    let tokens: Vec<i64> = (0..24).map(|i| i * i % 20).collect();
    let tokens = Tensor::new([4, 6], tokens).unwrap();
    let images = |shape: &[usize]| uniform(DType::F32, shape, 5, -1.0, 1.0).unwrap();
    for (graph, x, factor) in [
        (zoo::lenet_300_100(64, 10, 1), images(&[4, 64]), 4.0),
        (
            zoo::lenet5([1, 28, 28], 10, 1),
            images(&[4, 1, 28, 28]),
            8.0,
        ),
        (
            zoo::resnet20([3, 16, 16], 10, 1),
            images(&[4, 3, 16, 16]),
            80.0,
        ),
        (transformer_classifier(&transformer, 1), tokens, 8.0),
    ] {
        let graph = graph.unwrap();
        let (y, g) = outputs_and_gradients(&graph, &x).unwrap();
        for pass in [MixedPrecision::bf16(), MixedPrecision::f16()] {
            let (mixed, _) = pass.convert(graph.clone()).unwrap();
            let (low_y, low_g) = outputs_and_gradients(&mixed, &x).unwrap();
            for (what, full, low, bound) in [
                ("outputs", &y, &low_y, 4.0),
                ("gradients", &g, &low_g, factor),
            ] {
                let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
                let difference: Vec<f64> = full.iter().zip(low).map(|(a, b)| a - b).collect();
                let error = norm(&difference) / norm(full) / roundoff(pass.dtype());
                let at = format!("{} {} {what}: {error:.2}", graph.name(), pass.dtype());
                println!("{at}");
                assert!(error < bound, "{at}");
                assert!(error > 0.05, "{at}: nothing was rounded");
            }
        }
    }
}
