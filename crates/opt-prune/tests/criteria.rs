//! Criteria against PyTorch and against their definitions.

use opt_core::ops::Window;
use opt_core::{
    Context, DType, Dim, ErrorKind, Graph, GraphBuilder, Pass, Shape, Tensor, TensorType, ValueId,
};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_prune::{
    BatchNormScale, ChannelPrune, Criterion, Fpgm, Lamp, Scope, ScoreContext, Structures, Taylor,
    UnstructuredPrune,
};
use opt_train::CrossEntropy;
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/criteria.json")).expect("golden JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list");
    list.iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn tensor(value: &Value) -> Tensor {
    let shape: Vec<usize> = numbers(&value["shape"])
        .iter()
        .map(|&d| d as usize)
        .collect();
    Tensor::from_f64s(DType::F64, &shape, &numbers(&value["data"])).unwrap()
}

/// The network of `criteria.py`.
fn network(golden: &Value) -> Graph {
    let mut b = GraphBuilder::new("net");
    let dims: [Dim; 4] = ["batch".into(), 2.into(), 4.into(), 4.into()];
    let x = b
        .input("x", TensorType::new(DType::F64, Shape::new(dims)))
        .unwrap();
    let v = |b: &mut GraphBuilder, name: &str| -> ValueId {
        b.variable(name, tensor(&golden["state"][name])).unwrap()
    };
    let w = v(&mut b, "conv1.weight");
    let x = b.conv(x, w, None, Window::new(2).pad(1), 1).unwrap();
    let [scale, bias, mean, var] =
        ["weight", "bias", "running_mean", "running_var"].map(|n| v(&mut b, &format!("bn1.{n}")));
    let x = b.batch_norm(x, scale, bias, mean, var, 1e-5).unwrap();
    let x = b.relu(x).unwrap();
    let (w, bias) = (v(&mut b, "conv2.weight"), v(&mut b, "conv2.bias"));
    let x = b.conv(x, w, Some(bias), Window::new(2).pad(1), 1).unwrap();
    let x = b.relu(x).unwrap();
    let mut x = b.flatten(x, 1).unwrap();
    for layer in ["fc1", "fc2"] {
        let w = v(&mut b, &format!("{layer}.weight"));
        let bias = v(&mut b, &format!("{layer}.bias"));
        x = b.matmul_t(x, w, false, true).unwrap();
        x = b.add(x, bias).unwrap();
        if layer == "fc1" {
            x = b.relu(x).unwrap();
        }
    }
    b.output("logits", x).unwrap();
    b.finish().unwrap()
}

fn data(golden: &Value) -> TensorDataset {
    let labels: Vec<i64> = numbers(&golden["labels"])
        .iter()
        .map(|&l| l as i64)
        .collect();
    let labels = Tensor::new([labels.len()], labels).unwrap();
    TensorDataset::new(vec![tensor(&golden["images"]), labels]).unwrap()
}

fn close(found: &[f64], expected: &[f64], place: &str) {
    assert_eq!(found.len(), expected.len(), "{place}");
    let largest = expected.iter().fold(0f64, |a, b| a.max(b.abs()));
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-11 * largest, "{place}: {a} {b}");
    }
}

const WEIGHTS: [&str; 4] = ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"];

/// The layers that a criterion is asked to score, and what it said.
#[derive(Debug)]
struct Spy<C>(C, std::sync::Mutex<Vec<(String, Vec<usize>, Vec<f64>)>>);

impl<C: Criterion> Criterion for &'static Spy<C> {
    fn score_structures(
        &self,
        graph: &Graph,
        layers: &[Structures],
        weights: &[ValueId],
        cx: &mut Context<'_>,
    ) -> opt_core::Result<Vec<Vec<f64>>> {
        let scores = self.0.score_structures(graph, layers, weights, cx)?;
        let mut log = self.1.lock().unwrap();
        for (layer, scores) in layers.iter().zip(&scores) {
            let indices = layer.groups.iter().map(|g| g.entries[&layer.weights[0]][0]);
            log.push((layer.layer.clone(), indices.collect(), scores.clone()));
        }
        Ok(scores)
    }
}

