//! Attention heads and feed-forward neurons: masked and shrunk models agree, in graphs of the
//! library's layers and in one that PyTorch exported.

use std::path::Path;

use opt_core::nn::{Linear, ModelBuilder, MultiHeadAttention, TransformerEncoderLayer};
use opt_core::ops::UnaryOp;
use opt_core::random::Philox;
use opt_core::{Backend, Context, DType, ErrorKind, Graph, Pass, Result, Tensor, ValueId};
use opt_ndarray::NdarrayBackend;
use opt_onnx::{Exporter, Importer, trainable};
use opt_prune::{ChannelPrune, Criterion, Magnitude, Random, Structures};
use serde_json::Value;

const HEADS: usize = 4;

fn encoder(layers: usize, causal: bool) -> Graph {
    let mut m = ModelBuilder::new("encoder", 3);
    let mut x = m.batch("x", [5, 16]).unwrap();
    for i in 0..layers {
        let layer = TransformerEncoderLayer::new(HEADS, 24)
            .activation(UnaryOp::Gelu { tanh: false })
            .dropout(0.1)
            .norm_first(i % 2 == 1)
            .causal(causal);
        x = m.layer(&format!("layers.{i}"), layer, x).unwrap();
    }
    let x = m.mean(x, &[1], false).unwrap();
    let y = m.layer("head", Linear::new(3), x).unwrap();
    m.output("logits", y).unwrap();
    m.finish().unwrap()
}

fn run(graph: &Graph, inputs: &[Tensor]) -> Vec<f64> {
    let backend = NdarrayBackend::new().threads(1);
    backend.run_once(graph, inputs).unwrap()[0].to_f64s()
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{a} {b}");
    }
}

fn random(shape: &[usize]) -> Tensor {
    let len = shape.iter().product::<usize>() as u64;
    let data: Vec<f64> = (0..len).map(|i| Philox::new(9).normal(0, i)).collect();
    Tensor::from_f64s(DType::F32, shape, &data).unwrap()
}

fn sizes(graph: &Graph, part: &str) -> Vec<String> {
    let variables = graph
        .variables()
        .filter(|(_, v, _)| v.name().contains(part));
    variables.map(|(_, v, _)| v.ty().to_string()).collect()
}

/// Masks and removes what a pass chooses, and compares; gives the shrunk graph.
fn check(graph: &Graph, prune: &ChannelPrune, inputs: &[Tensor], expected: usize) -> Graph {
    let selection = prune
        .select(graph, &mut Context::new().with_seed(2))
        .unwrap();
    assert_eq!(selection.len(), expected);
    let (masked, small) = (
        selection.mask(graph).unwrap(),
        selection.shrink(graph).unwrap(),
    );
    close(&run(&small, inputs), &run(&masked, inputs));
    assert!(small.parameter_count() < graph.parameter_count());
    small
}

#[test]
fn heads_go_through_all_four_projections() {
    let x = random(&[2, 5, 16]);
    for causal in [false, true] {
        let graph = encoder(2, causal);
        let small = check(
            &graph,
            &ChannelPrune::heads(0.25),
            std::slice::from_ref(&x),
            2,
        );
        for part in ["q_proj.weight", "k_proj.weight", "v_proj.weight"] {
            assert_eq!(sizes(&small, part), ["f32[12,16]"; 2], "{part}");
        }
        assert_eq!(sizes(&small, "out_proj.weight"), ["f32[16,12]"; 2]);
        assert_eq!(sizes(&small, "v_proj.bias"), ["f32[12]"; 2]);
        assert_eq!(sizes(&small, "linear1.weight"), ["f32[24,16]"; 2]);
        // One of the projections names all four.
        let one = ChannelPrune::heads(0.5).include("layers.0.self_attn.k_proj");
        check(&graph, &one, std::slice::from_ref(&x), 2);
        let other = ChannelPrune::heads(0.5).exclude("layers.0.self_attn.k_proj");
        check(&graph, &other, std::slice::from_ref(&x), 2);
        let random = ChannelPrune::heads(0.5).criterion(Random);
        check(&graph, &random, std::slice::from_ref(&x), 4);
        let all = ChannelPrune::heads(1.0).min_channels(2);
        check(&graph, &all, std::slice::from_ref(&x), 4);
        let global = ChannelPrune::heads(0.5).global().criterion(Magnitude::l2());
        check(&graph, &global, std::slice::from_ref(&x), 4);
    }
}

