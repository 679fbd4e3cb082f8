//! Equalization keeps the function, whatever the graph.

use opt_core::nn::{Conv, LayerNorm, Linear, ModelBuilder};
use opt_core::ops::{Op, Slice, Window};
use opt_core::random::Philox;
use opt_core::{
    Backend, Context, DType, Dim, ErrorKind, Graph, GraphBuilder, Pass, Shape, Tensor, TensorType,
    ValueId,
};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_quant::Equalize;
use proptest::prelude::*;

fn random(seed: u64, shape: &[usize], size: f64) -> Tensor {
    let stream = Philox::new(seed);
    let len = shape.iter().product::<usize>() as u64;
    let data: Vec<f64> = (0..len).map(|i| stream.normal(0, i) * size).collect();
    Tensor::from_f64s(DType::F32, shape, &data).unwrap()
}

/// Random entries whose channels along an axis have ranges from a hundredth to a hundred.
fn uneven(seed: u64, shape: &[usize], axis: usize) -> Tensor {
    let stream = Philox::new(seed ^ 0xabcd);
    let inner: usize = shape[axis + 1..].iter().product();
    let data = random(seed, shape, 0.3).to_f64s().into_iter().enumerate();
    let data: Vec<f64> = data
        .map(|(i, v)| {
            v * 10f64.powf(4.0 * stream.uniform(1, (i / inner % shape[axis]) as u64) - 2.0)
        })
        .collect();
    Tensor::from_f64s(DType::F32, shape, &data).unwrap()
}

fn run(graph: &Graph, x: &Tensor) -> Vec<f64> {
    let (backend, inputs) = (NdarrayBackend::new(), std::slice::from_ref(x));
    let outputs = backend.run_once(graph, inputs).unwrap();
    outputs.iter().flat_map(Tensor::to_f64s).collect()
}

/// The largest difference as a share of the largest value.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    let size = a.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let apart = a
        .iter()
        .zip(b)
        .fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    apart / size.max(1e-30)
}

struct Net {
    b: GraphBuilder,
    seed: u64,
}

impl Net {
    fn new(seed: u64, shape: &[usize]) -> (Net, ValueId) {
        let mut b = GraphBuilder::new("net");
        let mut dims = vec![Dim::from("batch")];
        dims.extend(shape.iter().map(|&n| Dim::from(n)));
        let x = b.input("x", TensorType::new(DType::F32, Shape::new(dims)));
        let x = x.unwrap();
        (Net { b, seed }, x)
    }

    fn weight(&mut self, shape: &[usize]) -> ValueId {
        self.seed += 1;
        let name = format!("w{}", self.seed);
        self.b.variable(&name, uneven(self.seed, shape, 0)).unwrap()
    }

    fn conv(&mut self, x: ValueId, outputs: usize, groups: usize, bias: bool) -> ValueId {
        let inputs = self.b.type_of(x).shape[1].fixed().unwrap();
        let w = self.weight(&[outputs, inputs / groups, 3, 3]);
        let bias = bias.then(|| self.weight(&[outputs]));
        let window = Window::new(2).pad(1);
        self.b.conv(x, w, bias, window, groups).unwrap()
    }

    fn linear(&mut self, x: ValueId, outputs: usize) -> ValueId {
        let rank = self.b.type_of(x).rank();
        let inputs = self.b.type_of(x).shape[rank - 1].fixed().unwrap();
        let w = self.weight(&[outputs, inputs]);
        let bias = self.weight(&[outputs]);
        let y = self.b.matmul_t(x, w, false, true).unwrap();
        self.b.add(y, bias).unwrap()
    }
}