/// The scores of the channels of each layer, by the layer's name, in the channels' order.
fn channel_scores<C: Criterion + 'static>(
    criterion: C,
    prune: ChannelPrune,
    graph: &Graph,
    cx: &mut Context<'_>,
) -> Vec<(String, Vec<f64>)> {
    let spy: &'static Spy<C> = Box::leak(Box::new(Spy(criterion, Default::default())));
    prune.criterion(spy).select(graph, cx).unwrap();
    let log = spy.1.lock().unwrap();
    let sorted = |(name, indices, scores): &(String, Vec<usize>, Vec<f64>)| {
        let mut order: Vec<usize> = (0..indices.len()).collect();
        order.sort_by_key(|&i| indices[i]);
        (name.clone(), order.iter().map(|&i| scores[i]).collect())
    };
    log.iter().map(sorted).collect()
}

#[test]
fn taylor_is_pytorchs() {
    let golden = golden();
    let (graph, data, backend) = (network(&golden), data(&golden), NdarrayBackend::new());
    let mut cx = Context::new().with_backend(&backend).with_training(&data);
    let taylor = Taylor::new(CrossEntropy).batch_size(4);
    let ids: Vec<ValueId> = WEIGHTS.iter().map(|n| graph.find(n).unwrap()).collect();
    let scores = taylor.score_all(&graph, &ids, &mut cx).unwrap();
    for (name, scores) in WEIGHTS.iter().zip(&scores) {
        close(scores, &numbers(&golden["taylor_weights"][name]), name);
    }
    let scores = channel_scores(taylor.clone(), ChannelPrune::new(0.5), &graph, &mut cx);
    let names: Vec<&str> = scores.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["conv1.weight", "conv2.weight", "fc1.weight"]);
    for (name, scores) in &scores {
        close(scores, &numbers(&golden["taylor_channels"][name]), name);
    }
    // What goes is what scores least, and the weights of the highest score stay.
    let prune = UnstructuredPrune::new(0.5)
        .scope(Scope::Global)
        .criterion(taylor);
    let (sparse, report) = prune.apply(graph, &mut cx).unwrap();
    assert!((report.figures["sparsity"] - 0.5).abs() < 1e-3);
    let (mut gone, mut kept) = (0f64, f64::INFINITY);
    for name in WEIGHTS {
        let mask = sparse.facts().mask(sparse.find(name).unwrap()).unwrap();
        let expected = numbers(&golden["taylor_weights"][name]);
        for (keep, score) in mask.to_vec_bool().unwrap().into_iter().zip(expected) {
            match keep {
                true => kept = kept.min(score),
                false => gone = gone.max(score),
            }
        }
    }
    assert!(gone <= kept * (1.0 + 1e-9), "{gone} {kept}");
}

