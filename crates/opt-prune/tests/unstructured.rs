//! Masks: how many, which, and that they stay.

use opt_core::{Context, DType, ErrorKind, Graph, GraphBuilder, Pass, Tensor, TensorType};
use opt_prune::{Magnitude, Random, Scope, UnstructuredPrune};

fn model() -> Graph {
    let mut b = GraphBuilder::new("m");
    let x = b.input("x", TensorType::new(DType::F32, [1, 10])).unwrap();
    let small: Vec<f32> = (0..100).map(|i| (i as f32 - 50.0) / 100.0).collect();
    let large: Vec<f32> = (0..30).map(|i| 1.0 + i as f32).collect();
    let w1 = b
        .variable("fc1", Tensor::new([10, 10], small).unwrap())
        .unwrap();
    let w2 = b
        .variable("fc2", Tensor::new([3, 10], large).unwrap())
        .unwrap();
    let h = b.matmul_t(x, w1, false, true).unwrap();
    let y = b.matmul_t(h, w2, false, true).unwrap();
    b.output("y", y).unwrap();
    b.finish().unwrap()
}

fn zeros(graph: &Graph, name: &str) -> usize {
    let tensor = graph.value(graph.find(name).unwrap()).tensor().unwrap();
    tensor.to_f64s().iter().filter(|v| **v == 0.0).count()
}

#[test]
fn counts_are_exact() {
    let mut cx = Context::new();
    for (sparsity, one, two) in [(0.0, 1, 0), (0.33, 33, 10), (0.5, 50, 15), (1.0, 100, 30)] {
        let prune = UnstructuredPrune::new(sparsity);
        let (graph, _) = prune.apply(model(), &mut cx).unwrap();
        assert_eq!(
            (zeros(&graph, "fc1"), zeros(&graph, "fc2")),
            (one, two),
            "{sparsity}"
        );
        graph.verify().unwrap();
    }
}

#[test]
fn global_ranking_takes_the_smallest_of_all() {
    let prune = UnstructuredPrune::new(0.5)
        .scope(Scope::Global)
        .criterion(Magnitude::l2());
    let (graph, report) = prune.apply(model(), &mut Context::new()).unwrap();
    assert_eq!((zeros(&graph, "fc1"), zeros(&graph, "fc2")), (65, 0));
    assert_eq!(report.figures["sparsity"], 0.5);
}

#[test]
fn masked_entries_stay_masked() {
    let mut cx = Context::new().with_seed(1);
    let first = UnstructuredPrune::new(0.4).criterion(Random);
    let (graph, _) = first.apply(model(), &mut cx).unwrap();
    let w = graph.find("fc1").unwrap();
    let before = graph.facts().mask(w).unwrap().to_vec_bool().unwrap();
    let (graph, _) = UnstructuredPrune::new(0.7).apply(graph, &mut cx).unwrap();
    let after = graph.facts().mask(w).unwrap().to_vec_bool().unwrap();
    assert!(before.iter().zip(&after).all(|(b, a)| *b || !a));
    let (graph, report) = UnstructuredPrune::new(0.1).apply(graph, &mut cx).unwrap();
    assert_eq!((zeros(&graph, "fc1"), report.changed), (70, 0));
}

#[test]
fn patterns_choose_and_must_match() {
    let mut cx = Context::new();
    let prune = UnstructuredPrune::new(0.5).exclude("fc2");
    let (graph, _) = prune.apply(model(), &mut cx).unwrap();
    assert_eq!((zeros(&graph, "fc1"), zeros(&graph, "fc2")), (50, 0));
    let error = UnstructuredPrune::new(0.5)
        .include("fc3")
        .apply(model(), &mut cx);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NoEffect);
    for sparsity in [-1.0, 1.5, f64::NAN] {
        let error = UnstructuredPrune::new(sparsity).apply(model(), &mut cx);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn nan_weights_are_an_error_at_their_name() {
    let mut graph = model();
    let w = graph.find("fc1").unwrap();
    let nan = Tensor::full(DType::F32, [10, 10], f64::NAN).unwrap();
    graph.set_variable(w, nan).unwrap();
    let error = UnstructuredPrune::new(0.5)
        .apply(graph, &mut Context::new())
        .unwrap_err();
    assert!(error.to_string().starts_with("fc1"), "{error}");
}