/// A network of depthwise and grouped convolutions, a residual connection, a concatenation and
/// what pools and reshapes, chosen by a seed.
fn network(seed: u64) -> Graph {
    let (mut n, x) = Net::new(seed * 1000, &[2, 6, 6]);
    let pick = |k: u64, of: u64| Philox::new(seed).block(7, k)[0] as u64 % of;
    let mut y = n.conv(x, 4, 1, true);
    y = n.b.relu(y).unwrap();
    for k in 0..4 {
        y = match pick(k, 6) {
            0 => {
                let d = n.conv(y, 4, 4, pick(k + 10, 2) == 0);
                n.b.relu(d).unwrap()
            }
            1 => {
                let d = n.conv(y, 4, 2, true);
                n.b.leaky(d)
            }
            2 => {
                let branch = n.conv(y, 4, 1, true);
                let branch = n.b.relu(branch).unwrap();
                let branch = n.conv(branch, 4, 1, true);
                n.b.add(y, branch).unwrap()
            }
            3 => {
                let branch = n.conv(y, 2, 1, true);
                let branch = n.b.relu(branch).unwrap();
                let both = n.b.concat(&[y, branch], 1).unwrap();
                let both = n.conv(both, 4, 1, true);
                n.b.relu(both).unwrap()
            }
            4 => {
                let halves = Slice {
                    axes: smallvec::smallvec![1],
                    starts: smallvec::smallvec![2],
                    ends: smallvec::smallvec![4],
                    steps: smallvec::smallvec![1],
                };
                let part = n.b.op(halves, &[y]).unwrap();
                let part = n.conv(part, 4, 1, true);
                n.b.add(y, part).unwrap()
            }
            _ => {
                let gate = n.b.sigmoid(y).unwrap();
                n.b.mul(y, gate).unwrap()
            }
        };
    }
    let y = n.b.max_pool(y, 2).unwrap();
    let y = match pick(20, 2) {
        0 => n.b.flatten(y, 1).unwrap(),
        _ => {
            let y = n.b.global_avg_pool(y).unwrap();
            n.b.flatten(y, 1).unwrap()
        }
    };
    let y = n.linear(y, 5);
    let y = n.b.relu(y).unwrap();
    let y = n.linear(y, 3);
    n.b.output("y", y).unwrap();
    n.b.finish().unwrap()
}

trait Leaky {
    fn leaky(&mut self, x: ValueId) -> ValueId;
}

impl Leaky for GraphBuilder {
    fn leaky(&mut self, x: ValueId) -> ValueId {
        use opt_core::ops::{Unary, UnaryOp};
        let op = UnaryOp::LeakyRelu { alpha: 0.1 };
        self.op(Unary { op }, &[x]).unwrap()
    }
}

