//! Rewinding, re-initialising and lottery tickets.

use std::sync::{Arc, Mutex};

use opt_core::nn::{Init, zoo};
use opt_core::pass::Needs;
use opt_core::{
    Backend, Context, DType, ErrorKind, Event, Graph, Pass, Pipeline, Report, Result, Tensor,
};
use opt_data::digits;
use opt_ndarray::NdarrayBackend;
use opt_prune::{
    ChannelPrune, LotteryTicket, Reinitialize, Rewind, Scope, ShuffleMasks, UnstructuredPrune,
};
use opt_train::{Adam, Constant, CrossEntropy, FineTune, Trainer};
use proptest::prelude::*;

fn model(seed: u64) -> Graph {
    zoo::lenet_300_100(16, 4, seed).unwrap()
}

fn pruned(graph: Graph, sparsity: f64) -> Graph {
    let prune = UnstructuredPrune::new(sparsity).scope(Scope::Global);
    prune.apply(graph, &mut Context::new()).unwrap().0
}

fn content(graph: &Graph, name: &str) -> Vec<f64> {
    let id = graph.find(name).unwrap();
    graph.value(id).tensor().unwrap().to_f64s()
}

fn mask(graph: &Graph, name: &str) -> Vec<bool> {
    let id = graph.find(name).unwrap();
    graph.facts().mask(id).unwrap().to_vec_bool().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn survivors_are_the_initial_values_and_the_rest_is_zero(seed in 0u64..50, sparsity in 0.0f64..=1.0) {
        let initial = model(seed);
        let ticket = pruned(model(seed + 100), sparsity);
        let (ticket, report) = Rewind::to(&initial).apply(ticket, &mut Context::new()).unwrap();
        ticket.verify().unwrap();
        prop_assert!((report.figures["sparsity"] - sparsity).abs() < 1e-3);
        for (_, value, tensor) in ticket.variables() {
            let start = content(&initial, value.name());
            let keep = match value.ty().rank() {
                1 => vec![true; start.len()],
                _ => mask(&ticket, value.name()),
            };
            for ((now, then), keep) in tensor.to_f64s().into_iter().zip(start).zip(keep) {
                prop_assert_eq!(now, if keep { then } else { 0.0 });
            }
        }
    }
}

#[test]
fn reinitialising_keeps_masks_and_the_distribution() {
    let initial = model(0);
    let ticket = pruned(model(1), 0.7);
    let run = |pass: &Reinitialize, seed| {
        let mut cx = Context::new().with_seed(seed);
        let (graph, _) = pass.apply(ticket.clone(), &mut cx).unwrap();
        graph.verify().unwrap();
        graph
    };
    let like = Reinitialize::like(&initial);
    let (a, again, b) = (run(&like, 1), run(&like, 1), run(&like, 2));
    let normal = run(&like.init(Init::RELU), 1);
    // The seed that the model was built with does not draw the same numbers again.
    let linear = run(&Reinitialize::like(&initial).init(Init::LINEAR), 1);
    let (fresh, old) = (
        content(&linear, "fc1.weight"),
        content(&model(1), "fc1.weight"),
    );
    assert!(fresh.iter().zip(&old).filter(|(a, b)| a == b).count() < 10);
    let w = "fc1.weight";
    assert_eq!(content(&a, w), content(&again, w));
    assert_ne!(content(&a, w), content(&b, w));
    let start = content(&initial, w);
    for graph in [&a, &b, &normal] {
        assert_eq!(mask(graph, w), mask(&ticket, w));
        let zeros = content(graph, w).iter().filter(|v| **v == 0.0).count();
        assert_eq!(zeros, mask(graph, w).iter().filter(|k| !**k).count());
    }
    let kept = content(&a, w);
    assert!(kept.iter().all(|v| *v == 0.0 || start.contains(v)));
    // A permutation of the biases, which are not masked.
    let sorted = |g: &Graph| {
        let mut v = content(g, "fc1.bias");
        v.sort_by(f64::total_cmp);
        v
    };
    assert_eq!(sorted(&a), sorted(&initial));
    assert_ne!(content(&a, "fc1.bias"), content(&initial, "fc1.bias"));
    let kept: Vec<f64> = content(&normal, w)
        .into_iter()
        .filter(|v| *v != 0.0)
        .collect();
    let variance = kept.iter().map(|v| v * v).sum::<f64>() / kept.len() as f64;
    assert!((variance - 2.0 / 16.0).abs() < 0.02, "{variance}");
}

