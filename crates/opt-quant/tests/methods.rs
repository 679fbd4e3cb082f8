//! Methods of weight quantization on whole graphs: what they report is what the graphs compute.

use opt_core::nn::{Conv, LayerNorm, Linear, ModelBuilder};
use opt_core::random::Philox;
use opt_core::{Backend, Context, ErrorKind, Graph, Pass, Report, Result, Tensor};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_quant::{Awq, Gptq, Hqq, Method, Nearest, QuantizeWeights, Samples, Scheme};

fn random(shape: &[usize], seed: u64) -> Tensor {
    let random = Philox::new(seed);
    let count = shape.iter().product::<usize>() as u64;
    let data: Vec<f32> = (0..count).map(|i| random.normal(0, i) as f32).collect();
    Tensor::new(shape, data).unwrap()
}

/// Rows whose features hang together and have sizes from 0 to 20.
fn features(rows: usize, width: usize) -> Tensor {
    let hidden = random(&[rows, width / 3], 1).to_f64s();
    let mixing = random(&[width / 3, width], 2).to_f64s();
    let noise = random(&[rows, width], 3).to_f64s();
    let data: Vec<f32> = (0..rows * width)
        .map(|i| {
            let (row, column) = (i / width, i % width);
            let parts =
                (0..width / 3).map(|k| hidden[row * (width / 3) + k] * mixing[k * width + column]);
            // Neighbours differ, so that groups have small and large ones.
            let size = 20.0 * ((column * 7 % width) as f64 / width as f64).powi(4);
            ((parts.sum::<f64>() + 0.3 * noise[i]) * size) as f32
        })
        .collect();
    Tensor::new([rows, width], data).unwrap()
}

fn apply(graph: &Graph, pass: &QuantizeWeights, data: &Tensor) -> Result<(Graph, Report)> {
    let backend = NdarrayBackend::new();
    let data = TensorDataset::new(vec![data.clone()])?;
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&data);
    pass.apply(graph.clone(), &mut cx)
}

/// The squared difference of the outputs of two graphs, as a share of the first's squares.
fn difference(float: &Graph, other: &Graph, data: &Tensor) -> f64 {
    let backend = NdarrayBackend::new();
    let run = |g: &Graph| {
        backend
            .run_once(g, std::slice::from_ref(data))
            .unwrap()
            .remove(0)
            .to_f64s()
    };
    let (a, b) = (run(float), run(other));
    let errors = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
    errors / a.iter().map(|x| x * x).sum::<f64>()
}

fn product() -> Graph {
    let mut m = ModelBuilder::new("model", 3);
    let x = m.batch("x", [40]).unwrap();
    let y = m.layer("fc", Linear::new(24).bias(false), x).unwrap();
    m.output("y", y).unwrap();
    m.finish().unwrap()
}

fn methods() -> Vec<Method> {
    let samples = || Samples::new().batch_size(50);
    vec![
        Gptq::new().samples(samples()).into(),
        Gptq::new().samples(samples()).act_order().search().into(),
        Gptq::new()
            .samples(samples())
            .static_groups()
            .sequential()
            .into(),
        Awq::new().samples(samples()).into(),
        Awq::new().samples(samples()).without_scaling().into(),
        Awq::new().samples(samples()).without_clipping().into(),
    ]
}

const SCHEMES: [Scheme; 9] = [
    Scheme::uint4().group(16),
    Scheme::int4().group(8),
    Scheme::int4().per_channel(),
    Scheme::uint4().bits(3).per_channel(),
    Scheme::uint2().group(32),
    Scheme::nf4().group(16),
    Scheme::mxfp4(),
    Scheme::nvfp4(),
    Scheme::int8().group(64),
];