#[test]
fn neurons_go_without_heads_and_with() {
    let (graph, x) = (encoder(2, false), random(&[2, 5, 16]));
    let neurons = ChannelPrune::new(0.5).keep_heads();
    let small = check(&graph, &neurons, std::slice::from_ref(&x), 24);
    assert_eq!(sizes(&small, "linear1.weight"), ["f32[12,16]"; 2]);
    assert_eq!(sizes(&small, "linear2.weight"), ["f32[16,12]"; 2]);
    assert_eq!(sizes(&small, "q_proj.weight"), ["f32[16,16]"; 2]);
    let both = check(
        &graph,
        &ChannelPrune::new(0.5),
        std::slice::from_ref(&x),
        28,
    );
    assert_eq!(sizes(&both, "linear1.weight"), ["f32[12,16]"; 2]);
    assert_eq!(sizes(&both, "q_proj.weight"), ["f32[8,16]"; 2]);
}

#[test]
fn a_graph_without_attention_has_no_heads() {
    let graph = opt_core::nn::zoo::lenet_300_100(16, 4, 0).unwrap();
    let error = ChannelPrune::heads(0.5)
        .apply(graph, &mut Context::new())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
    assert!(error.to_string().contains("attention"), "{error}");
}

#[test]
fn cross_attention_and_lengths_of_symbols() {
    use opt_core::{Dim, Shape, TensorType};
    let mut m = ModelBuilder::new("cross", 1);
    let dims = |length: &str| Shape::new([Dim::from("batch"), length.into(), 16.into()]);
    let [x, y] = [("x", "length"), ("y", "other")].map(|(name, length)| {
        m.input(name, TensorType::new(DType::F32, dims(length)))
            .unwrap()
    });
    let attention = MultiHeadAttention::new(HEADS);
    let z = m
        .scope("attn", |m| attention.attend(m, x, y, y, None))
        .unwrap();
    m.output("z", z).unwrap();
    let graph = m.finish().unwrap();
    let inputs = [random(&[2, 3, 16]), random(&[2, 6, 16])];
    check(&graph, &ChannelPrune::heads(0.5), &inputs, 2);
}

/// Scores the heads that shall go 0 and the others 1.
#[derive(Debug)]
struct Choose(Vec<Vec<usize>>);

impl Criterion for Choose {
    fn score_structures(
        &self,
        graph: &Graph,
        layers: &[Structures],
        _: &[ValueId],
        _: &mut Context<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        assert_eq!(layers.len(), self.0.len());
        let of_layer = |layer: &Structures| {
            assert!(layer.heads && layer.total == HEADS && layer.weights.len() == 3);
            // The second layer reads what the first one wrote.
            let first = graph
                .variables()
                .position(|(id, _, _)| id == layer.weights[0].0);
            let later = layers.iter().filter(|other| {
                let at = graph
                    .variables()
                    .position(|(id, _, _)| id == other.weights[0].0);
                at < first
            });
            let gone = &self.0[later.count()];
            let score = |g: &opt_core::pass::AxisGroup| {
                let head = g.entries[&layer.weights[0]][0] / 4;
                f64::from(u8::from(!gone.contains(&head)))
            };
            layer.groups.iter().map(score).collect()
        };
        Ok(layers.iter().map(of_layer).collect())
    }
}

fn golden() -> (Graph, Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let graph = Importer::new()
        .load(folder.join("attention_heads.onnx"))
        .unwrap();
    let golden = include_str!("golden/attention_heads.json");
    let graph = trainable(graph, |_| true).unwrap();
    (graph, serde_json::from_str(golden).unwrap())
}

