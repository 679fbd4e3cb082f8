//! Cost and time layer by layer, of a float network and its int8 form.

use opt_core::nn::zoo::{
    LstmClassifier, TransformerClassifier, lstm_classifier, resnet20, transformer_classifier,
};
use opt_core::nn::{BatchNorm, Conv, Linear, ModelBuilder};
use opt_core::ops::UnaryOp;
use opt_core::{Backend, CompileSpec, Context, Graph, Pass, Tensor};
use opt_data::{Dataset, digits};
use opt_eval::{Candidate, LatencyBench, LayerCost, ModelCost, layer_times, weights};
use opt_ndarray::NdarrayBackend;
use opt_quant::{QuantizeStatic, QuantizeWeights, Scheme};

fn network() -> Graph {
    let mut b = ModelBuilder::new("cnn", 3);
    let x = b.batch("x", [1, 8, 8]).unwrap();
    let conv = Conv::new(4, [3, 3]).pad(1).bias(false);
    let x = b.layer("c1", conv, x).unwrap();
    let x = b.layer("n1", BatchNorm::new(), x).unwrap();
    let x = b.unary(UnaryOp::Relu, x).unwrap();
    let x = b.max_pool(x, 2).unwrap();
    // A residual block: two readers of one value.
    let conv = Conv::new(4, [3, 3]).pad(1);
    let y = b.layer("c2", conv, x).unwrap();
    let x = b.add(x, y).unwrap();
    let x = b.flatten(x, 1).unwrap();
    let y = b.layer("fc", Linear::new(10), x).unwrap();
    b.output("logits", y).unwrap();
    b.finish().unwrap()
}

fn int8(graph: &Graph) -> Graph {
    let data = digits().unwrap().test;
    let backend = NdarrayBackend::new();
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&data);
    QuantizeStatic::new()
        .apply(graph.clone(), &mut cx)
        .unwrap()
        .0
}

fn names(cost: &ModelCost) -> Vec<&str> {
    cost.layers.iter().map(|l| l.name.as_str()).collect()
}

/// Layers share the nodes and the stored tensors among them.
#[track_caller]
fn assert_sums(graph: &Graph) {
    let cost = ModelCost::of_one(graph).unwrap();
    let sum = |of: fn(&LayerCost) -> u64| cost.layers.iter().map(of).sum::<u64>();
    assert_eq!(sum(|l| l.parameters), cost.parameters);
    assert_eq!(sum(|l| l.nonzeros), cost.nonzeros);
    assert_eq!(sum(|l| l.macs), cost.macs);
    assert_eq!(sum(|l| l.elements), cost.elements);
    let stored = weights(graph).into_iter();
    let stored: usize = stored.map(|(_, _, t)| t.dtype().bytes(t.len())).sum();
    assert_eq!(sum(|l| l.bytes), stored as u64);
    let mut nodes: Vec<&String> = cost.layers.iter().flat_map(|l| &l.nodes).collect();
    nodes.sort_unstable();
    let live = graph.extract(graph.named_outputs(), false).unwrap();
    let mut expected: Vec<&str> = live.nodes().map(|(_, n)| n.name()).collect();
    expected.sort_unstable();
    assert_eq!(nodes, expected);
}