#[test]
fn shuffled_masks_have_the_same_sparsity_elsewhere() {
    let ticket = pruned(model(1), 0.8);
    let mut cx = Context::new().with_seed(3);
    let (graph, report) = ShuffleMasks.apply(ticket.clone(), &mut cx).unwrap();
    graph.verify().unwrap();
    assert!(report.changed > 1000);
    for w in ["fc1.weight", "fc2.weight", "fc3.weight"] {
        let (a, b) = (mask(&ticket, w), mask(&graph, w));
        let count = |m: &[bool]| m.iter().filter(|k| **k).count();
        assert_eq!(count(&a), count(&b));
        assert_ne!(a, b);
    }
    let none = ShuffleMasks.apply(model(0), &mut cx).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NoEffect);
}

#[test]
fn graphs_that_do_not_match_are_errors_at_the_variable() {
    let mut cx = Context::new();
    let other = zoo::lenet5([1, 28, 28], 10, 0).unwrap();
    let error = Rewind::to(&other).apply(model(0), &mut cx).unwrap_err();
    assert!(error.to_string().starts_with("fc1.weight"), "{error}");
    let (small, _) = ChannelPrune::new(0.5).apply(model(0), &mut cx).unwrap();
    let error = Rewind::to(&model(0)).apply(small, &mut cx).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
    assert!(error.to_string().contains("f32[150, 16]"), "{error}");
}

/// Adds 1 to every weight, and notes the share of zeros that it found in the first.
#[derive(Debug, Clone)]
struct AddOne(Arc<Mutex<Vec<(f64, f64)>>>);

impl Pass for AddOne {
    fn name(&self) -> &str {
        "add_one"
    }

    fn apply(&self, mut graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let w = content(&graph, "fc1.weight");
        let zeros = w.iter().filter(|v| **v == 0.0).count() as f64 / w.len() as f64;
        let largest = w.iter().fold(0f64, |a, b| a.max(b.abs()));
        self.0.lock().unwrap().push((zeros, largest));
        let all: Vec<_> = graph
            .variables()
            .map(|(id, _, t)| (id, t.clone()))
            .collect();
        for (id, tensor) in all {
            let keep = graph.facts().mask(id).map(|m| m.to_vec_bool().unwrap());
            let data: Vec<f64> = tensor
                .to_f64s()
                .iter()
                .enumerate()
                .map(|(i, v)| {
                    let stays = keep.as_ref().is_none_or(|k| k[i]);
                    if stays { v + 1.0 } else { 0.0 }
                })
                .collect();
            let tensor = Tensor::from_f64s(DType::F32, tensor.shape(), &data).unwrap();
            graph.set_variable(id, tensor).unwrap();
        }
        Ok((graph, Report::new(1)))
    }
}