/// The largest entry of each channel along an axis.
fn ranges(graph: &Graph, name: &str, axis: usize) -> Vec<f64> {
    let tensor = graph.value(graph.find(name).unwrap()).tensor().unwrap();
    let inner: usize = tensor.shape()[axis + 1..].iter().product();
    let mut out = vec![0.0f64; tensor.shape()[axis]];
    for (i, v) in tensor.to_f64s().into_iter().enumerate() {
        let c = i / inner % out.len();
        out[c] = out[c].max(v.abs());
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_function_stays(seed in 0u64..10_000) {
        let graph = network(seed);
        let x = random(seed + 5, &[3, 2, 6, 6], 1.0);
        let (equal, report) = Equalize::new().apply(graph.clone(), &mut Context::new()).unwrap();
        prop_assert!(report.changed > 0);
        let apart = difference(&run(&graph, &x), &run(&equal, &x));
        prop_assert!(apart < 2e-5, "{apart}");
    }
}

#[test]
fn ranges_of_neighbours_are_equal_afterwards() {
    let (mut n, x) = Net::new(1, &[5]);
    let h = n.linear(x, 7);
    let h = n.b.relu(h).unwrap();
    let h = n.linear(h, 6);
    let h = n.b.relu(h).unwrap();
    let y = n.linear(h, 3);
    n.b.output("y", y).unwrap();
    let graph = n.b.finish().unwrap();
    let before = ranges(&graph, "w2", 0);
    assert!(
        before
            .iter()
            .any(|r| r / before[0] > 10.0 || before[0] / r > 10.0)
    );
    let (equal, report) = Equalize::new().apply(graph, &mut Context::new()).unwrap();
    assert_eq!(report.changed, 13);
    for (first, second) in [("w2", "w4"), ("w4", "w6")] {
        let pairs = ranges(&equal, first, 0)
            .into_iter()
            .zip(ranges(&equal, second, 1));
        for (a, b) in pairs {
            assert!((a / b - 1.0).abs() < 5e-3, "{first}: {a} against {b}");
        }
    }
}

#[test]
fn one_layer_has_the_scale_of_the_paper() {
    let mut b = GraphBuilder::new("pair");
    let x = b.input("x", TensorType::new(DType::F32, [1, 1])).unwrap();
    let matrix = |b: &mut GraphBuilder, name: &str, shape: [usize; 2], data: &[f32]| {
        b.variable(name, Tensor::new(shape, data).unwrap()).unwrap()
    };
    let w = matrix(&mut b, "w", [2, 1], &[8.0, -0.5]);
    let v = matrix(&mut b, "v", [1, 2], &[2.0, 2.0]);
    let bias = b
        .variable("b", Tensor::new([2], [1f32, 1.0]).unwrap())
        .unwrap();
    let h = b.matmul_t(x, w, false, true).unwrap();
    let h = b.add(h, bias).unwrap();
    let h = b.relu(h).unwrap();
    let y = b.matmul_t(h, v, false, true).unwrap();
    b.output("y", y).unwrap();
    let (equal, _) = Equalize::new()
        .apply(b.finish().unwrap(), &mut Context::new())
        .unwrap();
    // s = sqrt(r1 r2) / r2: 2 and 1/2; the first layer is divided by it, the second multiplied.
    let of = |name: &str| {
        let found = equal.find(name).unwrap();
        equal.value(found).tensor().unwrap().to_f64s()
    };
    assert_eq!(of("w"), [4.0, -1.0]);
    assert_eq!(of("b"), [0.5, 2.0]);
    assert_eq!(of("v"), [4.0, 1.0]);
}

#[test]
fn heads_of_attention_have_factors_of_their_own() {
    let mut m = ModelBuilder::new("block", 3);
    let x = m.batch("x", [4, 8]).unwrap();
    let x = m.layer("norm", LayerNorm::new(), x).unwrap();
    let split = |m: &mut ModelBuilder, name: &str, x: ValueId| {
        let y = m.layer(name, Linear::new(8), x).unwrap();
        let shape: Vec<Dim> = vec!["batch".into(), 4.into(), 2.into(), 4.into()];
        let y = m.reshape(y, shape).unwrap();
        m.transpose(y, &[0, 2, 1, 3]).unwrap()
    };
    let (q, k) = (split(&mut m, "q", x), split(&mut m, "k", x));
    let v = split(&mut m, "v", x);
    let y = m.attention(q, k, v, None, false).unwrap();
    let y = m.transpose(y, &[0, 2, 1, 3]).unwrap();
    let shape: Vec<Dim> = vec!["batch".into(), 4.into(), 8.into()];
    let y = m.reshape(y, shape).unwrap();
    let y = m.layer("out", Linear::new(8), y).unwrap();
    m.output("y", y).unwrap();
    let mut graph = m.finish().unwrap();
    let v = graph.find("v.weight").unwrap();
    graph.set_variable(v, uneven(1, &[8, 8], 0)).unwrap();
    let (equal, report) = Equalize::new()
        .apply(graph.clone(), &mut Context::new())
        .unwrap();
    assert_eq!(
        report.changed, 8,
        "the channels between values and projection"
    );
    let x = random(9, &[2, 4, 8], 1.0);
    assert!(difference(&run(&graph, &x), &run(&equal, &x)) < 1e-5);
    let pairs = ranges(&equal, "v.weight", 0)
        .into_iter()
        .zip(ranges(&equal, "out.weight", 1));
    for (a, b) in pairs {
        assert!((a / b - 1.0).abs() < 5e-3, "{a} against {b}");
    }
}

#[test]
fn clipping_is_replaced_if_asked_for() {
    let model = |bound: f64| {
        let mut m = ModelBuilder::new("m", 0);
        let x = m.batch("x", [2, 4, 4]).unwrap();
        let y = m.layer("c1", Conv::new(3, [3, 3]), x).unwrap();
        let y = m.clip(y, 0.0, bound).unwrap();
        let y = m.layer("c2", Conv::new(2, [1, 1]), y).unwrap();
        m.output("y", y).unwrap();
        m.finish().unwrap()
    };
    let mut cx = Context::new();
    let held = Equalize::new().apply(model(6.0), &mut cx).unwrap_err();
    assert_eq!(held.kind(), ErrorKind::NoEffect);
    let free = Equalize::new().relu6_as_relu();
    let (equal, report) = free.apply(model(1000.0), &mut cx).unwrap();
    assert_eq!(report.figures["upper bounds removed"], 1.0);
    assert!(equal.nodes().all(|(_, n)| n.op().name() != "Min"));
    let x = random(2, &[2, 2, 4, 4], 1.0);
    assert!(difference(&run(&model(1000.0), &x), &run(&equal, &x)) < 1e-5);
    let error = free.apply(equal, &mut cx).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
}

#[test]
fn high_biases_move_to_the_next_layer() {
    let (mut n, x) = Net::new(3, &[4]);
    let h = n.linear(x, 6);
    let h = n.b.relu(h).unwrap();
    let y = n.linear(h, 3);
    n.b.output("y", y).unwrap();
    let mut graph = n.b.finish().unwrap();
    let (w, bias) = (graph.find("w4").unwrap(), graph.find("w5").unwrap());
    graph.set_variable(w, random(1, &[6, 4], 0.1)).unwrap();
    let high = Tensor::new([6], [5f32, 0.0, 4.0, 0.1, 3.0, 0.0]).unwrap();
    graph.set_variable(bias, high).unwrap();
    let samples = TensorDataset::new(vec![random(4, &[200, 4], 1.0)]).unwrap();
    let backend = NdarrayBackend::new();
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&samples);
    let (equal, report) = Equalize::new()
        .absorb_high_biases()
        .apply(graph.clone(), &mut cx)
        .unwrap();
    assert_eq!(report.figures["high biases absorbed"], 3.0);
    let x = random(8, &[50, 4], 1.0);
    let apart = difference(&run(&graph, &x), &run(&equal, &x));
    assert!(apart < 1e-3, "{apart}");
    let (plain, _) = Equalize::new().apply(graph, &mut cx).unwrap();
    let bias = |g: &Graph| g.value(bias).tensor().unwrap().to_f64s();
    assert!(bias(&equal)[0] < 0.2 * bias(&plain)[0]);
}

#[test]
fn a_factor_stops_where_it_would_change_something() {
    // An output, a weight that is read twice and a function that is not homogeneous.
    let build = |case: usize| {
        let (mut n, x) = Net::new(5, &[4]);
        let h = n.linear(x, 4);
        let h = match case {
            0 => n.b.gelu(h).unwrap(),
            _ => n.b.relu(h).unwrap(),
        };
        let w = n.weight(&[3, 4]);
        let y = n.b.matmul_t(h, w, false, true).unwrap();
        if case == 1 {
            n.b.output("h", h).unwrap();
        }
        if case == 2 {
            let z = n.b.matmul_t(x, w, false, true).unwrap();
            n.b.output("z", z).unwrap();
        }
        n.b.output("y", y).unwrap();
        n.b.finish().unwrap()
    };
    for case in 0..3 {
        let error = Equalize::new().apply(build(case), &mut Context::new());
        assert_eq!(error.unwrap_err().kind(), ErrorKind::NoEffect, "{case}");
    }
    let (fine, _) = Equalize::new()
        .apply(build(3), &mut Context::new())
        .unwrap();
    assert!(fine.nodes().any(|(_, n)| matches!(n.op(), Op::MatMul(_))));
}