#[test]
fn layers_are_named_by_scope_and_sum_to_the_model() {
    let float = network();
    let quantized = int8(&float);
    let cost = ModelCost::of_one(&float).unwrap();
    assert_eq!(
        names(&cost),
        ["c1", "n1", "maxpool", "c2", "add", "reshape", "fc"]
    );
    let fc = cost.layers.last().unwrap();
    assert_eq!((fc.op.as_str(), fc.nodes.len()), ("MatMul", 2));
    assert_eq!((fc.parameters, fc.macs), (64 * 10 + 10, 640));
    assert_eq!(fc.output.to_string(), "f32[1,10]");
    // The activation is of the layer before it; running statistics are stored, but no parameters.
    let norm = &cost.layers[1];
    assert_eq!(norm.nodes.len(), 2);
    assert_eq!((norm.parameters, norm.bytes), (8, 64));
    assert_eq!(cost.layers[2].sparsity(), None);

    let quantized_cost = ModelCost::of_one(&quantized).unwrap();
    let found = names(&quantized_cost);
    for name in ["c1", "c2", "fc"] {
        assert!(found.contains(&name), "{found:?}");
    }
    assert_sums(&float);
    assert_sums(&quantized);
    let weight = |cost: &ModelCost| cost.layers.iter().find(|l| l.name == "fc").unwrap().bytes;
    assert!(weight(&quantized_cost) < weight(&cost) / 3);
}

#[test]
fn zeros_count_for_the_layer_that_has_them() {
    let mut graph = network();
    let id = graph.find("c2.weight").unwrap();
    let mut weight = graph.value(id).tensor().unwrap().contiguous();
    weight.as_slice_mut::<f32>().unwrap()[..72].fill(0.0);
    graph.set_variable(id, weight).unwrap();
    let cost = ModelCost::of_one(&graph).unwrap();
    let layer = |name: &str| cost.layers.iter().find(|l| l.name == name).unwrap();
    // 72 of 144 weights and 4 biases.
    assert_eq!(layer("c2").sparsity(), Some(72.0 / 148.0));
    assert_eq!(layer("c1").sparsity(), Some(0.0));
}

#[test]
fn every_layer_is_timed_and_as_often_as_asked() {
    let float = network();
    let quantized = int8(&float);
    let backend = NdarrayBackend::new().threads(1);
    let image = digits().unwrap().test.batch(&[0]).unwrap();
    let candidate = |name, graph| Candidate {
        name,
        graph,
        inputs: &image[..1],
    };
    let models = [candidate("float", &float), candidate("int8", &quantized)];
    let bench = LatencyBench::new().warmup(1).runs(7).turn(2);
    let times = layer_times(&models, &backend, &bench).unwrap();
    for (times, model) in times.iter().zip(&models) {
        let cost = ModelCost::of_one(model.graph).unwrap();
        let timed: Vec<&str> = times.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(timed, names(&cost));
        assert!(times.iter().all(|t| t.runs == 7 && t.median_us > 0.0));
        assert!(times.iter().all(|t| t.p90_us >= t.median_us));
    }
    let wrong = [Tensor::new([1, 2], [0f32; 2]).unwrap()];
    let wrong = Candidate {
        name: "wrong",
        graph: &float,
        inputs: &wrong,
    };
    let error = layer_times(&[wrong], &backend, &bench).unwrap_err();
    assert!(error.to_string().starts_with("wrong: x: "), "{error}");
}

/// What is timed has to be what runs: compares kernels of the whole model with the layers'.
#[test]
fn layers_cut_out_run_the_models_integer_kernels() {
    #[derive(Debug)]
    struct Spy(NdarrayBackend, std::sync::Mutex<Vec<(String, Vec<String>)>>);
    impl Backend for Spy {
        fn name(&self) -> &str {
            "spy"
        }
        fn compile(
            &self,
            graph: &Graph,
            spec: &CompileSpec,
        ) -> opt_core::Result<std::sync::Arc<dyn opt_core::Executable>> {
            let compiled = self.0.compile(graph, spec)?;
            let kernels = compiled.steps().into_iter().map(|s| s.kernel).collect();
            let seen = (graph.name().to_string(), kernels);
            self.1.lock().unwrap().push(seen);
            Ok(compiled)
        }
    }
    let graph = int8(&network());
    let image = digits().unwrap().test.batch(&[0]).unwrap();
    let spy = Spy(NdarrayBackend::new().threads(1), Default::default());
    let candidate = Candidate {
        name: "int8",
        graph: &graph,
        inputs: &image[..1],
    };
    let bench = LatencyBench::new().warmup(0).runs(1);
    layer_times(&[candidate], &spy, &bench).unwrap();
    let cut: Vec<String> = spy.1.lock().unwrap()[1..]
        .iter()
        .flat_map(|(_, kernels)| kernels.clone())
        .collect();
    // Pooling on integers is no layer of its own.
    let layer = |k: &&String| k.starts_with("int conv") || k.starts_with("int matmul");
    let integer = |kernels: &[String]| kernels.iter().filter(layer).count();
    let spec = CompileSpec::new().bind("batch", 1);
    let whole = NdarrayBackend::new().compile(&graph, &spec).unwrap();
    let whole: Vec<String> = whole.steps().into_iter().map(|s| s.kernel).collect();
    assert_eq!(integer(&whole), 3, "{whole:?}");
    assert_eq!(integer(&cut), 3, "{cut:?} {whole:?}");
}

