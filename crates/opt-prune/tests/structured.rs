//! Masked and shrunk graphs compute the same, over random graphs.

use opt_core::ops::{UnaryOp, Window};
use opt_core::{
    Backend, Context, DType, Graph, GraphBuilder, Pass, Result, Tensor, TensorType, ValueId,
};
use opt_ndarray::NdarrayBackend;
use opt_prune::{ChannelPrune, Magnitude, Random};
use proptest::prelude::*;

/// Adds layers with random weights.
struct Net {
    b: GraphBuilder,
    stream: opt_core::random::Philox,
    count: u64,
}

impl Net {
    fn random(&mut self, shape: &[usize]) -> Tensor {
        self.count += 1;
        let len = shape.iter().product::<usize>() as u64;
        let data: Vec<f64> = (0..len)
            .map(|i| self.stream.normal(self.count, i) * 0.5)
            .collect();
        Tensor::from_f64s(DType::F32, shape, &data).unwrap()
    }

    fn variable(&mut self, shape: &[usize]) -> ValueId {
        let tensor = self.random(shape);
        let name = format!("v{}", self.count);
        self.b.variable(&name, tensor).unwrap()
    }

    fn channels(&self, x: ValueId) -> usize {
        self.b.type_of(x).shape[1].fixed().unwrap()
    }

    fn conv(&mut self, x: ValueId, out: usize, groups: usize) -> ValueId {
        let per = self.channels(x) / groups;
        let (w, bias) = (self.variable(&[out, per, 3, 3]), self.variable(&[out]));
        let window = Window::new(2).pad(1);
        self.b.conv(x, w, Some(bias), window, groups).unwrap()
    }

    fn norm(&mut self, x: ValueId) -> ValueId {
        let c = self.channels(x);
        let [scale, bias, mean] = [(); 3].map(|()| self.variable(&[c]));
        self.count += 1;
        let name = format!("v{}", self.count);
        let var = Tensor::full(DType::F32, [c], 1.5).unwrap();
        let var = self.b.variable(&name, var).unwrap();
        self.b.batch_norm(x, scale, bias, mean, var, 1e-5).unwrap()
    }
}

/// A network from a list of block kinds.
fn network(seed: u64, blocks: &[u8]) -> Graph {
    let mut net = Net {
        b: GraphBuilder::new("random"),
        stream: opt_core::random::Philox::new(seed),
        count: 0,
    };
    let ty = TensorType::new(DType::F32, [2, 3, 4, 4]);
    let x = net.b.input("x", ty).unwrap();
    let mut x = net.conv(x, 8, 1);
    for block in blocks {
        let c = net.channels(x);
        x = match block {
            0 => {
                let y = net.conv(x, 8, 1);
                net.b.relu(y).unwrap()
            }
            1 => {
                let y = net.conv(x, c, 1);
                let y = net.norm(y);
                let y = net.b.unary(UnaryOp::Sigmoid, y).unwrap();
                net.b.add(x, y).unwrap()
            }
            2 => {
                let y = net.conv(x, 4, 1);
                let y = net.b.silu(y).unwrap();
                net.b.concat(&[y, x], 1).unwrap()
            }
            3 => {
                let y = net.conv(x, c, c);
                net.norm(y)
            }
            4 if c.is_multiple_of(2) => net.conv(x, c, 2),
            5 => {
                let parts = net.b.split(x, 1, &[c / 2, c - c / 2]).unwrap();
                let y = net.b.tanh(parts[1]).unwrap();
                net.b.concat(&[y, parts[0]], 1).unwrap()
            }
            _ => {
                let y = net.conv(x, c, 1);
                net.b.softplus(y).unwrap()
            }
        };
    }
    let pooled = net.b.max_pool(x, 2).unwrap();
    let flat = net.b.flatten(pooled, 1).unwrap();
    let width = net.channels(flat);
    let w1 = net.variable(&[6, width]);
    let hidden = net.b.matmul_t(flat, w1, false, true).unwrap();
    let bias = net.variable(&[6]);
    let hidden = net.b.add(hidden, bias).unwrap();
    let hidden = net.b.unary(UnaryOp::Sigmoid, hidden).unwrap();
    let w2 = net.variable(&[3, 6]);
    let y = net.b.matmul_t(hidden, w2, false, true).unwrap();
    net.b.output("y", y).unwrap();
    net.b.finish().unwrap()
}

fn outputs(graph: &Graph) -> Vec<f64> {
    let stream = opt_core::random::Philox::new(77);
    let data: Vec<f64> = (0..96).map(|i| stream.normal(0, i)).collect();
    let x = Tensor::from_f64s(DType::F32, [2, 3, 4, 4], &data).unwrap();
    let backend = NdarrayBackend::new().threads(1);
    backend.run_once(graph, &[x]).unwrap()[0].to_f64s()
}