/// The output error that the methods report, from Gram matrices and codes, is that of the graphs.
#[test]
fn the_error_that_is_reported_is_that_of_the_outputs() {
    let graph = product();
    let data = features(300, 40);
    for scheme in SCHEMES {
        for method in methods() {
            for half in [false, true] {
                let mut pass = QuantizeWeights::new(scheme).method(method.clone());
                if half {
                    pass = pass.half_scales();
                }
                let (quantized, report) = apply(&graph, &pass, &data).unwrap();
                let place = format!("{scheme}, {method:?}, {half}");
                let found = report.figures["output error of fc.weight"];
                let nearest = report.figures["output error to nearest of fc.weight"];
                let measured = difference(&graph, &quantized, &data);
                let close = (measured - found).abs() <= 1e-3 * found + 1e-9;
                assert!(close, "{place}: {measured} {found}");
                assert!(found <= nearest * 1.0001, "{place}: {found} {nearest}");
            }
        }
    }
}

#[test]
fn gptq_and_awq_beat_rounding_to_nearest() {
    let graph = product();
    let data = features(300, 40);
    let error = |method: Method| {
        let pass = QuantizeWeights::new(Scheme::uint4().group(8)).method(method);
        let (quantized, _) = apply(&graph, &pass, &data).unwrap();
        difference(&graph, &quantized, &data)
    };
    let nearest = error(Nearest::new().into());
    let searched = error(Nearest::new().search().into());
    let awq = error(Awq::new().into());
    let gptq = error(Gptq::new().into());
    assert!(searched.is_finite() && error(Hqq::new().into()).is_finite());
    assert!(awq < 0.7 * nearest, "{awq} {nearest}");
    assert!(gptq < 0.3 * nearest, "{gptq} {nearest}");
}

#[test]
fn convolutions_are_treated_by_groups() {
    for groups in [1, 2] {
        let mut m = ModelBuilder::new("model", 5);
        let x = m.batch("x", [4, 7, 6]).unwrap();
        let layer = Conv::new(8, [3, 3])
            .stride(2)
            .pad(1)
            .groups(groups)
            .bias(false);
        let y = m.layer("conv", layer, x).unwrap();
        m.output("y", y).unwrap();
        let graph = m.finish().unwrap();
        let data = features(90, 168).reshape([90, 4, 7, 6]).unwrap();
        for scheme in [Scheme::uint4().per_channel(), Scheme::int4().group(6)] {
            for method in methods() {
                let pass = QuantizeWeights::new(scheme).method(method.clone());
                let Ok((quantized, report)) = apply(&graph, &pass, &data) else {
                    // AWQ scales no convolutions.
                    panic!("{scheme}, {method:?}");
                };
                let found = report.figures["output error of conv.weight"];
                let measured = difference(&graph, &quantized, &data);
                let place = format!("{scheme}, {groups} groups, {method:?}");
                assert!(
                    (measured - found).abs() <= 1e-3 * found + 1e-9,
                    "{place}: {measured} {found}"
                );
                let nearest = report.figures["output error to nearest of conv.weight"];
                assert!(found <= nearest * 1.0001, "{place}: {found} {nearest}");
            }
        }
    }
}

/// Scales of channels go into what makes the input, where nothing else reads it.
#[test]
fn awq_divides_inputs_where_they_are_made() {
    let awq = || QuantizeWeights::new(Scheme::uint4().group(8)).method(Awq::new());
    let data = features(300, 40);
    let count = |g: &Graph| g.nodes().filter(|(_, n)| n.op().name() == "Mul").count();
    for (alone, normalized) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut m = ModelBuilder::new("model", 7);
        let x = m.batch("x", [40]).unwrap();
        let h = match normalized {
            true => m.layer("norm", LayerNorm::new(), x).unwrap(),
            false => {
                let h = m.layer("fc0", Linear::new(32), x).unwrap();
                m.relu(h).unwrap()
            }
        };
        let a = m.layer("fc1", Linear::new(16), h).unwrap();
        let b = m.layer("fc2", Linear::new(16), h).unwrap();
        let y = m.add(a, b).unwrap();
        m.output("y", y).unwrap();
        if !alone {
            m.output("h", h).unwrap();
        }
        let mut graph = m.finish().unwrap();
        if normalized {
            let scale = graph.find("norm.weight").unwrap();
            let sizes: Vec<f32> = (0..40).map(|i| 0.1 + (i as f32 / 8.0).powi(2)).collect();
            graph
                .set_content(scale, Tensor::new([40], sizes).unwrap())
                .unwrap();
        }
        let (quantized, report) = apply(&graph, &awq(), &data).unwrap();
        let expected = if alone { 0 } else { 1 };
        let place = format!("{alone} {normalized}: {:?}", report.notes);
        let extra = count(&quantized) - count(&graph);
        // The linear layer before has its own input scaled, which is the graph's.
        let own = usize::from(!normalized && report.figures.contains_key("alpha of x"));
        assert_eq!(extra, expected + own, "{place}");
        let nearest = QuantizeWeights::new(Scheme::uint4().group(8));
        let (nearest, _) = apply(&graph, &nearest, &data).unwrap();
        let (found, plain) = (
            difference(&graph, &quantized, &data),
            difference(&graph, &nearest, &data),
        );
        assert!(found < plain, "{place}: {found} {plain}");
    }
}

