//! Kernels, one file an op family, under the names that `opt_core::ops` has for them.
//!
//! Each family has a `compile` function that turns an op, with the types of a node, into a
//! [`Kernel`] with everything precomputed that does not depend on the inputs' content.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub(crate) mod append;
mod attention;
pub(crate) mod batch_norm;
pub(crate) mod conv;
mod convert;
mod custom;
#[cfg(target_arch = "x86_64")]
mod divide;
pub(crate) mod elementwise;
pub(crate) mod gemm;
mod index;
pub(crate) mod int8;
mod lanes;
mod loss;
mod math;
mod matmul;
mod max_rows;
mod minifloat;
mod norm;
mod pool;
mod quant;
mod random;
mod recurrent;
mod reduce;
mod row_norm;
mod scan;
mod shape;
mod softmax;
mod state;
pub(crate) mod team;
mod tile;
pub(crate) mod weight_only;
mod wide;

pub(crate) use state::Copy;

use std::fmt;
use std::marker::PhantomData;

use bytemuck::Pod;
use opt_core::ops::UnaryOp;
use opt_core::{DType, Error, Op, Result, Tensor, TensorType};

/// An operand: contiguous, row-major.
#[derive(Clone, Copy)]
pub(crate) struct Arg<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
}

impl<'a> Arg<'a> {
    /// The elements; the caller has matched on the dtype.
    pub(crate) fn typed<T: Pod>(&self) -> &'a [T] {
        bytemuck::cast_slice(self.bytes)
    }
}

/// A result to fill: contiguous, row-major; holds garbage before.
pub(crate) struct Out<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a mut [u8],
}

impl Out<'_> {
    /// The elements; the caller has matched on the dtype.
    pub(crate) fn typed<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes)
    }
}

/// What a kernel runs with beside its operands.
pub(crate) struct RunCx<'a> {
    /// How many threads it may use.
    pub(crate) threads: usize,
    /// As many bytes as [`Kernel::scratch`] asked for, 64-byte aligned, content undefined.
    pub(crate) scratch: &'a mut [u8],
}

/// A compiled node, or several fused ones.
pub(crate) trait Kernel: Send + Sync + fmt::Debug {
    /// What it is, for profiles: `conv+relu`.
    fn name(&self) -> String;

    /// Bytes of scratch memory it needs.
    fn scratch(&self) -> usize {
        0
    }

    /// Whether it may write an output over an input of the same size: pairs of
    /// (input, output) for which output entry `i` depends on input entry `i` only.
    fn in_place(&self) -> &[(usize, usize)] {
        &[]
    }

    /// Told once, before the first run, which of those pairs are so.
    fn give(&mut self, _pairs: &[(usize, usize)]) {}

    /// Fills the outputs. The result does not depend on `cx.threads`. An input that was given up
    /// for an output in place arrives with empty bytes.
    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()>;
}

/// What the compiler moved into a convolution or product beside functions of its result; only in
/// `f32`. Inputs are the operands, the bias if there is one, scale, offset, mean and variance of the
/// normalization before and of that after if there is one, the residual if there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Extras {
    /// The channels of the first operand are normalized; only for convolutions.
    pub(crate) before: Option<Normalize>,
    /// Those of the result (with its bias) are, before anything else; only for convolutions, and
    /// with a weight that is constant.
    pub(crate) after: Option<Normalize>,
    /// The last input, of the output's type, is added to the result (with its bias) before the
    /// functions.
    pub(crate) residual: bool,
    /// `min(max(y, low), high)` of what the functions give.
    pub(crate) clamp: Option<[f32; 2]>,
}

/// A batch normalization by constants, and whether a ReLU follows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Normalize {
    pub(crate) epsilon: f64,
    pub(crate) relu: bool,
}