fn check(graph: &Graph, prune: &ChannelPrune) -> Result<usize> {
    let selection = prune.select(graph, &mut Context::new().with_seed(5))?;
    let (masked, shrunk) = (selection.mask(graph)?, selection.shrink(graph)?);
    let (a, b) = (outputs(&masked), outputs(&shrunk));
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} {b}\n{shrunk}");
    }
    assert!(selection.is_empty() || shrunk.parameter_count() < graph.parameter_count());
    Ok(selection.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn masked_and_shrunk_agree(
        seed in 0u64..1000,
        blocks in proptest::collection::vec(0u8..7, 0..5),
        sparsity in 0.1f64..0.9,
        global: bool,
    ) {
        let graph = network(seed, &blocks);
        let mut prune = ChannelPrune::new(sparsity).criterion(Magnitude::l2());
        if global {
            prune = prune.global();
        }
        check(&graph, &prune).unwrap();
        check(&graph, &ChannelPrune::new(sparsity).criterion(Random)).unwrap();
    }
}

#[test]
fn every_kind_of_block_can_shrink() {
    for block in 0..7 {
        let graph = network(1, &[block, 0]);
        assert!(
            check(&graph, &ChannelPrune::new(0.5)).unwrap() > 2,
            "block {block}"
        );
    }
}

#[test]
fn widths_are_met_or_refused() {
    let graph = network(3, &[0]);
    let names: Vec<String> = graph
        .variables()
        .filter(|(_, v, _)| v.ty().rank() == 4)
        .map(|(_, v, _)| v.name().to_string())
        .collect();
    let mut cx = Context::new();
    let prune = ChannelPrune::to_widths([(names[0].clone(), 5), (names[1].clone(), 2)]);
    let (small, _) = prune.apply(graph.clone(), &mut cx).unwrap();
    let shape = |n: &str| small.type_of(small.find(n).unwrap()).to_string();
    assert_eq!(shape(&names[0]), "f32[5,3,3,3]");
    assert_eq!(shape(&names[1]), "f32[2,5,3,3]");
    for widths in [
        (names[0].clone(), 0),
        (names[0].clone(), 9),
        ("nowhere".into(), 1),
    ] {
        let prune = ChannelPrune::to_widths([widths]);
        assert!(prune.apply(graph.clone(), &mut cx).is_err());
    }
}

#[test]
fn bad_sparsities_are_errors() {
    let graph = network(1, &[]);
    for sparsity in [-0.1, 1.1, f64::NAN] {
        let result = ChannelPrune::new(sparsity).select(&graph, &mut Context::new());
        assert!(result.is_err(), "{sparsity}");
    }
    assert!(
        ChannelPrune::new(1.0)
            .select(&graph, &mut Context::new())
            .is_ok()
    );
}

/// A perceptron of 20 and 30 hidden neurons.
fn perceptron() -> Graph {
    use opt_core::nn::{Linear, ModelBuilder};
    let mut m = ModelBuilder::new("m", 0);
    let mut x = m.batch("x", [6]).unwrap();
    for (name, width) in [("fc1", 20), ("fc2", 30)] {
        x = m.layer(name, Linear::new(width), x).unwrap();
        x = m.relu(x).unwrap();
    }
    let y = m.layer("fc3", Linear::new(4), x).unwrap();
    m.output("y", y).unwrap();
    m.finish().unwrap()
}

fn widths(graph: &Graph) -> [usize; 2] {
    ["fc1.bias", "fc2.bias"].map(|n| {
        let shape = &graph.type_of(graph.find(n).unwrap()).shape;
        shape[0].fixed().unwrap()
    })
}

#[test]
fn limits_hold_in_every_way_of_choosing() {
    let run = |p: ChannelPrune| {
        let (small, _) = p.apply(perceptron(), &mut Context::new()).unwrap();
        widths(&small)
    };
    let new = ChannelPrune::new;
    assert_eq!(run(new(0.5)), [10, 15]);
    assert_eq!(run(new(0.5).layer("fc2", 0.9)), [10, 3]);
    assert_eq!(run(new(0.5).layer("fc", 0.1).layer("fc2", 0.0)), [18, 30]);
    assert_eq!(run(new(0.5).round_to(8)), [16, 16]);
    assert_eq!(run(new(0.5).round_to(64)), [20, 30]);
    assert_eq!(run(new(0.9).max_sparsity(0.7)), [6, 9]);
    assert_eq!(run(new(0.9).min_channels(5)), [5, 5]);
    for share in [0.3, 0.6, 0.95] {
        let [a, b] = run(new(share).global().max_sparsity(0.5).round_to(4));
        assert!(
            a >= 10 && b >= 15 && a % 4 == 0 && b % 4 == 0 || b == 30,
            "{a} {b}"
        );
        // The layer with a share of its own is no part of the ranking.
        let [a, b] = run(new(share).global().layer("fc2", 0.5));
        assert_eq!((a, b), (20 - (share * 20.0).round() as usize, 15));
    }
    let fixed = ChannelPrune::to_widths([("fc1", 7)]).round_to(8);
    assert_eq!(run(fixed), [7, 30]);
}

