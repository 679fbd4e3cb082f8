//! Budgets and rounds of structured pruning.

use std::sync::Arc;

use opt_core::nn::{Conv, Linear, ModelBuilder, zoo};
use opt_core::{Context, DType, ErrorKind, Graph, Pass, Report, Result, Tensor};
use opt_eval::{LatencyBench, ModelCost, weights_bytes};
use opt_ndarray::NdarrayBackend;
use opt_prune::{
    Between, Budget, ChannelPrune, Constant, GradualPrune, Magnitude, PolynomialDecay, PruneReport,
    PruneRetrain, UnstructuredPrune,
};

fn model() -> Graph {
    let mut m = ModelBuilder::new("m", 0);
    let x = m.batch("image", [3, 8, 8]).unwrap();
    let x = m.layer("conv1", Conv::new(12, [3, 3]), x).unwrap();
    let x = m.relu(x).unwrap();
    let x = m.layer("conv2", Conv::new(10, [3, 3]), x).unwrap();
    let x = m.relu(x).unwrap();
    let x = m.flatten(x, 1).unwrap();
    let x = m.layer("fc1", Linear::new(14), x).unwrap();
    let x = m.relu(x).unwrap();
    let y = m.layer("fc2", Linear::new(4), x).unwrap();
    m.output("y", y).unwrap();
    m.finish().unwrap()
}

fn parameters(graph: &Graph) -> f64 {
    graph.parameter_count() as f64
}

fn macs(graph: &Graph) -> f64 {
    ModelCost::of_one(graph).unwrap().macs as f64
}

fn bytes(graph: &Graph) -> f64 {
    weights_bytes(graph).unwrap() as f64
}

#[test]
fn the_largest_model_within_the_budget_is_found() {
    let graph = model();
    let of = |b: Budget, global: bool| {
        let prune = ChannelPrune::to_budget(b).criterion(Magnitude::l2());
        if global { prune.global() } else { prune }
    };
    let steps = 12 + 10 + 14;
    for global in [false, true] {
        for share in [0.2, 0.5, 0.9] {
            for (budget, cost) in [
                (Budget::parameters(share), parameters as fn(&Graph) -> f64),
                (Budget::macs(share), macs),
                (Budget::bytes(share), bytes),
                (Budget::of("own", share, |g| Ok(parameters(g))), parameters),
            ] {
                let mut cx = Context::new();
                let prune = of(budget.clone(), global);
                let (small, _) = prune.apply(graph.clone(), &mut cx).unwrap();
                let left = cost(&small) / cost(&graph);
                assert!(left <= share, "{budget}: {left}");
                // One channel less, and the budget is not met.
                let first = (0..=steps).map(|step| {
                    let sparsity = step as f64 / steps as f64;
                    let mut plain = ChannelPrune::new(sparsity).criterion(Magnitude::l2());
                    if global {
                        plain = plain.global();
                    }
                    let (other, _) = plain.apply(graph.clone(), &mut cx).unwrap();
                    cost(&other) / cost(&graph)
                });
                let best = first.into_iter().find(|other| *other <= share);
                assert_eq!(Some(left), best, "{budget}");
            }
        }
    }
}

#[test]
fn budgets_that_cannot_be_met_say_how_near_it_came() {
    let run = |budget: Budget| {
        ChannelPrune::to_budget(budget)
            .apply(model(), &mut Context::new())
            .unwrap_err()
    };
    let error = run(Budget::parameters(1e-6));
    assert!(error.to_string().contains("cannot be met: 0.0"), "{error}");
    let narrow = ChannelPrune::to_budget(Budget::macs(0.5)).min_channels(64);
    assert!(narrow.apply(model(), &mut Context::new()).is_err());
    for share in [0.0, -1.0, 1.5, f64::NAN, f64::INFINITY] {
        assert_eq!(run(Budget::macs(share)).kind(), ErrorKind::InvalidArgument);
    }
    let nothing = run(Budget::of("nothing", 0.5, |_| Ok(0.0)));
    assert!(nothing.to_string().contains("nothing"), "{nothing}");
    let latency = Budget::latency(0.5, LatencyBench::new(), vec![]);
    assert_eq!(run(latency).kind(), ErrorKind::Pipeline);
    let all = ChannelPrune::to_budget(Budget::parameters(1.0));
    assert_eq!(
        all.apply(model(), &mut Context::new()).unwrap().1.changed,
        0
    );
}