impl Extras {
    /// How many inputs are theirs.
    pub(crate) fn inputs(&self) -> usize {
        let norms = usize::from(self.before.is_some()) + usize::from(self.after.is_some());
        4 * norms + usize::from(self.residual)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Extras::default()
    }

    /// The name of a kernel that does these, too: `conv+add`.
    pub(crate) fn name(&self, name: String) -> String {
        let mut parts = name.splitn(2, '+');
        let mut out = parts.next().unwrap_or_default().to_string();
        out = match self.before {
            Some(Normalize { relu: true, .. }) => "norm+relu+".to_string() + &out,
            Some(_) => "norm+".to_string() + &out,
            None => out,
        };
        if self.after.is_some() {
            out += "+norm";
        }
        if self.residual {
            out += "+add";
        }
        for functions in parts {
            out = out + "+" + functions;
        }
        match self.clamp {
            Some(_) => out + "+clip",
            None => out,
        }
    }
}

/// What a family's `compile` works with.
pub(crate) struct CompileCx<'a> {
    /// Types of the inputs, without symbols.
    pub(crate) inputs: &'a [TensorType],
    /// Types of the outputs, without symbols.
    pub(crate) outputs: &'a [TensorType],
    /// The content of inputs that are constant, to prepack or check.
    pub(crate) constants: &'a [Option<Tensor>],
    /// Element-wise functions to apply to the output, in order, in the same pass over memory;
    /// only for `conv` and `matmul` on `f32` (and on 16-bit floats, which run on the kernels of
    /// `f32`), which take a bias as their third input too.
    pub(crate) epilogue: &'a [UnaryOp],
    /// What else happens to the output.
    pub(crate) extras: Extras,
    /// How many threads will run the kernel.
    pub(crate) threads: usize,
}

/// Fails unless a dtype is `f32` or `f64`, naming the op.
pub(crate) fn real(ty: &TensorType, what: &str) -> Result<()> {
    if matches!(ty.dtype, DType::F32 | DType::F64) {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "{what} of {}; cast to f32 first",
        ty.dtype
    )))
}

/// Compiles an op that is not an alias of its input.
pub(crate) fn compile(op: &Op, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    if wide::widens(op, cx) {
        return wide::compile_widened(op, cx);
    }
    match op {
        Op::Unary(_) | Op::Binary(_) | Op::Where(_) | Op::Cast(_) => elementwise::compile(op, cx),
        Op::MatMul(op) => matmul::compile(op, cx),
        Op::Reduce(op) => reduce::compile(op, cx),
        Op::ArgReduce(op) => scan::compile_arg(op, cx),
        Op::TopK(op) => scan::compile_top_k(op, cx),
        Op::CumSum(op) => scan::compile_cumsum(op, cx),
        Op::Softmax(op) => softmax::compile(op.axis, false, cx),
        Op::LogSoftmax(op) => softmax::compile(op.axis, true, cx),
        Op::SoftmaxCrossEntropy(_) => loss::compile(cx),
        Op::Transpose(_)
        | Op::Slice(_)
        | Op::SliceGrad(_)
        | Op::Concat(_)
        | Op::Split(_)
        | Op::Pad(_)
        | Op::PadGrad(_)
        | Op::Expand(_)
        | Op::Tile(_) => shape::compile(op, cx),
        Op::Gather(_)
        | Op::GatherGrad(_)
        | Op::GatherElements(_)
        | Op::ScatterElements(_)
        | Op::OneHot(_) => index::compile(op, cx),
        Op::Random(op) => random::compile(op, cx),
        Op::Dropout(op) => random::compile_dropout(op, cx),
        Op::Custom(op) => Ok(Box::new(custom::Custom(op.clone()))),
        Op::Conv(op) => conv::compile_conv(op, cx),
        Op::ConvTranspose(op) => conv::compile_conv_transpose(op, cx),
        Op::ConvGradWeight(op) => conv::compile_conv_grad_weight(op, cx),
        Op::MaxPool(op) => match max_rows::compile(op, cx)? {
            Some(kernel) => Ok(kernel),
            None => pool::compile_max_pool(op, cx),
        },
        Op::MaxPoolGrad(op) => pool::compile_max_pool_grad(op, cx),
        Op::AvgPool(op) => pool::compile_avg_pool(op, cx),
        Op::AvgPoolGrad(op) => pool::compile_avg_pool_grad(op, cx),
        Op::BatchNorm(op) => norm::compile_batch_norm(op, cx),
        Op::BatchNormGrad(_) => norm::compile_batch_norm_grad(cx),
        Op::LayerNorm(op) => norm::compile_layer_norm(op, cx),
        Op::GroupNorm(op) => norm::compile_group_norm(op, cx),
        Op::InstanceNorm(op) => norm::compile_instance_norm(op, cx),
        Op::RmsNorm(op) => norm::compile_rms_norm(op, cx),
        Op::Lstm(op) => recurrent::compile_lstm(op, cx),
        Op::LstmGrad(op) => recurrent::compile_lstm_grad(op, cx),
        Op::Gru(op) => recurrent::compile_gru(op, cx),
        Op::GruGrad(op) => recurrent::compile_gru_grad(op, cx),
        Op::Attention(op) => attention::compile_attention(op, cx),
        Op::Quantize(op) => quant::compile_quantize(op, cx),
        Op::Dequantize(op) => quant::compile_dequantize(op, cx),
        Op::DynamicQuantize(_) => quant::compile_dynamic_quantize(cx),
        Op::FakeQuantize(op) => quant::compile_fake_quantize(op, cx),
        other => Err(Error::unsupported(format!(
            "the CPU backend has no kernel for {}",
            other.name()
        ))),
    }
}

