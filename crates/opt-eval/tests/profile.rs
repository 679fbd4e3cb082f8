//! Profiles count what [`ModelCost`] counts.

use opt_core::graph::{Bindings, Symbol};
use opt_core::nn::zoo::{TransformerClassifier, lenet5, resnet20, transformer_classifier};
use opt_core::{Backend, CompileSpec, DType, Graph, ProfileOptions, Tensor};
use opt_eval::ModelCost;
use opt_ndarray::NdarrayBackend;

fn encoder() -> Graph {
    let config = TransformerClassifier {
        vocabulary: 20,
        steps: 5,
        width: 8,
        heads: 2,
        feedforward: 16,
        layers: 2,
        dropout: 0.0,
        classes: 3,
    };
    transformer_classifier(&config, 1).unwrap()
}

#[test]
fn steps_have_the_multiply_adds_of_the_model() {
    let models = [
        (lenet5([1, 28, 28], 10, 0).unwrap(), DType::F32),
        (resnet20([3, 16, 16], 10, 0).unwrap(), DType::F32),
        (encoder(), DType::I64),
    ];
    for (graph, dtype) in models {
        let bindings = Bindings::from([(Symbol::new("batch"), 2)]);
        let cost = ModelCost::of(&graph, &bindings).unwrap();
        let shape = graph.type_of(graph.inputs()[0]).shape.bind(&bindings);
        let input = Tensor::zeros(dtype, shape.unwrap().fixed().unwrap()).unwrap();
        let spec = CompileSpec::new().bind("batch", 2);
        for threads in [1, 2] {
            let backend = NdarrayBackend::new().threads(threads);
            let executable = backend.compile(&graph, &spec).unwrap();
            let options = ProfileOptions::new().warmup(0).runs(1);
            let profile = executable.profile(std::slice::from_ref(&input), &options);
            let profile = profile.unwrap();
            assert_eq!(profile.steps.len(), executable.steps().len());
            let macs: u64 = profile.steps.iter().map(|s| s.macs).sum();
            assert_eq!(macs, cost.macs, "{}\n{profile}", graph.name());
            // Views and folded nodes take no step.
            let elements: u64 = profile.steps.iter().map(|s| s.elements).sum();
            assert!(elements <= cost.elements, "{}", graph.name());
            let by_kernel: u64 = profile.by_kernel().iter().map(|k| k.macs).sum();
            assert_eq!(by_kernel, macs);
        }
    }
}