#[test]
fn latency_is_measured_on_the_backend() {
    let (graph, backend) = (
        zoo::lenet_300_100(784, 10, 0).unwrap(),
        NdarrayBackend::new().threads(1),
    );
    let inputs = vec![Tensor::zeros(DType::F32, [64, 784]).unwrap()];
    let bench = LatencyBench::new().warmup(2).runs(20).turn(2);
    let prune = ChannelPrune::to_budget(Budget::latency(0.6, bench, inputs));
    assert!(prune.needs().backend);
    let mut cx = Context::new().with_backend(&backend);
    let (small, report) = prune.apply(graph.clone(), &mut cx).unwrap();
    assert!(report.changed > 0 && parameters(&small) < parameters(&graph));
}

#[test]
fn symbols_have_to_be_bound_for_counting() {
    let mut m = ModelBuilder::new("m", 0);
    let shape = opt_core::Shape::new(["batch".into(), "length".into(), opt_core::Dim::from(8)]);
    let x = m
        .input("x", opt_core::TensorType::new(DType::F32, shape))
        .unwrap();
    let x = m.layer("a", Linear::new(16), x).unwrap();
    let x = m.relu(x).unwrap();
    let y = m.layer("b", Linear::new(4), x).unwrap();
    m.output("y", y).unwrap();
    let graph = m.finish().unwrap();
    let run = |b: Budget| ChannelPrune::to_budget(b).apply(graph.clone(), &mut Context::new());
    assert!(run(Budget::macs(0.5)).is_err());
    assert!(run(Budget::macs(0.5).bind("length", 7)).is_ok());
    assert!(run(Budget::parameters(0.5)).is_ok());
}

/// Training that does nothing.
#[derive(Debug, Clone)]
struct Idle(Arc<std::sync::Mutex<Vec<f64>>>);

impl Pass for Idle {
    fn name(&self) -> &str {
        "idle"
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        self.0.lock().unwrap().push(parameters(&graph));
        Ok((graph, Report::new(1)))
    }
}

#[test]
fn channels_go_in_rounds_to_the_same_widths_as_at_once() {
    let log = Arc::new(std::sync::Mutex::new(Vec::new()));
    let graph = zoo::lenet_300_100(64, 10, 0).unwrap();
    let run = |prune: ChannelPrune, schedule: Box<dyn opt_prune::SparsitySchedule>| {
        let rounds = PruneRetrain::new(prune, schedule, 4, Idle(log.clone()));
        rounds.apply(graph.clone(), &mut Context::new())
    };
    let linear = PolynomialDecay::linear(0.0, 0.6).unwrap();
    let (small, _) = run(ChannelPrune::new(0.0), Box::new(linear)).unwrap();
    let (once, _) = ChannelPrune::new(0.6)
        .apply(graph.clone(), &mut Context::new())
        .unwrap();
    let shapes = |g: &Graph| -> Vec<Vec<usize>> {
        let report = PruneReport::between(&graph, g).unwrap();
        report.layers.into_iter().map(|l| l.shape_after).collect()
    };
    assert_eq!(shapes(&small), shapes(&once));
    let sizes = std::mem::take(&mut *log.lock().unwrap());
    assert!(sizes.windows(2).all(|w| w[1] < w[0]), "{sizes:?}");
    // Nothing at first, all at once in the middle, nothing more after it.
    let late = Between::new(0.5, 1.0, Constant(0.6))
        .unwrap()
        .dense_before();
    run(ChannelPrune::new(0.0), Box::new(late)).unwrap();
    let sizes = std::mem::take(&mut *log.lock().unwrap());
    assert_eq!(
        sizes,
        [
            parameters(&graph),
            parameters(&once),
            parameters(&once),
            parameters(&once)
        ]
    );

    // A layer with a share of its own goes in proportion.
    let (small, _) = run(ChannelPrune::new(0.6).layer("fc1", 0.3), Box::new(linear)).unwrap();
    assert_eq!(shapes(&small)[..2], [vec![210, 64], vec![40, 210]]);
    log.lock().unwrap().clear();

    let error = run(ChannelPrune::to_budget(Budget::macs(0.5)), Box::new(linear)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let bad = run(ChannelPrune::new(0.0), Box::new(Constant(f64::NAN))).unwrap_err();
    assert!(bad.to_string().starts_with("round 1"), "{bad}");
    assert!(UnstructuredPrune::new(0.1).step(0.0, 0.5).is_ok());
}

#[test]
fn reports_need_the_same_layers() {
    let (a, b) = (zoo::lenet_300_100(64, 10, 0).unwrap(), model());
    let error = PruneReport::between(&a, &b).unwrap_err();
    assert!(error.to_string().starts_with("fc3.weight"), "{error}");
    let report = PruneReport::between(&a, &a).unwrap();
    assert_eq!(
        report.parameters_after,
        64 * 300 + 300 + 300 * 100 + 100 + 1010
    );
    assert!(report.to_string().contains("fc1.weight"));
    assert!(PruneReport::from_json("{").is_err());
}
