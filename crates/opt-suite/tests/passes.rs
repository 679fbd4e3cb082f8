//! Passes that must not change what a graph computes.

use opt_core::nn::{BatchNorm, Conv, Linear, ModelBuilder, zoo};
use opt_core::ops::UnaryOp;
use opt_core::pass::{
    CommonSubexpressions, DeadCode, EvalMode, FoldBatchNorm, FoldConstants, TrainMode,
};
use opt_core::{
    Backend, Context, DType, Fact, Graph, GraphBuilder, Pass, Result, Tensor, TensorType,
};
use opt_ndarray::NdarrayBackend;
use opt_suite::{close, uniform};

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