fn integers(value: &Value) -> Vec<i64> {
    let rows = value.as_array().unwrap().iter();
    let row = |r: &Value| {
        r.as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_i64().unwrap())
            .collect()
    };
    rows.flat_map(|r| -> Vec<i64> { row(r) }).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    let rows = value.as_array().unwrap().iter();
    let row = |r: &Value| {
        r.as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_f64().unwrap())
            .collect()
    };
    rows.flat_map(|r| -> Vec<f64> { row(r) }).collect()
}

#[test]
fn an_encoder_of_pytorch_without_heads_is_the_one_with_masked_heads() {
    let (graph, golden) = golden();
    let inputs = ["ids", "mask"].map(|n| Tensor::new([3, 7], integers(&golden[n])).unwrap());
    close(&run(&graph, &inputs), &floats(&golden["dense"]));
    // Layer by layer, since their numbers of heads differ.
    let gone: Vec<Vec<usize>> = golden["masked_heads"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| {
            l.as_array()
                .unwrap()
                .iter()
                .map(|h| h.as_u64().unwrap() as usize)
                .collect()
        })
        .collect();
    let total: usize = gone.iter().map(Vec::len).sum();
    let share = total as f64 / (2 * HEADS) as f64;
    let prune = ChannelPrune::heads(share).global().criterion(Choose(gone));
    let selection = prune.select(&graph, &mut Context::new()).unwrap();
    assert_eq!(selection.len(), total);
    let small = selection.shrink(&graph).unwrap();
    close(&run(&small, &inputs), &floats(&golden["masked"]));
    close(
        &run(&selection.mask(&graph).unwrap(), &inputs),
        &floats(&golden["masked"]),
    );
    // And as a file again.
    let bytes = Exporter::new().to_bytes(&small).unwrap();
    let again = Importer::new().read(bytes).unwrap();
    close(&run(&again, &inputs), &floats(&golden["masked"]));
    // Other lengths, and neurons.
    let other = [
        Tensor::new([1, 4], [3i64, 1, 4, 1]).unwrap(),
        Tensor::new([1, 4], [1i64, 1, 1, 0]).unwrap(),
    ];
    close(
        &run(&small, &other),
        &run(&selection.mask(&graph).unwrap(), &other),
    );
    let neurons = ChannelPrune::new(0.25).keep_heads();
    let small = check(&graph, &neurons, &inputs, 12);
    assert_eq!(
        sizes(&small, "")
            .iter()
            .filter(|t| *t == "f32[16,18]")
            .count(),
        2
    );
}

#[test]
fn queries_keys_and_values_of_one_product_are_split_first() {
    let mut m = ModelBuilder::new("fused", 1);
    let x = m.batch("x", [5, 16]).unwrap();
    let y = m.layer("qkv", Linear::new(48), x).unwrap();
    let parts = m.split(y, 2, &[16, 16, 16]).unwrap();
    let heads: Vec<ValueId> = parts
        .into_iter()
        .map(|part| {
            let dims = m.type_of(part).shape.dims()[..2].to_vec();
            let shape = [&dims[..], &[HEADS.into(), 4.into()]].concat();
            let part = m.reshape(part, shape).unwrap();
            m.transpose(part, &[0, 2, 1, 3]).unwrap()
        })
        .collect();
    let y = m
        .attention(heads[0], heads[1], heads[2], None, true)
        .unwrap();
    let y = m.transpose(y, &[0, 2, 1, 3]).unwrap();
    let shape = m.type_of(x).shape.clone();
    let y = m.reshape(y, shape).unwrap();
    let y = m.layer("proj", Linear::new(16), y).unwrap();
    m.output("y", y).unwrap();
    let graph = m.finish().unwrap();
    let small = check(&graph, &ChannelPrune::heads(0.5), &[random(&[2, 5, 16])], 2);
    assert_eq!(sizes(&small, "qkv.weight"), ["f32[24,16]"]);
    assert_eq!(sizes(&small, "proj.weight"), ["f32[16,8]"]);
}

