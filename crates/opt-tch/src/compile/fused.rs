//! Steps that libtorch has one kernel for: what they are, and where a graph has them.

mod backward;
mod foreach;
mod linear;
mod optimizer;
mod qdq;

use opt_core::ops::{Attention, Conv, Dequantize, Gru, LayerNorm, Lstm, MatMul, MaxPool, UnaryOp};
use opt_core::{Error, Result};

use super::Options;
use super::ir::Ir;
use crate::kernels::{self, CompileCx, Kernel};
pub(crate) use foreach::{Foreach, Operand};
pub(crate) use optimizer::{Adam, Sgd};

/// What a fused step runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fused {
    /// `x w + b`, the weight transposed or not.
    Linear {
        /// Whether the weight is `[N, K]`.
        trans_b: bool,
    },
    /// The gradient of an activation from the arriving one, and its input or output.
    ActivationGrad(UnaryOp),
    /// The gradient of softmax, or of its logarithm, from the arriving one and the output.
    SoftmaxGrad { axis: usize, log: bool },
    /// Softmax cross-entropy that gives the logarithms beside the loss.
    CrossEntropy,
    /// Its gradient from the arriving one, the logarithms and the labels.
    CrossEntropyGrad,
    /// The gradients of a convolution that are wanted.
    ConvGrad { op: Conv, wanted: [bool; 3] },
    /// The gradients of a layer normalization that are wanted.
    LayerNormGrad { op: LayerNorm, wanted: [bool; 3] },
    /// Max pooling that gives the indices.
    MaxPoolIndices(MaxPool),
    /// Attention that is recorded for its gradient.
    Attention(Attention),
    /// Its gradient.
    AttentionGrad(Attention),
    /// An LSTM that is recorded for its gradient.
    Lstm(Lstm),
    /// Its gradient.
    LstmGrad(Lstm),
    /// A GRU that is recorded for its gradient.
    Gru(Gru),
    /// Its gradient.
    GruGrad(Gru),
    /// A matrix product of bytes on grids.
    IntMatMul(MatMul),
    /// A convolution of bytes on grids.
    IntConv(Conv),
    /// A product with a packed matrix of 4-bit integers.
    PackedMatMul(MatMul, Dequantize),
    /// A step of Adam for many parameters, in place.
    Adam(Adam),
    /// A step of SGD for many parameters, in place.
    Sgd(Sgd),
    /// A variable times a mask, in place.
    Mask,
    /// An element-wise function of lists of tensors.
    Foreach(Foreach),
}

impl Fused {
    pub(crate) fn compile(&self, cx: &CompileCx<'_>) -> Result<Kernel> {
        match self {
            Fused::Linear { trans_b } => kernels::matmul::compile_linear(*trans_b, cx),
            Fused::ActivationGrad(op) => kernels::elementwise::compile_grad(*op),
            Fused::SoftmaxGrad { axis, log } => kernels::softmax::compile_grad(*axis, *log, cx),
            Fused::CrossEntropy => kernels::loss::compile_recorded(cx),
            Fused::CrossEntropyGrad => kernels::loss::compile_grad(cx),
            Fused::ConvGrad { op, wanted } => kernels::conv::compile_conv_grad(op, cx, *wanted),
            Fused::LayerNormGrad { op, wanted } => {
                kernels::norm::compile_layer_norm_grad(op, &cx.shape(1)?, *wanted)
            }
            Fused::MaxPoolIndices(op) => kernels::pool::compile_max_pool_indices(op, cx),
            Fused::Attention(op) => kernels::attention::compile_recorded(op, cx),
            Fused::AttentionGrad(op) => kernels::attention::compile_grad(op, cx),
            Fused::Lstm(op) => Ok(kernels::recurrent::compile_lstm_recorded(op)),
            Fused::LstmGrad(op) => Ok(kernels::recurrent::compile_lstm_backward(op)),
            Fused::Gru(op) => kernels::recurrent::compile_gru_recorded(op),
            Fused::GruGrad(op) => kernels::recurrent::compile_gru_backward(op),
            Fused::IntMatMul(op) => kernels::int8::compile_matmul(*op, cx),
            Fused::IntConv(op) => kernels::int8::compile_conv(op, cx),
            Fused::PackedMatMul(op, grid) => kernels::packed::compile(*op, grid, cx),
            Fused::Adam(adam) => Ok(kernels::optimizer::compile_adam(adam)),
            Fused::Sgd(sgd) => Ok(kernels::optimizer::compile_sgd(sgd)),
            Fused::Mask => Ok(kernels::optimizer::compile_mask()),
            Fused::Foreach(foreach) => kernels::foreach::compile(foreach),
        }
    }

    /// Whether it writes variables; then it runs after all else.
    pub(crate) fn writes(&self) -> bool {
        matches!(self, Fused::Adam(_) | Fused::Sgd(_) | Fused::Mask)
    }

    /// Whether its results share no memory with its inputs.
    pub(crate) fn gives_new_memory(&self) -> bool {
        !matches!(self, Fused::Attention(_) | Fused::Lstm(_) | Fused::Gru(_))
    }
}

/// Recognises them.
pub(super) fn fuse(ir: &mut Ir, options: Options) -> Result<()> {
    let device = options.device;
    qdq::fuse(ir, device)?;
    backward::fuse(ir)?;
    linear::fuse(ir);
    ir.remove_dead();
    optimizer::fuse(ir)?;
    ir.remove_dead();
    if options.foreach {
        ir.sort()?;
        foreach::fuse(ir);
        ir.sort()?;
    }
    Ok(())
}

/// An error of a kernel that was asked for what it does not have.
pub(crate) fn missing(what: &str) -> Error {
    Error::unsupported(format!("{what} on the libtorch backend"))
}