/// Runs `task(0)` to `task(count - 1)`, on several threads if there are several: those of the team
/// that the caller runs as.
pub(crate) fn parallel(threads: usize, count: usize, task: impl Fn(usize) + Sync) {
    if threads <= 1 || count <= 1 {
        (0..count).for_each(task);
    } else {
        team::fork(threads, count, &task);
    }
}

/// Splits a slice into chunks of `len` (the last may be shorter) and runs a task for each, on
/// several threads if there are several; results do not depend on how many.
pub(crate) fn parallel_chunks<T: Send + Sync>(
    threads: usize,
    data: &mut [T],
    len: usize,
    task: impl Fn(usize, &mut [T]) + Sync,
) {
    let len = len.max(1);
    if threads <= 1 || data.len() <= len {
        data.chunks_mut(len)
            .enumerate()
            .for_each(|(i, chunk)| task(i, chunk));
    } else {
        let data = SharedMut::new(data);
        parallel(threads, data.len().div_ceil(len), |i| {
            #[expect(unsafe_code, reason = "each task has its own chunk")]
            // SAFETY: each number is given out once, and the chunks of two do not overlap.
            let chunk = unsafe { data.part(i * len..data.len().min((i + 1) * len)) };
            task(i, chunk);
        });
    }
}

/// A mutable slice that several tasks write disjoint parts of.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

#[expect(unsafe_code, reason = "tasks write disjoint parts of one output")]
// SAFETY: it stands for a `&mut [T]`; access goes through `unsafe` methods or raw pointers only.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
#[expect(unsafe_code, reason = "tasks write disjoint parts of one output")]
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Shares a slice.
    pub(crate) fn new(slice: &'a mut [T]) -> SharedMut<'a, T> {
        SharedMut {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            _slice: PhantomData,
        }
    }

    /// How many elements there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A pointer to the element at an index.
    pub(crate) fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len);
        self.start.wrapping_add(index)
    }

    /// A part to write.
    ///
    /// # Safety
    /// No other part that overlaps it is in use.
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "the parts are disjoint")]
    pub(crate) unsafe fn part(&self, range: std::ops::Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds, and nobody else uses it as the caller vouches.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