/// `[N, L, 3E] -> [N, L, 3, heads, E / heads]`, as vision transformers have it.
#[test]
fn queries_keys_and_values_of_one_reshape() {
    use opt_core::{Dim, Shape, TensorType};
    let mut m = ModelBuilder::new("vit", 1);
    let dims = [Dim::from("batch"), "length".into(), 16.into()];
    let ty = TensorType::new(DType::F32, Shape::new(dims.clone()));
    let x = m.input("x", ty).unwrap();
    let y = m.layer("qkv", Linear::new(48), x).unwrap();
    let [batch, length, _] = dims.clone();
    let shape = [batch, length, 3.into(), HEADS.into(), 4.into()];
    let y = m.reshape(y, Shape::new(shape)).unwrap();
    let y = m.transpose(y, &[2, 0, 3, 1, 4]).unwrap();
    let parts = m.split(y, 0, &[1, 1, 1]).unwrap();
    let parts: Vec<ValueId> = parts.iter().map(|&p| m.squeeze(p, &[0]).unwrap()).collect();
    // Attention spelt out, with the scale on the queries.
    let q = m.mul_scalar(parts[0], 0.5).unwrap();
    let scores = m.matmul_t(q, parts[1], false, true).unwrap();
    let weights = m.softmax(scores, 3).unwrap();
    let weights = m.dropout(weights, 0.1, 0).unwrap();
    let y = m.matmul(weights, parts[2]).unwrap();
    let y = m.transpose(y, &[0, 2, 1, 3]).unwrap();
    let y = m.reshape(y, Shape::new(dims)).unwrap();
    let y = m.layer("proj", Linear::new(16), y).unwrap();
    m.output("y", y).unwrap();
    let graph = m.finish().unwrap();
    let small = check(&graph, &ChannelPrune::heads(0.5), &[random(&[2, 5, 16])], 2);
    assert_eq!(sizes(&small, "qkv.weight"), ["f32[24,16]"]);
    assert_eq!(sizes(&small, "proj.weight"), ["f32[16,8]"]);
}

/// `[L, 1, 3E] -> [L, 1, 3, E] -> 3 times [L, heads, E / heads]`, as PyTorch's
/// `MultiheadAttention` has it for one example.
#[test]
fn queries_keys_and_values_as_pytorch_has_them_for_one_example() {
    let mut m = ModelBuilder::new("mha", 1);
    let ty = opt_core::TensorType::new(DType::F32, [5, 1, 16]);
    let x = m.input("x", ty).unwrap();
    let y = m.layer("in_proj", Linear::new(48), x).unwrap();
    let y = m.reshape(y, [5, 1, 3, 16]).unwrap();
    let y = m.unsqueeze(y, &[0]).unwrap();
    let y = m.transpose(y, &[3, 1, 2, 0, 4]).unwrap();
    let y = m.squeeze(y, &[3]).unwrap();
    let heads: Vec<ValueId> = (0..3)
        .map(|i| {
            let part = m.slice(y, 0, i, i + 1).unwrap();
            let part = m.reshape(part, [5, HEADS, 4]).unwrap();
            let part = m.transpose(part, &[1, 0, 2]).unwrap();
            m.reshape(part, [1, HEADS, 5, 4]).unwrap()
        })
        .collect();
    let y = m
        .attention(heads[0], heads[1], heads[2], None, false)
        .unwrap();
    let y = m.transpose(y, &[2, 0, 1, 3]).unwrap();
    let y = m.reshape(y, [5, 16]).unwrap();
    let y = m.layer("out_proj", Linear::new(16), y).unwrap();
    m.output("y", y).unwrap();
    let graph = m.finish().unwrap();
    let small = check(&graph, &ChannelPrune::heads(0.5), &[random(&[5, 1, 16])], 2);
    assert_eq!(sizes(&small, "in_proj.weight"), ["f32[24,16]"]);
    assert_eq!(sizes(&small, "out_proj.weight"), ["f32[16,8]"]);
}