#[test]
fn layers_of_other_architectures() {
    let lstm = LstmClassifier {
        vocabulary: 20,
        steps: 5,
        width: 8,
        hidden: 6,
        bidirectional: true,
        classes: 3,
    };
    let transformer = TransformerClassifier {
        vocabulary: 20,
        steps: 5,
        width: 8,
        heads: 2,
        feedforward: 16,
        layers: 2,
        dropout: 0.1,
        classes: 3,
    };
    let tokens = [Tensor::new([1, 5], [3i64, 1, 4, 1, 5]).unwrap()];
    let image = [Tensor::new([1, 3, 8, 8], [0.5f32; 192]).unwrap()];
    let models: [(&str, Graph, &[Tensor], &[&str]); 3] = [
        (
            "lstm",
            lstm_classifier(&lstm, 0).unwrap(),
            &tokens,
            &["embedding", "lstm", "fc"],
        ),
        (
            "transformer",
            transformer_classifier(&transformer, 0).unwrap(),
            &tokens,
            &["embedding", "fc"],
        ),
        (
            "resnet",
            resnet20([3, 8, 8], 10, 0).unwrap(),
            &image,
            &["fc"],
        ),
    ];
    let backend = NdarrayBackend::new().threads(1);
    let bench = LatencyBench::new().warmup(0).runs(2);
    for (name, graph, inputs, expected) in models {
        assert_sums(&graph);
        let cost = ModelCost::of_one(&graph).unwrap();
        let found = names(&cost);
        assert!(expected.iter().all(|e| found.contains(e)), "{found:?}");
        let candidate = Candidate {
            name,
            graph: &graph,
            inputs,
        };
        let times = layer_times(&[candidate], &backend, &bench).unwrap();
        assert!(times[0].len() > 2, "{times:?}");
        assert!(times[0].iter().all(|t| found.contains(&t.name.as_str())));
    }
}

/// Scales are stored, but they are no parameters of the network, however they are stored.
#[test]
fn scales_of_every_format_are_no_parameters() {
    let mut m = ModelBuilder::new("layer", 3);
    let x = m.batch("x", [64]).unwrap();
    let y = m.layer("fc", Linear::new(8), x).unwrap();
    m.output("y", y).unwrap();
    let float = m.finish().unwrap();
    let parameters = ModelCost::of_one(&float).unwrap().parameters;
    for scheme in [
        Scheme::int4(),
        Scheme::uint2(),
        Scheme::fp8_e4m3(),
        Scheme::mxfp8(),
        Scheme::mxfp4(),
        Scheme::nvfp4(),
        Scheme::f16(),
    ] {
        let pass = QuantizeWeights::new(scheme);
        let (graph, _) = pass.apply(float.clone(), &mut Context::new()).unwrap();
        let cost = ModelCost::of_one(&graph).unwrap();
        assert_eq!(cost.parameters, parameters, "{scheme}");
        assert_sums(&graph);
    }
}