#[test]
fn bad_weights_and_settings_are_named() {
    let mut graph = product();
    let data = features(30, 40);
    let pass = |method: Method| QuantizeWeights::int4(8).asymmetric().method(method);
    let error = |graph: &Graph, method: Method| apply(graph, &pass(method), &data).unwrap_err();
    let found = error(&graph, Gptq::new().damping(0.0).into());
    assert_eq!(found.kind(), ErrorKind::Data);
    assert!(found.to_string().contains("fc.weight"), "{found}");
    assert!(
        error(&graph, Awq::new().steps(0).into())
            .to_string()
            .contains("search")
    );
    let both = Awq::new().without_scaling().without_clipping();
    assert!(error(&graph, both.into()).to_string().contains("search"));
    let mask = Gptq::new().samples(Samples::new().mask("x"));
    assert_eq!(error(&graph, mask.into()).kind(), ErrorKind::NoEffect);
    let pass = QuantizeWeights::int8().method(Gptq::new());
    let found = pass.apply(graph.clone(), &mut Context::new()).unwrap_err();
    assert_eq!(found.kind(), ErrorKind::Pipeline);

    let weight = graph.find("fc.weight").unwrap();
    let shape = graph.value(weight).tensor().unwrap().shape().to_vec();
    let nan = Tensor::full(opt_core::DType::F32, shape, f64::NAN).unwrap();
    graph.set_content(weight, nan).unwrap();
    for method in methods()
        .into_iter()
        .chain([Hqq::new().into(), Nearest::new().search().into()])
    {
        let found = error(&graph, method);
        assert_eq!(found.kind(), ErrorKind::Data);
        assert!(found.to_string().contains("fc.weight"), "{found}");
    }
}

/// Later layers make up for what earlier ones do to their inputs.
#[test]
fn layer_after_layer_sees_the_layers_before_it() {
    let mut m = ModelBuilder::new("model", 9);
    let x = m.batch("x", [40]).unwrap();
    let h = m.layer("fc1", Linear::new(32), x).unwrap();
    let h = m.relu(h).unwrap();
    let y = m.layer("fc2", Linear::new(8), h).unwrap();
    m.output("y", y).unwrap();
    let graph = m.finish().unwrap();
    let data = features(300, 40);
    let run = |method: Gptq| {
        let pass = QuantizeWeights::new(Scheme::uint2().group(8)).method(method);
        apply(&graph, &pass, &data).unwrap()
    };
    let (once, first) = run(Gptq::new());
    let (after, second) = run(Gptq::new().sequential());
    let error = "output error of fc1.weight";
    assert_eq!(
        first.figures[error], second.figures[error],
        "the first layer is the same"
    );
    let error = "output error of fc2.weight";
    assert_ne!(first.figures[error], second.figures[error]);
    assert_ne!(
        difference(&graph, &once, &data),
        difference(&graph, &after, &data)
    );
    assert_eq!(
        run(Gptq::new().sequential()).0.to_string(),
        after.to_string()
    );
}
