//! The op set: one struct of attributes an op, with its rules beside it, one file a family.
//!
//! Ops are data: a graph is compared, printed and rewritten by matching on [`Op`]. The builder
//! methods that add an op stand in the op's file too.

mod attention;
mod conv;
mod custom;
mod elementwise;
mod index;
mod loss;
mod matmul;
mod norm;
mod pool;
mod quant;
mod random;
mod recurrent;
mod reduce;
pub(crate) mod rules;
mod shape;
mod sizes;
mod state;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;

pub use attention::Attention;
pub use conv::{Conv, ConvGradWeight, ConvTranspose, Window};
pub use custom::CustomOp;
pub use elementwise::{Binary, BinaryOp, Cast, Unary, UnaryOp, Where};
pub use index::{Gather, GatherElements, GatherGrad, OneHot, ScatterElements, ScatterReduction};
pub use loss::SoftmaxCrossEntropy;
pub use matmul::MatMul;
pub use norm::{BatchNorm, BatchNormGrad, GroupNorm, InstanceNorm, LayerNorm, RmsNorm};
pub use pool::{AvgPool, AvgPoolGrad, MaxPool, MaxPoolGrad};
pub use quant::{Dequantize, DynamicQuantize, FakeQuantize, Quantize};
pub use random::{Distribution, Dropout, Random};
pub use recurrent::{Direction, Gru, GruGrad, Lstm, LstmGrad};
pub use reduce::{ArgReduce, CumSum, LogSoftmax, Reduce, ReduceOp, Softmax, TopK};
pub use rules::{AxisLink, AxisRules, Cost, IndexMap, InputGrads, OpRules, Port, ShrinkCx, Vjp};
pub use shape::{
    Concat, Expand, Pad, PadGrad, PadMode, Reshape, Slice, SliceGrad, Split, Squeeze, Tile,
    Transpose, Unsqueeze,
};
pub use sizes::{Iota, Sizes};
pub use state::{Assign, Identity, StopGradient};

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// An op with its attributes.
        ///
        /// Inside the workspace it is matched exhaustively, so that a missing rule or kernel is
        /// a compile error; downstream crates add ops of their own as [`Op::Custom`].
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Op {
            $($(#[$doc])* $name($name),)*
            /// An op that a downstream crate defines.
            Custom(Arc<dyn CustomOp>),
        }

        impl Op {
            /// The rules of the op.
            pub fn rules(&self) -> &dyn OpRules {
                match self {
                    $(Op::$name(op) => op,)*
                    Op::Custom(op) => custom::rules(op),
                }
            }

            /// The name of the op, ONNX's where ONNX has it.
            pub fn name(&self) -> &str {
                match self {
                    Op::Unary(op) => op.op.name(),
                    Op::Binary(op) => op.op.name(),
                    Op::Reduce(op) => op.op.name(),
                    $(#[allow(unreachable_patterns)] Op::$name(_) => stringify!($name),)*
                    Op::Custom(op) => op.name(),
                }
            }
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Op {
                Op::$name(op)
            }
        })*
    };
}

ops! {
    /// Element-wise function of one input.
    Unary,
    /// Element-wise function of two broadcast inputs.
    Binary,
    /// Element-wise choice.
    Where,
    /// Conversion of the element type.
    Cast,
    /// Sum, mean, maximum, .. over axes.
    Reduce,
    /// Index of the maximum or minimum.
    ArgReduce,
    /// The largest or smallest entries.
    TopK,
    /// Running sum.
    CumSum,
    /// Softmax.
    Softmax,
    /// Logarithm of softmax.
    LogSoftmax,
    /// Matrix product.
    MatMul,
    /// Convolution.
    Conv,
    /// Transposed convolution.
    ConvTranspose,
    /// Gradient of a convolution by its weight.
    ConvGradWeight,
    /// Max pooling.
    MaxPool,
    /// Gradient of max pooling.
    MaxPoolGrad,
    /// Average pooling.
    AvgPool,
    /// Gradient of average pooling.
    AvgPoolGrad,
    /// Batch normalization.
    BatchNorm,
    /// Gradient of batch normalization in training mode.
    BatchNormGrad,
    /// Layer normalization.
    LayerNorm,
    /// Group normalization.
    GroupNorm,
    /// Instance normalization.
    InstanceNorm,
    /// Root-mean-square normalization.
    RmsNorm,
    /// Another shape for the same elements.
    Reshape,
    /// Another order of the axes.
    Transpose,
    /// A part along axes.
    Slice,
    /// Gradient of a slice.
    SliceGrad,
    /// Tensors side by side along an axis.
    Concat,
    /// Parts along an axis.
    Split,
    /// Padding.
    Pad,
    /// Gradient of a reflecting or edge padding.
    PadGrad,
    /// Broadcast to a shape.
    Expand,
    /// Repetition along axes.
    Tile,
    /// Removal of axes of size 1.
    Squeeze,
    /// Insertion of axes of size 1.
    Unsqueeze,
    /// Entries by index along an axis.
    Gather,
    /// Gradient of a gather.
    GatherGrad,
    /// Entries by an index for each.
    GatherElements,
    /// Writes entries by an index for each.
    ScatterElements,
    /// One-hot encoding.
    OneHot,
    /// Long short-term memory.
    Lstm,
    /// Gradients of an LSTM.
    LstmGrad,
    /// Gated recurrent unit.
    Gru,
    /// Gradients of a GRU.
    GruGrad,
    /// Scaled dot-product attention.
    Attention,
    /// Dropout.
    Dropout,
    /// Random tensor.
    Random,
    /// Float to integer grid.
    Quantize,
    /// Integer grid to float.
    Dequantize,
    /// Float to an integer grid found at run time.
    DynamicQuantize,
    /// Rounding to a grid, in float.
    FakeQuantize,
    /// Softmax cross-entropy with class indices.
    SoftmaxCrossEntropy,
    /// Sizes as data.
    Sizes,
    /// Counting.
    Iota,
    /// Nothing.
    Identity,
    /// Nothing forward, no gradient backward.
    StopGradient,
    /// Assignment to a variable.
    Assign,
}
