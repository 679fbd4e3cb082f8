//! N:M and block patterns: counted, and against brute force.

use opt_core::nn::{Conv, Linear, ModelBuilder};
use opt_core::random::Philox;
use opt_core::{Context, DType, ErrorKind, FactKind, Graph, GraphBuilder, Pass, Tensor};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_prune::{Magnitude, NmPrune, Random, Scope, UnstructuredPrune};
use opt_train::{Adam, Constant, CrossEntropy, FineTune, Trainer};
use proptest::prelude::*;

/// A convolution `[o, i, 2, 2]` and a product of which the weight is `[I, O]`.
fn model(o: usize, i: usize, seed: u64) -> Graph {
    let random = |shape: &[usize], step| {
        let len = shape.iter().product::<usize>() as u64;
        let data: Vec<f64> = (0..len)
            .map(|k| Philox::new(seed).normal(step, k))
            .collect();
        Tensor::from_f64s(DType::F32, shape, &data).unwrap()
    };
    let mut b = GraphBuilder::new("m");
    let ty = opt_core::TensorType::new(DType::F32, [1, i, 2, 2]);
    let x = b.input("x", ty).unwrap();
    let w = b.variable("conv", random(&[o, i, 2, 2], 0)).unwrap();
    let x = b
        .conv(x, w, None, opt_core::ops::Window::new(2), 1)
        .unwrap();
    let x = b.reshape(x, [1, o]).unwrap();
    let w = b.variable("fc", random(&[o, 6], 1)).unwrap();
    let y = b.matmul(x, w).unwrap();
    b.output("y", y).unwrap();
    b.finish().unwrap()
}

fn content(graph: &Graph, name: &str) -> Vec<f64> {
    graph
        .value(graph.find(name).unwrap())
        .tensor()
        .unwrap()
        .to_f64s()
}

