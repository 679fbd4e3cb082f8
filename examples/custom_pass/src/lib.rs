//! What a downstream crate adds to the opt libraries: an op of its own, a pass of its own, a
//! pruning criterion of its own and an optimizer of its own. The test composes them with passes
//! of the libraries.

mod criterion;
mod op;
mod optimizer;
mod pass;

pub use criterion::FromMean;
pub use op::Snake;
pub use optimizer::Lion;
pub use pass::ReluToSnake;
