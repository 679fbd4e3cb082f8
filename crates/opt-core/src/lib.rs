//! Tensors, graphs, gradients and passes: the foundation of the opt model-optimization libraries.
//!
//! A model is a [`Graph`]; everything is graph in, graph out; a [`Backend`] only compiles and
//! runs graphs.
//!
//! ```
//! use opt_core::{DType, GraphBuilder, Tensor, TensorType, autodiff::grad};
//!
//! // y = relu(x w), loss = mean(y^2), and the gradient of the loss by w, as one graph.
//! let mut b = GraphBuilder::new("model");
//! let x = b.input("x", TensorType::new(DType::F32, [4, 3]))?;
//! let w = b.variable("w", Tensor::full(DType::F32, [3, 2], 0.1)?)?;
//! let y = b.matmul(x, w)?;
//! let y = b.relu(y)?;
//! let square = b.mul(y, y)?;
//! let loss = b.mean_all(square)?;
//! let gradients = grad(&mut b, loss, &[w])?;
//! b.output("loss", loss)?;
//! b.output("dw", gradients.of(w)?)?;
//! let graph = b.finish()?;
//! println!("{graph}");
//! # Ok::<(), opt_core::Error>(())
//! ```

#![forbid(unsafe_code)]

pub mod autodiff;
pub mod backend;
pub mod data;
mod error;
pub mod file;
pub mod graph;
pub mod nn;
pub mod observer;
pub mod ops;
pub mod pass;
pub mod profile;
pub mod random;
pub mod safetensors;
pub mod tensor;

pub use backend::{Backend, CompileSpec, Executable, Session};
pub use error::{Error, ErrorKind, Result, ResultExt};
pub use graph::{
    Dim, Fact, FactKind, Graph, GraphBuilder, GraphPatch, Node, NodeId, Shape, SizeExpr,
    SizeFactor, Symbol, TensorType, Value, ValueId, ValueKind,
};
pub use observer::{Event, Observer};
pub use ops::Op;
pub use pass::{Context, Needs, Pass, Pipeline, Preserves, Report};
pub use profile::{Profile, ProfileOptions};
pub use tensor::{DType, Element, Tensor};