/// The runs of a weight as lists of flat indices: along axis 1 of the convolution, 0 of the product.
fn runs(name: &str, o: usize, i: usize, m: usize) -> Vec<Vec<usize>> {
    let mut out = Vec::new();
    if name == "conv" {
        for (row, at) in (0..o).flat_map(|r| (0..4).map(move |p| (r, p))) {
            for g in 0..i / m {
                out.push((0..m).map(|k| (row * i + g * m + k) * 4 + at).collect());
            }
        }
    } else {
        for (g, column) in (0..o / m).flat_map(|g| (0..6).map(move |c| (g, c))) {
            out.push((0..m).map(|k| (g * m + k) * 6 + column).collect());
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn of_each_run_the_largest_stay(seed in 0u64..1000, blocks in 1usize..4, m in 1usize..9, n in 1usize..9) {
        prop_assume!(n <= m);
        let (o, i) = (m * blocks, m * (blocks + 1));
        let dense = model(o, i, seed);
        let (sparse, report) = NmPrune::new(n, m).apply(dense.clone(), &mut Context::new()).unwrap();
        sparse.verify().unwrap();
        prop_assert!((report.figures["sparsity"] - (1.0 - n as f64 / m as f64)).abs() < 1e-12);
        for name in ["conv", "fc"] {
            let (before, after) = (content(&dense, name), content(&sparse, name));
            for run in runs(name, o, i, m) {
                let mut sizes: Vec<f64> = run.iter().map(|&k| before[k].abs()).collect();
                sizes.sort_by(|a, b| b.total_cmp(a));
                for &k in &run {
                    let stays = before[k].abs() >= sizes[n - 1];
                    prop_assert_eq!(after[k], if stays { before[k] } else { 0.0 });
                }
            }
        }
    }

    #[test]
    fn tiles_stay_or_go_whole_by_their_mean(
        seed in 0u64..1000,
        rows in 1usize..5,
        columns in 1usize..5,
        sparsity in 0.0f64..=1.0,
        global: bool,
    ) {
        let (o, i) = (7, 6);
        let dense = model(o, i, seed);
        let scope = if global { Scope::Global } else { Scope::Local };
        let prune = UnstructuredPrune::new(sparsity).block(rows, columns).scope(scope);
        let (sparse, _) = prune.criterion(Magnitude::l2()).apply(dense.clone(), &mut Context::new()).unwrap();
        sparse.verify().unwrap();
        // (mean square, whether it stayed) of all tiles, by brute force.
        let tiles = |name: &str| -> Vec<(f64, bool)> {
            let (before, after) = (content(&dense, name), content(&sparse, name));
            let (outputs, inputs, places) = if name == "conv" { (o, i, 4) } else { (6, o, 1) };
            let flat = |r: usize, c: usize, p: usize| match name {
                "conv" => (r * i + c) * 4 + p,
                _ => c * 6 + r,
            };
            let mut out = Vec::new();
            for p in 0..places {
                for r in (0..outputs).step_by(rows) {
                    for c in (0..inputs).step_by(columns) {
                        let cells: Vec<usize> = (r..(r + rows).min(outputs))
                            .flat_map(|r| (c..(c + columns).min(inputs)).map(move |c| (r, c)))
                            .map(|(r, c)| flat(r, c, p))
                            .collect();
                        let mean = cells.iter().map(|&k| before[k] * before[k]).sum::<f64>() / cells.len() as f64;
                        let kept = cells.iter().filter(|&&k| after[k] != 0.0).count();
                        assert!(kept == 0 || kept == cells.len());
                        out.push((mean, kept > 0));
                    }
                }
            }
            out
        };
        let all = match global {
            true => vec![[tiles("conv"), tiles("fc")].concat()],
            false => vec![tiles("conv"), tiles("fc")],
        };
        for tiles in all {
            let gone = tiles.iter().filter(|(_, kept)| !kept).count();
            prop_assert_eq!(gone, (sparsity * tiles.len() as f64).round() as usize);
            let pick = |kept: bool| tiles.iter().filter(move |t| t.1 == kept).map(|t| t.0);
            let largest_gone = pick(false).fold(0f64, f64::max);
            let smallest_kept = pick(true).fold(f64::INFINITY, f64::min);
            prop_assert!(largest_gone <= smallest_kept);
        }
    }
}

#[test]
fn what_m_does_not_divide_stays_dense_with_a_note() {
    let dense = model(8, 3, 0);
    let (sparse, report) = NmPrune::new(2, 4)
        .apply(dense.clone(), &mut Context::new())
        .unwrap();
    assert_eq!(content(&sparse, "conv"), content(&dense, "conv"));
    let conv = sparse.find("conv").unwrap();
    assert!(sparse.facts().get(conv, FactKind::NmPattern).is_none());
    assert_eq!(
        report.notes,
        ["conv stays dense: 4 does not divide its 3 inputs"]
    );
    let error = NmPrune::new(2, 5)
        .apply(dense, &mut Context::new())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
    assert!(
        error.to_string().contains("5 does not divide its 8 inputs"),
        "{error}"
    );
}

#[test]
fn bad_patterns_are_errors() {
    let run = |p: &dyn Pass| {
        p.apply(model(8, 4, 0), &mut Context::new())
            .unwrap_err()
            .kind()
    };
    for (n, m) in [(5, 4), (0, 4), (0, 0), (1, 0)] {
        assert_eq!(
            run(&NmPrune::new(n, m)),
            ErrorKind::InvalidArgument,
            "{n}:{m}"
        );
    }
    assert_eq!(run(&NmPrune::new(2, 4).include("x")), ErrorKind::NoEffect);
    for (rows, columns) in [(0, 4), (4, 0)] {
        let prune = UnstructuredPrune::new(0.5).block(rows, columns);
        assert_eq!(run(&prune), ErrorKind::InvalidArgument);
    }
    let mut nan = model(8, 4, 0);
    let w = nan.find("fc").unwrap();
    nan.set_variable(w, Tensor::full(DType::F32, [8, 6], f64::NAN).unwrap())
        .unwrap();
    let error = NmPrune::new(2, 4)
        .apply(nan, &mut Context::new())
        .unwrap_err();
    assert!(error.to_string().starts_with("fc"), "{error}");
}

#[test]
fn what_was_masked_stays_masked() {
    let mut cx = Context::new().with_seed(2);
    let (first, _) = UnstructuredPrune::new(0.3)
        .criterion(Random)
        .apply(model(8, 8, 1), &mut cx)
        .unwrap();
    let check = |after: &Graph| {
        for name in ["conv", "fc"] {
            let mask = |g: &Graph| {
                g.facts()
                    .mask(g.find(name).unwrap())
                    .unwrap()
                    .to_vec_bool()
                    .unwrap()
            };
            assert!(mask(&first).iter().zip(mask(after)).all(|(b, a)| *b || !a));
        }
    };
    check(&NmPrune::new(2, 4).apply(first.clone(), &mut cx).unwrap().0);
    let (block, _) = UnstructuredPrune::new(0.5)
        .block(2, 2)
        .apply(first.clone(), &mut cx)
        .unwrap();
    check(&block);
    // A tile that is masked whole counts among those that go.
    let prune = UnstructuredPrune::new(0.5).block(2, 2);
    assert_eq!(prune.apply(block, &mut cx).unwrap().1.changed, 0);
}

#[test]
fn training_keeps_the_pattern() {
    let mut m = ModelBuilder::new("m", 0);
    let x = m.batch("x", [4, 4, 4]).unwrap();
    let x = m.layer("conv", Conv::new(8, [3, 3]), x).unwrap();
    let x = m.relu(x).unwrap();
    let x = m.flatten(x, 1).unwrap();
    let y = m.layer("fc", Linear::new(3), x).unwrap();
    m.output("y", y).unwrap();
    let stream = Philox::new(4);
    let x: Vec<f32> = (0..20 * 64).map(|i| stream.normal(0, i) as f32).collect();
    let labels: Vec<i64> = (0..20).map(|i| i % 3).collect();
    let data = TensorDataset::new(vec![
        Tensor::new([20, 4, 4, 4], x).unwrap(),
        Tensor::new([20], labels).unwrap(),
    ])
    .unwrap();
    let backend = NdarrayBackend::new();
    let mut cx = Context::new().with_backend(&backend).with_training(&data);
    let (sparse, _) = NmPrune::new(2, 4)
        .apply(m.finish().unwrap(), &mut cx)
        .unwrap();
    let tune = FineTune(Trainer::new(CrossEntropy, Adam::default(), Constant(0.01)).epochs(2));
    let (trained, _) = tune.apply(sparse.clone(), &mut cx).unwrap();
    assert_ne!(
        content(&trained, "conv.weight"),
        content(&sparse, "conv.weight")
    );
    assert_eq!(trained.facts(), sparse.facts());
    trained.verify().unwrap();
}