#[test]
fn each_round_prunes_the_same_share_and_rewinds() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let prune = UnstructuredPrune::new(1.0 - 0.8f64.powi(3)).layer("fc3", 0.0);
    let ticket = LotteryTicket::new(prune, AddOne(log.clone())).rounds(3);
    let mut rounds = Vec::new();
    let mut observe = |e: &Event| {
        if let Event::Metrics { label, .. } = e {
            rounds.push(label.clone());
        }
    };
    let mut cx = Context::new().with_observer(&mut observe);
    let initial = model(0);
    let (untrained, _) = ticket
        .clone()
        .untrained()
        .apply(initial.clone(), &mut cx)
        .unwrap();
    let w = content(&untrained, "fc1.weight");
    let start = content(&initial, "fc1.weight");
    assert!(w.iter().zip(&start).all(|(a, b)| *a == 0.0 || a == b));
    assert!(mask(&untrained, "fc3.weight").iter().all(|k| *k));
    let seen = std::mem::take(&mut *log.lock().unwrap());
    // Every training starts at the initial values (within 1/4), sparser each time.
    for ((zeros, largest), expected) in seen.iter().zip([0.0, 0.2, 0.36]) {
        assert!(
            (zeros - expected).abs() < 1e-3 && *largest <= 0.25,
            "{seen:?}"
        );
    }
    assert_eq!(seen.len(), 3);
    assert_eq!(rounds, ["round 1", "round 2", "round 3"]);

    let mut cx = Context::new();
    let early = ticket.warmup(AddOne(log.clone()));
    let (_, report) = early.apply(initial, &mut cx).unwrap();
    let seen = log.lock().unwrap();
    assert_eq!(seen.len(), 5);
    // After the warm-up every training starts one higher.
    assert!(
        seen[1..]
            .iter()
            .all(|(_, largest)| *largest > 0.7 && *largest < 1.3),
        "{seen:?}"
    );
    assert!((seen[4].0 - 0.488).abs() < 1e-3);
    assert!(report.changed > 0);
    let none = LotteryTicket::new(UnstructuredPrune::new(0.5), AddOne(log.clone())).rounds(0);
    assert!(none.apply(model(0), &mut cx).is_err());
}

/// LeNet-300-100 on the digits at 95 % sparsity: the ticket learns.
#[test]
fn a_ticket_learns_from_its_initial_values() {
    let digits = digits().unwrap();
    let flat = |part: &opt_data::TensorDataset| {
        let x = part.fields()[0].clone();
        let x: Vec<f64> = x.to_f64s().iter().map(|v| v / 16.0).collect();
        let x = Tensor::from_f64s(DType::F32, [x.len() / 64, 64], &x).unwrap();
        opt_data::TensorDataset::new(vec![x, part.fields()[1].clone()]).unwrap()
    };
    let (train, test) = (flat(&digits.train), flat(&digits.test));
    let backend = NdarrayBackend::new();
    let trainer = Trainer::new(CrossEntropy, Adam::default(), Constant(1.2e-3)).epochs(6);
    let prune = UnstructuredPrune::new(0.95).layer("fc3", 0.7);
    let ticket = LotteryTicket::new(prune, FineTune(trainer)).rounds(2);
    assert_eq!(ticket.needs(), Needs::TRAINING);
    let mut cx = Context::new().with_backend(&backend).with_training(&train);
    let model = zoo::lenet_300_100(64, 10, 0).unwrap();
    let (trained, reports) = Pipeline::new().then(ticket).run(model, &mut cx).unwrap();
    trained.verify().unwrap();
    assert!((reports[0].1.figures["sparsity of fc1.weight"] - 0.95).abs() < 1e-4);
    assert!((reports[0].1.figures["sparsity of fc3.weight"] - 0.7).abs() < 1e-4);
    let zeros = content(&trained, "fc1.weight")
        .iter()
        .filter(|v| **v == 0.0)
        .count();
    assert!(zeros as f64 >= 0.95 * 64.0 * 300.0 - 1.0);
    let logits = backend.run_once(&trained, &test.fields()[..1]).unwrap()[0].to_f64s();
    let labels = test.fields()[1].to_vec::<i64>().unwrap();
    let right = logits.chunks(10).zip(&labels).filter(|(row, label)| {
        let best = (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        best as i64 == **label
    });
    let accuracy = right.count() as f64 / labels.len() as f64;
    assert!(accuracy > 0.85, "{accuracy}");
}
