//! Graphs as a whole: building, rewriting, verifying, printing, differentiating.

use opt_core::autodiff::grad;
use opt_core::graph::Bindings;
use opt_core::ops::Op;
use opt_core::{
    DType, Dim, ErrorKind, Fact, Graph, GraphBuilder, GraphPatch, Result, Shape, Symbol, Tensor,
    TensorType,
};

fn mlp() -> Result<Graph> {
    let mut b = GraphBuilder::new("mlp");
    let shape = Shape::new([Dim::from("batch"), Dim::from(4)]);
    let x = b.input("x", TensorType::new(DType::F32, shape))?;
    let y = b.scope("fc1", |b| {
        let w = b.variable("weight", Tensor::full(DType::F32, [3, 4], 0.5)?)?;
        let bias = b.variable("bias", Tensor::zeros(DType::F32, [3])?)?;
        let y = b.matmul_t(x, w, false, true)?;
        b.add(y, bias)
    })?;
    let y = b.relu(y)?;
    b.output("y", y)?;
    b.finish()
}

fn scalar_chain() -> (GraphBuilder, opt_core::ValueId, opt_core::ValueId) {
    let mut b = GraphBuilder::new("g");
    let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
    let zeros = Tensor::zeros(DType::F32, [2]).unwrap();
    let w = b.variable("w", zeros).unwrap();
    (b, x, w)
}

#[test]
fn errors_name_the_node_and_both_types() {
    let mut b = GraphBuilder::new("g");
    let x = b.input("x", TensorType::new(DType::F32, [2, 3])).unwrap();
    let error = b
        .scope("layer", |b| {
            let w = b.variable("w", Tensor::zeros(DType::F32, [4, 5])?)?;
            b.matmul(x, w)
        })
        .unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Shape);
    assert!(text.contains("layer") && text.contains("MatMul"), "{text}");
    assert!(text.contains('3') && text.contains('4'), "{text}");
}

#[test]
fn names_are_scoped_and_unique() {
    let graph = mlp().unwrap();
    assert!(graph.find("fc1.weight").is_ok());
    assert!(graph.find("fc2.weight").is_err());
    let mut b = GraphBuilder::extend(graph);
    assert!(b.input("x", TensorType::new(DType::F32, [1])).is_err());
}

#[test]
fn binding_replaces_symbols_everywhere() {
    let graph = mlp().unwrap();
    let bindings: Bindings = [(Symbol::new("batch"), 7)].into();
    let bound = graph.bind(&bindings).unwrap();
    let y = bound.output("y").unwrap();
    assert_eq!(bound.type_of(y).to_string(), "f32[7,3]");
    bound.verify().unwrap();
}

#[test]
fn a_patch_sees_the_graph_as_it_was_and_drops_what_dies() {
    let graph = mlp().unwrap();
    let (before, y) = graph
        .nodes()
        .find(|(_, n)| n.op().name() == "Relu")
        .map(|(_, n)| (n.inputs()[0], n.outputs()[0]))
        .unwrap();
    let mut patch = GraphPatch::new(graph);
    let t = patch.tanh(before).unwrap();
    patch.replace(y, t).unwrap();
    assert!(patch.replace(y, t).is_err(), "replaced twice");
    let graph = patch.finish().unwrap();
    let names: Vec<_> = graph
        .nodes()
        .map(|(_, n)| n.op().name().to_string())
        .collect();
    assert_eq!(names, ["MatMul", "Add", "Tanh"]);
}

#[test]
fn a_new_node_may_read_the_value_it_replaces() {
    let graph = mlp().unwrap();
    let y = graph.output("y").unwrap();
    let mut patch = GraphPatch::new(graph);
    let doubled = patch.mul_scalar(y, 2.0).unwrap();
    patch.replace(y, doubled).unwrap();
    let graph = patch.finish().unwrap();
    let (_, last) = graph.nodes().last().unwrap();
    assert_eq!(last.op().name(), "Mul");
    assert_eq!(graph.output("y").unwrap(), last.outputs()[0]);
}

#[test]
fn a_cycle_is_an_error_at_a_node() {
    let (mut b, x, _) = scalar_chain();
    let first = b.relu(x).unwrap();
    let second = b.tanh(first).unwrap();
    let third = b.neg(second).unwrap();
    b.output("y", third).unwrap();
    let mut patch = GraphPatch::new(b.finish().unwrap());
    patch.replace(first, second).unwrap();
    let error = patch.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidGraph);
    assert!(error.to_string().contains("cycle"), "{error}");
}

#[test]
fn assigning_to_anything_but_a_variable_is_an_error() {
    let (mut b, x, _) = scalar_chain();
    let y = b.relu(x).unwrap();
    b.assign(x, y).unwrap();
    assert!(b.finish().unwrap_err().to_string().contains("no variable"));
}

#[test]
fn facts_are_tested_by_verify() {
    let mut graph = mlp().unwrap();
    let w = graph.find("fc1.weight").unwrap();
    let mut keep = vec![true; 12];
    keep[5] = false;
    let mask = Tensor::from_bools([3, 4], keep).unwrap();
    graph.facts_mut().insert(w, Fact::Mask(mask));
    let error = graph.verify().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FactViolated);
    assert!(error.to_string().contains("fc1.weight"), "{error}");
    let mut content = vec![0.5f32; 12];
    content[5] = 0.0;
    let content = Tensor::new([3, 4], content).unwrap();
    graph.set_variable(w, content).unwrap();
    graph.verify().unwrap();
}

