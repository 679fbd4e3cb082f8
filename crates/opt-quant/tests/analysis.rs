//! Where the error of quantized graphs is found to be.

use opt_core::nn::{Linear, ModelBuilder};
use opt_core::{Context, ErrorKind, Graph, Pass, Result, Tensor};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_quant::analysis::{AccuracyControl, QuantizeBudget, compare, sensitivity};
use opt_quant::{QuantizeWeights, Rules, Scheme, Select};

/// Three layers, of which the second has one weight that makes its grid useless to the others.
fn model() -> Graph {
    let mut m = ModelBuilder::new("model", 3);
    let mut x = m.batch("x", [16]).unwrap();
    for name in ["fc1", "fc2", "fc3"] {
        x = m.layer(name, Linear::new(16), x).unwrap();
        x = m.relu(x).unwrap();
    }
    m.output("y", x).unwrap();
    let mut graph = m.finish().unwrap();
    // It multiplies a feature that is always 0, so that the output knows nothing of it.
    for (name, at, entry) in [("fc2.weight", 5, 1000.0), ("fc1.bias", 5, -100.0)] {
        let id = graph.find(name).unwrap();
        let content = graph.value(id).tensor().unwrap();
        let shape = content.shape().to_vec();
        let mut entries = content.to_vec::<f32>().unwrap();
        entries[at] = entry;
        graph
            .set_variable(id, Tensor::new(shape, entries).unwrap())
            .unwrap();
    }
    graph
}

fn data() -> TensorDataset {
    let x: Vec<f32> = (0..70 * 16).map(|i| (i as f32 * 0.7).sin()).collect();
    TensorDataset::new(vec![Tensor::new([70, 16], x).unwrap()]).unwrap()
}

fn coarse(rules: &Rules) -> Box<dyn Pass> {
    let pass = QuantizeWeights::new(Scheme::int8().per_tensor());
    Box::new(pass.rules(rules.clone()))
}

#[test]
fn figures_are_those_of_the_outputs() {
    let (float, data, backend) = (model(), data(), NdarrayBackend::new());
    let (quantized, _) = coarse(&Rules::new())
        .apply(float.clone(), &mut Context::new())
        .unwrap();
    let table = compare(&float, &quantized, &data, &backend).unwrap();
    assert_eq!(
        table.layers.len(),
        4,
        "three products and the output: {table}"
    );
    // The last is the graph's output: computed here from two whole runs.
    let x = data_tensor();
    let [before, after] = [&float, &quantized].map(|graph| {
        use opt_core::Backend;
        let mut spec = opt_core::CompileSpec::new();
        spec.bindings = opt_core::backend::bindings_of(graph, std::slice::from_ref(&x)).unwrap();
        let mut session = backend.compile(graph, &spec).unwrap().session().unwrap();
        session.run(std::slice::from_ref(&x)).unwrap()[0].to_f64s()
    });
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        before.iter().zip(&after).map(|(&a, &b)| f(a, b)).sum()
    };
    let (xx, qq, xq) = (sum(&|a, _| a * a), sum(&|_, b| b * b), sum(&|a, b| a * b));
    let dd = sum(&|a, b| (a - b) * (a - b));
    let y = table.get("y").or_else(|| table.layers.last()).unwrap();
    let n = before.len() as f64;
    // Batches of other sizes may sum in another order.
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs().max(1e-3);
    assert!(close(y.sqnr, 10.0 * (xx / dd).log10()), "{y:?}");
    assert!(close(y.cosine, xq / (xx * qq).sqrt()), "{y:?}");
    assert!(close(y.mse, dd / n), "{y:?}");
    assert!(close(y.shift, sum(&|a, b| b - a) / n), "{y:?}");
    let same = compare(&float, &float, &data, &backend).unwrap();
    assert!(
        same.layers
            .iter()
            .all(|l| l.sqnr == f64::INFINITY && l.cosine == 1.0 && l.max == 0.0)
    );
}

fn data_tensor() -> Tensor {
    use opt_core::data::Dataset;
    let data = data();
    data.batch(&(0..data.len()).collect::<Vec<_>>())
        .unwrap()
        .remove(0)
}

#[test]
fn the_layer_that_errs_is_named() {
    let (float, data, backend) = (model(), data(), NdarrayBackend::new());
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&data);
    let layers = ["fc1.weight", "fc2.weight", "fc3.weight"];
    let scheme = Scheme::int8().per_tensor();
    let table = sensitivity(&float, &coarse, scheme, &layers, &mut cx).unwrap();
    assert_eq!(table.worst_first()[0].name, "fc2.weight", "{table}");
    assert!(table.get("fc1.weight").unwrap().sqnr > 30.0, "{table}");
    let unknown = sensitivity(&float, &coarse, scheme, &["fc4.weight"], &mut cx).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NoEffect);
    assert!(unknown.to_string().contains("fc4.weight"), "{unknown}");
}

#[test]
fn only_the_layer_that_errs_stays_in_float() {
    let (float, data, backend) = (model(), data(), NdarrayBackend::new());
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&data);
    let control = |drop: f64| {
        let (reference, examples) = (model(), self::data());
        let metric = move |graph: &Graph| -> Result<f64> {
            let table = compare(&reference, graph, &examples, &NdarrayBackend::new())?;
            Ok(table.layers.last().map_or(0.0, |y| -y.mse.sqrt()))
        };
        AccuracyControl::new(Scheme::int8().per_tensor(), coarse, metric).max_drop(drop)
    };
    let (_, all) = control(f64::INFINITY).run(float.clone(), &mut cx).unwrap();
    assert_eq!((all.kept.len(), all.evaluations), (0, 2));
    let (graph, report) = control(-all.all * 0.1).run(float.clone(), &mut cx).unwrap();
    assert_eq!(report.kept, ["fc2.weight"], "{report}");
    assert!(graph.find("fc1.weight.q").is_ok() && graph.find("fc2.weight.q").is_err());
    assert!(report.quantized >= all.all * 0.1);
    let error = control(0.0).run(float, &mut cx).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
}

#[test]
fn a_budget_is_spent_where_it_helps() {
    let (data, backend) = (data(), NdarrayBackend::new());
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&data);
    // The biases take 192 bytes; weights 1,024 in float, and 256 and 4 in int8 with one scale.
    let schemes = [Scheme::int8().per_tensor()];
    let float = model();
    let pass = |bytes: u64| QuantizeBudget::new(schemes, bytes);
    let (graph, report) = pass(192 + 2 * 260 + 1024)
        .apply(float.clone(), &mut cx)
        .unwrap();
    assert!(
        graph
            .find("fc2.weight")
            .is_ok_and(|v| graph.value(v).tensor().is_some()),
        "{report:?}"
    );
    assert_eq!(report.changed, 2);
    assert_eq!(report.figures["bytes"], (192 + 2 * 260 + 1024) as f64);
    let (_, least) = pass(192 + 3 * 260).apply(float.clone(), &mut cx).unwrap();
    assert_eq!(least.changed, 3);
    let (_, all) = pass(1 << 20).apply(float.clone(), &mut cx).unwrap();
    assert_eq!(all.changed, 0, "{all:?}");
    for bytes in [100, 192 + 3 * 260 - 1] {
        let error = pass(bytes).apply(float.clone(), &mut cx).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let rules = Rules::new().keep(Select::name("fc1.weight"));
    let (graph, _) = pass(4000).rules(rules).apply(float, &mut cx).unwrap();
    assert!(graph.find("fc1.weight.q").is_err());
}