#[test]
fn taylor_in_batches_of_all_sizes() {
    let golden = golden();
    let (graph, data, backend) = (network(&golden), data(&golden), NdarrayBackend::new());
    let mut cx = Context::new().with_backend(&backend).with_training(&data);
    let ids = [graph.find("fc2.weight").unwrap()];
    let mut run = |t: Taylor| t.score_all(&graph, &ids, &mut cx);
    let four = Taylor::new(CrossEntropy).batch_size(4);
    let first = run(four.clone().batches(1)).unwrap();
    assert_ne!(first, run(four.clone()).unwrap());
    // A last batch of 2 is left out; 5 > 12 / 4 batches are three.
    let five = Taylor::new(CrossEntropy).batch_size(5);
    assert_eq!(run(five.clone()).unwrap(), run(five.batches(2)).unwrap());
    assert_eq!(
        run(four.clone().batches(5)).unwrap(),
        run(four.clone()).unwrap()
    );
    // More examples a batch than there are: one batch of all.
    let all = Taylor::new(CrossEntropy);
    assert_eq!(
        run(all.clone().batch_size(100)).unwrap(),
        run(all.batch_size(12)).unwrap()
    );
    for bad in [four.clone().batch_size(0), four.batches(0)] {
        assert_eq!(run(bad).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn taylor_needs_examples_and_finite_weights() {
    let golden = golden();
    let (graph, data, backend) = (network(&golden), data(&golden), NdarrayBackend::new());
    let prune = ChannelPrune::new(0.5).criterion(Taylor::new(CrossEntropy));
    assert!(prune.needs().training && prune.needs().backend);
    let error = prune.apply(graph.clone(), &mut Context::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Pipeline);
    let mut bad = graph.clone();
    let w = bad.find("fc1.weight").unwrap();
    bad.set_variable(w, Tensor::full(DType::F64, [7, 80], f64::NAN).unwrap())
        .unwrap();
    let mut cx = Context::new().with_backend(&backend).with_training(&data);
    let error = prune.apply(bad, &mut cx).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("batch 0"), "{error}");
    // Labels that the classes do not have.
    let labels = Tensor::new([12], vec![7i64; 12]).unwrap();
    let wrong = TensorDataset::new(vec![tensor(&golden["images"]), labels]).unwrap();
    let mut cx = Context::new().with_backend(&backend).with_training(&wrong);
    let error = prune.apply(graph, &mut cx).unwrap_err();
    assert!(error.to_string().starts_with("batch 0"), "{error}");
}

#[test]
fn fpgm_lamp_and_batch_norm_scales_are_pytorchs() {
    let golden = golden();
    let graph = network(&golden);
    let mut cx = Context::new();
    for (name, scores) in channel_scores(Fpgm, ChannelPrune::new(0.5), &graph, &mut cx) {
        close(&scores, &numbers(&golden["fpgm"][&name]), &name);
    }
    let ids: Vec<ValueId> = WEIGHTS.iter().map(|n| graph.find(n).unwrap()).collect();
    let scores = Lamp.score_all(&graph, &ids, &mut cx).unwrap();
    for (name, scores) in WEIGHTS.iter().zip(&scores) {
        close(scores, &numbers(&golden["lamp"][name]), name);
    }
    let conv = ChannelPrune::new(0.5).include("conv1");
    let scores = channel_scores(BatchNormScale, conv.clone(), &graph, &mut cx);
    close(&scores[0].1, &numbers(&golden["batch_norm"]), "bn1");
    let (small, _) = conv
        .criterion(BatchNormScale)
        .apply(graph.clone(), &mut cx)
        .unwrap();
    let mut sizes = numbers(&golden["batch_norm"]);
    sizes.sort_by(f64::total_cmp);
    let kept = small
        .value(small.find("bn1.weight").unwrap())
        .tensor()
        .unwrap();
    let mut kept: Vec<f64> = kept.to_f64s().iter().map(|v| v.abs()).collect();
    kept.sort_by(f64::total_cmp);
    assert_eq!(kept, sizes[3..]);
    let error = ChannelPrune::new(0.5)
        .criterion(BatchNormScale)
        .apply(graph, &mut cx)
        .unwrap_err();
    assert!(error.to_string().starts_with("conv2.weight"), "{error}");
}

#[test]
fn channel_criteria_do_not_rank_weights() {
    let golden = golden();
    for criterion in [
        Box::new(Fpgm) as Box<dyn Criterion>,
        Box::new(BatchNormScale),
    ] {
        let prune = UnstructuredPrune::new(0.5).criterion(criterion);
        let error = prune
            .apply(network(&golden), &mut Context::new())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("channels"), "{error}");
    }
}

#[test]
fn lamp_keeps_a_weight_of_each_layer() {
    let graph = network(&golden());
    let prune = |c: Box<dyn Criterion>| {
        let prune = UnstructuredPrune::new(0.99)
            .scope(Scope::Global)
            .criterion(c);
        prune.apply(graph.clone(), &mut Context::new()).unwrap().0
    };
    let left = |g: &Graph, name: &str| {
        let tensor = g.value(g.find(name).unwrap()).tensor().unwrap();
        tensor.to_f64s().iter().filter(|v| **v != 0.0).count()
    };
    let lamp = prune(Box::new(Lamp));
    let sizes: Vec<usize> = WEIGHTS.iter().map(|n| left(&lamp, n)).collect();
    assert!(sizes.iter().all(|n| *n >= 1), "{sizes:?}");
    // Within a layer the order is that of magnitude.
    let tensor = |n: &str| lamp.value(lamp.find(n).unwrap()).tensor().unwrap().clone();
    let id = graph.find("conv1.weight").unwrap();
    let content = graph.value(id).tensor().unwrap();
    let mut sorted = content.to_f64s();
    sorted.sort_by(|a, b| b.abs().total_cmp(&a.abs()));
    let kept: Vec<f64> = tensor("conv1.weight").to_f64s();
    assert!(sorted[..sizes[0]].iter().all(|w| kept.contains(w)));
}

#[test]
fn a_criterion_that_gives_too_few_scores_is_named() {
    #[derive(Debug)]
    struct Few;
    impl Criterion for Few {
        fn score(&self, _: &ScoreContext<'_>) -> opt_core::Result<Vec<f64>> {
            Ok(vec![1.0])
        }
    }
    let graph = network(&golden());
    let error = UnstructuredPrune::new(0.5)
        .criterion(Few)
        .apply(graph, &mut Context::new());
    assert!(error.unwrap_err().to_string().contains("Few must give 108"));
}
