//! Knowledge distillation: teacher and student in one training graph.
//!
//! The teacher is put into the student's training graph in evaluation mode, with its weights as
//! constants: it gets no backward nodes and cannot change.
//!
//! ```
//! use opt_core::{DType, Dim, GraphBuilder, Shape, Tensor, TensorType};
//! use opt_data::TensorDataset;
//! use opt_distill::SoftTargets;
//! use opt_ndarray::NdarrayBackend;
//! use opt_train::{Adam, Constant, Trainer};
//!
//! # fn main() -> opt_core::Result<()> {
//! let linear = |name: &str, weight: [f32; 4]| -> opt_core::Result<opt_core::Graph> {
//!     let mut b = GraphBuilder::new(name);
//!     let shape = Shape::new([Dim::from("batch"), 2.into()]);
//!     let x = b.input("x", TensorType::new(DType::F32, shape))?;
//!     let w = b.variable("weight", Tensor::new([2, 2], weight)?)?;
//!     let y = b.matmul_t(x, w, false, true)?;
//!     b.output("logits", y)?;
//!     b.finish()
//! };
//! let teacher = linear("teacher", [3.0, 0.0, 0.0, 3.0])?;
//! let data = TensorDataset::new(vec![
//!     Tensor::new([4, 2], [1f32, 0., 0., 1., 2., 1., 1., 2.])?,
//!     Tensor::new([4], [0i64, 1, 0, 1])?,
//! ])?;
//! let objective = SoftTargets { temperature: 2.0, alpha: 0.9 }.from_teacher(teacher);
//! let (student, history) = Trainer::new(objective, Adam::default(), Constant(0.05))
//!     .epochs(20)
//!     .fit(linear("student", [0.1, 0.0, 0.0, 0.1])?, &data, &NdarrayBackend::new())?;
//! assert!(history.epochs[19].loss < history.epochs[0].loss);
//! # let _ = student;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod pass;
mod soft_targets;

pub use opt_core::{Error, ErrorKind, Result};
pub use pass::Distil;
pub use soft_targets::{FromTeacher, SoftTargets};