#[test]
fn bad_limits_are_errors() {
    let run = |p: ChannelPrune| p.apply(perceptron(), &mut Context::new()).unwrap_err();
    for bad in [-0.1, 1.1, f64::NAN] {
        run(ChannelPrune::new(0.5).max_sparsity(bad));
        run(ChannelPrune::new(0.5).layer("fc1", bad));
    }
    run(ChannelPrune::new(0.5).round_to(0));
    let error = run(ChannelPrune::new(0.5).layer("fc9", 0.5));
    assert_eq!(error.kind(), opt_core::ErrorKind::NoEffect);
    run(ChannelPrune::new(0.5).include("fc9"));
}

#[test]
fn nan_weights_are_an_error_at_their_name() {
    let mut graph = perceptron();
    let w = graph.find("fc2.weight").unwrap();
    let nan = Tensor::full(DType::F32, [30, 20], f64::NAN).unwrap();
    graph.set_variable(w, nan).unwrap();
    for prune in [
        ChannelPrune::new(0.5),
        ChannelPrune::new(0.5).criterion(opt_prune::Fpgm),
        ChannelPrune::new(0.5).criterion(opt_prune::Lamp),
    ] {
        let error = prune.apply(graph.clone(), &mut Context::new()).unwrap_err();
        assert!(error.to_string().starts_with("fc2.weight"), "{error}");
    }
}

#[test]
fn networks_with_batch_norm_shrink_by_every_criterion() {
    use opt_core::nn::zoo::{self, MobileNetV2};
    use opt_data::TensorDataset;
    use opt_prune::{BatchNormScale, Criterion, Fpgm, Lamp, Taylor};
    use opt_train::CrossEntropy;

    let stream = opt_core::random::Philox::new(3);
    let images: Vec<f64> = (0..4 * 768).map(|i| stream.normal(1, i)).collect();
    let images = Tensor::from_f64s(DType::F32, [4, 3, 16, 16], &images).unwrap();
    let labels = Tensor::new([4], [0i64, 1, 2, 3]).unwrap();
    let data = TensorDataset::new(vec![images.clone(), labels]).unwrap();
    let backend = NdarrayBackend::new().threads(1);
    let mut config = MobileNetV2::cifar();
    config.classes = 4;
    config.image = [3, 16, 16];
    config.width = 0.25;
    for graph in [
        zoo::resnet20([3, 16, 16], 4, 0).unwrap(),
        zoo::mobilenet_v2(&config, 0).unwrap(),
    ] {
        // Scales that differ, so that what goes is not by position.
        let mut graph = graph;
        let scales: Vec<_> = graph
            .nodes()
            .filter(|(_, n)| matches!(n.op(), opt_core::ops::Op::BatchNorm(_)))
            .map(|(_, n)| n.inputs()[1])
            .collect();
        for (k, id) in scales.into_iter().enumerate() {
            let shape = graph.value(id).tensor().unwrap().shape().to_vec();
            let data: Vec<f64> = (0..shape[0] as u64)
                .map(|i| 0.5 + stream.uniform(9 + k as u64, i))
                .collect();
            let scale = Tensor::from_f64s(DType::F32, &shape, &data).unwrap();
            graph.set_variable(id, scale).unwrap();
        }
        let criteria: [Box<dyn Criterion>; 4] = [
            Box::new(BatchNormScale),
            Box::new(Fpgm),
            Box::new(Lamp),
            Box::new(Taylor::new(CrossEntropy)),
        ];
        for criterion in criteria {
            let name = format!("{criterion:?}");
            let prune = ChannelPrune::new(0.4).global().criterion(criterion);
            let mut cx = Context::new().with_backend(&backend).with_training(&data);
            let selection = prune.select(&graph, &mut cx).unwrap();
            assert!(selection.len() > 20, "{name}");
            let run = |g: &Graph| {
                let inputs = std::slice::from_ref(&images);
                backend.run_once(g, inputs).unwrap()[0].to_f64s()
            };
            let (masked, small) = (
                selection.mask(&graph).unwrap(),
                selection.shrink(&graph).unwrap(),
            );
            for (a, b) in run(&masked).iter().zip(run(&small)) {
                assert!((a - b).abs() <= 1e-4 * (1.0 + a.abs()), "{name}: {a} {b}");
            }
        }
    }
}
