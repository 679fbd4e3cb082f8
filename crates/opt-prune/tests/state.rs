//! What an optimizer keeps goes on across structured pruning.

use opt_core::nn::zoo;
use opt_core::{Backend, Context, Fact, Graph, Pass, Tensor, ValueId};
use opt_data::{Scale, TensorDataset, digits};
use opt_ndarray::NdarrayBackend;
use opt_prune::ChannelPrune;
use opt_train::{Adam, Constant, CrossEntropy, FineTune, Trainer};

fn data() -> TensorDataset {
    let digits = digits()
        .unwrap()
        .train
        .select(&(0..200).collect::<Vec<_>>());
    let digits = digits.unwrap();
    let pixels = digits.fields()[0].reshape([200, 64]).unwrap();
    let flat = TensorDataset::new(vec![pixels, digits.fields()[1].clone()]).unwrap();
    flat.map(0, &Scale::new(1.0 / 16.0, 0.0).unwrap()).unwrap()
}

/// The graph with the entries that a map removes set to zero, by masks that training keeps.
fn masked(graph: &Graph, prune: &ChannelPrune, cx: &mut Context<'_>) -> Graph {
    let selection = prune.select(graph, cx).unwrap();
    let map = selection.axis_map(graph).unwrap();
    let mut out = selection.mask(graph).unwrap();
    let variables: Vec<(ValueId, Vec<usize>)> = graph
        .variables()
        .map(|(id, _, t)| (id, t.shape().to_vec()))
        .collect();
    for (id, shape) in variables {
        let stays = |axis: usize, i: usize| map.kept(id, axis).is_none_or(|k| k.contains(&i));
        let len: usize = shape.iter().product();
        let mask = (0..len).map(|flat| {
            let mut rest = flat;
            (0..shape.len()).rev().all(|axis| {
                let i = rest % shape[axis];
                rest /= shape[axis];
                stays(axis, i)
            })
        });
        let mask = Tensor::from_bools(shape.clone(), mask.collect::<Vec<_>>()).unwrap();
        out.facts_mut().insert(id, Fact::Mask(mask));
    }
    out
}

#[test]
fn a_shrunk_network_trains_on_as_the_masked_one() {
    let (backend, data) = (NdarrayBackend::new(), data());
    let trainer = |carry: bool| {
        let adam = Trainer::new(CrossEntropy, Adam::default(), Constant(3e-3));
        let adam = adam.epochs(2).batch_size(40);
        FineTune(if carry { adam.carry_state() } else { adam })
    };
    let prune = ChannelPrune::new(0.4);
    let mut cx = Context::new().with_backend(&backend).with_training(&data);
    let start = zoo::lenet_300_100(64, 10, 0).unwrap();
    let (dense, _) = trainer(true).apply(start, &mut cx).unwrap();
    let state = cx.state().clone();
    let out = |graph: &Graph| {
        let images = data.fields()[0].clone();
        backend.run_once(graph, &[images]).unwrap()[0].to_f64s()
    };
    let far = |a: &Graph, b: &Graph| {
        let pairs = out(a).into_iter().zip(out(b));
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };

    // The state of the masked network is the dense one's.
    let zeros = masked(&dense, &prune, &mut cx);
    let (reference, _) = trainer(true).apply(zeros, &mut cx).unwrap();

    *cx.state_mut() = state;
    let (small, _) = prune.apply(dense.clone(), &mut cx).unwrap();
    let moment = cx.state().get("fc2.weight", "exp_avg").unwrap();
    assert_eq!(moment.shape(), [60, 180]);
    let (trained, _) = trainer(true).apply(small.clone(), &mut cx).unwrap();
    assert!(
        far(&reference, &trained) < 1e-3,
        "{}",
        far(&reference, &trained)
    );
    // It is not what an optimizer that starts anew would give.
    let (fresh, _) = trainer(false).apply(small, &mut cx).unwrap();
    assert!(far(&reference, &fresh) > 0.1, "{}", far(&reference, &fresh));
}
