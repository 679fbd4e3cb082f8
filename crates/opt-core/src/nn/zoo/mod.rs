//! A small zoo: known architectures, untrained.
//!
//! Each function builds a graph with initial weights that depend on the seed. The batch size is
//! the symbol `batch`; images are `[batch, C, H, W]`. Dropout and batch normalization are in eval
//! mode until the pass `TrainMode` switches them.
//!
//! ```
//! use opt_core::nn::zoo;
//!
//! let graph = zoo::lenet_300_100(784, 10, 0)?;
//! assert_eq!(graph.parameter_count(), 266_610);
//! # Ok::<(), opt_core::Error>(())
//! ```

mod factorization;
mod lenet;
mod lstm;
mod mobilenet;
mod resnet;
mod transformer;

pub use factorization::matrix_factorization;
pub use lenet::{lenet_300_100, lenet5};
pub use lstm::{LstmClassifier, lstm_classifier};
pub use mobilenet::{InvertedResidual, MobileNetV2, mobilenet_v2};
pub use resnet::resnet20;
pub use transformer::{TransformerClassifier, transformer_classifier};

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::autodiff::grad;
    use crate::{Graph, GraphBuilder};

    /// A small model of each architecture.
    pub(crate) fn models() -> Vec<Graph> {
        let lstm = LstmClassifier {
            vocabulary: 20,
            steps: 5,
            width: 4,
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
        let mobilenet = MobileNetV2 {
            width: 0.1,
            ..MobileNetV2::cifar()
        };
        [
            lenet_300_100(64, 10, 1),
            lenet5([1, 28, 28], 10, 1),
            resnet20([3, 16, 16], 10, 1),
            mobilenet_v2(&mobilenet, 1),
            lstm_classifier(&lstm, 1),
            transformer_classifier(&transformer, 1),
            matrix_factorization(5, 7, 3, 3.0, 1),
        ]
        .into_iter()
        .map(Result::unwrap)
        .collect()
    }

    #[test]
    fn every_parameter_has_a_gradient_of_its_type() {
        for graph in models() {
            let name = graph.name().to_string();
            let (parameters, out) = (graph.parameters(), graph.outputs().next().unwrap());
            let mut b = GraphBuilder::extend(graph);
            let loss = b.mean_all(out).unwrap();
            let gradients =
                grad(&mut b, loss, &parameters).unwrap_or_else(|e| panic!("{name}: {e}"));
            for (i, &p) in parameters.iter().enumerate() {
                let g = gradients.of(p).unwrap();
                assert_eq!(b.type_of(g), b.type_of(p), "{name}");
                b.output(&format!("grad{i}"), g).unwrap();
            }
            b.finish().unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn batches_bind_and_the_same_seed_gives_the_same_weights() {
        for (a, b) in models().into_iter().zip(models()) {
            assert_eq!(a, b);
            let bound = a.bind(&[(crate::Symbol::new("batch"), 3)].into()).unwrap();
            let out = bound.outputs().next().unwrap();
            assert_eq!(bound.type_of(out).shape[0].fixed().unwrap(), 3);
        }
    }
}