#[test]
fn deep_graphs_do_not_overflow_the_stack() {
    let (mut b, x, w) = scalar_chain();
    let mut y = b.mul(x, w).unwrap();
    for _ in 0..20_000 {
        y = b.neg(y).unwrap();
    }
    let loss = b.sum_all(y).unwrap();
    let gradients = grad(&mut b, loss, &[w]).unwrap();
    b.output("dw", gradients.of(w).unwrap()).unwrap();
    let graph = GraphPatch::new(b.finish().unwrap()).finish().unwrap();
    assert!(graph.nodes().count() > 20_000);
}

#[test]
fn a_frozen_branch_gets_no_backward_nodes() {
    let build = |with_teacher: bool| -> Result<usize> {
        let mut b = GraphBuilder::new("g");
        let x = b.input("x", TensorType::new(DType::F32, [5, 4]))?;
        let w = b.variable("w", Tensor::full(DType::F32, [4, 2], 0.1)?)?;
        let mut y = b.matmul(x, w)?;
        let mut forward = 0;
        if with_teacher {
            let t = b.variable("t", Tensor::full(DType::F32, [4, 2], 0.1)?)?;
            let ty = b.matmul(x, t)?;
            let ty = b.tanh(ty)?;
            y = b.sub(y, ty)?;
            forward = 3;
        }
        let loss = b.sum_all(y)?;
        grad(&mut b, loss, &[w])?;
        Ok(b.graph().nodes().count() - forward)
    };
    assert_eq!(build(true).unwrap(), build(false).unwrap());
}

#[test]
fn gradients_that_cannot_be_are_errors() {
    let (mut b, x, w) = scalar_chain();
    let unused = b.variable("unused", Tensor::scalar(1f32)).unwrap();
    let y = b.mul(x, w).unwrap();
    assert_eq!(grad(&mut b, y, &[w]).unwrap_err().kind(), ErrorKind::Shape);
    let stopped = b.stop_gradient(y).unwrap();
    let stopped = b.sum_all(stopped).unwrap();
    let loss = b.sum_all(y).unwrap();
    for (loss, wrt) in [(loss, unused), (stopped, w)] {
        let error = grad(&mut b, loss, &[wrt]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoGradient, "{error}");
    }
}

#[test]
fn broadcast_gradients_have_the_inputs_shape() {
    let mut b = GraphBuilder::new("g");
    let x = b
        .input("x", TensorType::new(DType::F32, [2, 3, 4]))
        .unwrap();
    let bias = Tensor::zeros(DType::F32, [3, 1]).unwrap();
    let bias = b.variable("b", bias).unwrap();
    let s = b.variable("s", Tensor::scalar(1f32)).unwrap();
    let y = b.add(x, bias).unwrap();
    let y = b.mul(y, s).unwrap();
    let loss = b.mean_all(y).unwrap();
    let g = grad(&mut b, loss, &[bias, s]).unwrap();
    assert_eq!(b.type_of(g.of(bias).unwrap()).to_string(), "f32[3,1]");
    assert_eq!(b.type_of(g.of(s).unwrap()).to_string(), "f32[]");
}

#[test]
fn text_dot_and_mermaid_show_every_node() {
    let graph = mlp().unwrap();
    let (text, dot, mermaid) = (graph.to_string(), graph.to_dot(), graph.to_mermaid());
    for (_, node) in graph.nodes() {
        assert!(text.contains(graph.value(node.outputs()[0]).name()));
        assert!(dot.contains(node.name()) && mermaid.contains(node.name()));
    }
    assert!(dot.contains("f32[batch,3]") && mermaid.starts_with("flowchart"));
    assert!(text.contains("variable fc1.weight: f32[3,4]"));
}

#[test]
fn extracting_keeps_ids_and_drops_the_rest() {
    let graph = mlp().unwrap();
    let add = graph
        .nodes()
        .find(|(_, n)| matches!(n.op(), Op::Binary(_)))
        .map(|(_, n)| n.outputs()[0])
        .unwrap();
    let part = graph.extract(&[("z".into(), add)], false).unwrap();
    assert_eq!(part.nodes().count(), 2);
    assert_eq!(part.output("z").unwrap(), add);
    part.verify().unwrap();
}

#[test]
fn a_rewired_node_keeps_its_name_and_gets_new_types() {
    let mut b = GraphBuilder::new("g");
    let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
    let y = b.relu(x).unwrap();
    let z = b.tanh(y).unwrap();
    b.output("z", z).unwrap();
    let graph = b.finish().unwrap();
    let (relu, name) = {
        let (id, node) = graph.producer(y).unwrap();
        (id, node.name().to_string())
    };
    let mut patch = GraphPatch::new(graph.clone());
    assert!(patch.is_empty());
    let half = patch.cast(x, DType::F16).unwrap();
    patch.rewire(relu, 0, half).unwrap();
    let graph = patch.finish().unwrap();
    assert_eq!(graph.node(relu).name(), name);
    assert_eq!(graph.type_of(z).to_string(), "f16[2]");
    let mut patch = GraphPatch::new(graph);
    let error = patch.rewire(relu, 1, x).unwrap_err();
    assert!(error.to_string().contains("no input 1"), "{error}");
}
