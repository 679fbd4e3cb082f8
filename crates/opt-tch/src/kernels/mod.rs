//! Kernels, one file an op family, under the names that `opt_core::ops` has for them: each turns
//! an op into calls of libtorch's operators.

pub(crate) mod attention;
pub(crate) mod conv;
mod custom;
pub(crate) mod elementwise;
pub(crate) mod foreach;
mod index;
pub(crate) mod int8;
pub(crate) mod loss;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod optimizer;
pub(crate) mod packed;
pub(crate) mod pool;
mod quant;
pub(crate) mod random;
pub(crate) mod recurrent;
mod reduce;
mod scan;
mod shape;
pub(crate) mod softmax;
mod state;

use std::cell::RefCell;
use std::fmt;

use opt_core::{DType, Error, ErrorKind, Op, Result, TensorType};
use smallvec::smallvec;
use tch::Tensor;

use crate::Device;
use crate::native::{Outs, aten};

/// What a kernel runs with beside its operands.
#[derive(Debug)]
pub(crate) struct RunCx {
    pub(crate) device: Device,
    /// Whether an index was out of range, a boolean on the device, and what to say of it. On a
    /// GPU an operator that meets such an index takes the process' whole context down, so
    /// indices are clamped there, and this is looked at when the outputs are.
    faults: RefCell<Vec<(Tensor, String)>>,
}

impl RunCx {
    pub(crate) fn new(device: Device) -> RunCx {
        RunCx {
            device,
            faults: RefCell::default(),
        }
    }

    /// The indices, safe to use along an axis of a size; on the processor operators check
    /// themselves.
    pub(crate) fn guard(&self, index: Tensor, size: i64, what: &str) -> Result<Tensor> {
        if self.device == Device::Cpu {
            return Ok(index);
        }
        let (low, high) = (
            aten!("lt.Scalar", &index, 0i64)?,
            aten!("ge.Scalar", &index, size)?,
        );
        let outside = aten!("any", &aten!("logical_or", &low, &high)?)?;
        self.faults
            .borrow_mut()
            .push((outside, format!("an index of {what} is not in 0..{size}")));
        aten!("clamp", &index, 0i64, (size - 1).max(0))
    }

    /// Fails if an index was out of range.
    pub(crate) fn check(&self) -> Result<()> {
        for (outside, message) in self.faults.borrow_mut().drain(..) {
            if outside.f_int64_value(&[]).is_ok_and(|v| v != 0) {
                return Err(Error::new(ErrorKind::Data, message));
            }
        }
        Ok(())
    }
}

/// Runs with the number of the input that is given up.
type Over = dyn Fn(&[&Tensor], usize) -> Result<Tensor> + Send + Sync;

type Body = dyn Fn(&[&Tensor], &RunCx) -> Result<Outs> + Send + Sync;

/// A compiled node.
pub(crate) struct Kernel {
    name: String,
    body: Box<Body>,
    /// What writes its result over an input, and which inputs it can be.
    in_place: Option<(&'static [usize], Box<Over>)>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kernel").field(&self.name).finish()
    }
}

impl Kernel {
    pub(crate) fn new(
        name: impl Into<String>,
        body: impl Fn(&[&Tensor], &RunCx) -> Result<Outs> + Send + Sync + 'static,
    ) -> Kernel {
        Kernel {
            name: name.into(),
            body: Box::new(body),
            in_place: None,
        }
    }

    /// The same, which can write its result over one of some inputs of the output's type.
    pub(crate) fn over(
        mut self,
        inputs: &'static [usize],
        body: impl Fn(&[&Tensor], usize) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Kernel {
        self.in_place = Some((inputs, Box::new(body)));
        self
    }

    /// The inputs that it can write its result over.
    pub(crate) fn can_replace(&self) -> &'static [usize] {
        self.in_place.as_ref().map_or(&[], |(inputs, _)| inputs)
    }

    /// Runs over an input that [`Kernel::can_replace`] lists.
    pub(crate) fn run_over(&self, x: &[&Tensor], input: usize, cx: &RunCx) -> Result<Outs> {
        match &self.in_place {
            Some((_, body)) => Ok(smallvec![body(x, input)?]),
            None => self.run(x, cx),
        }
    }

    /// A kernel with one result.
    pub(crate) fn one(
        name: impl Into<String>,
        body: impl Fn(&[&Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Kernel {
        Kernel::new(name, move |x, _| Ok(smallvec![body(x)?]))
    }

    /// What it is, for profiles.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn run(&self, x: &[&Tensor], cx: &RunCx) -> Result<Outs> {
        (self.body)(x, cx)
    }
}

/// What a family's `compile` works with.
#[derive(Debug)]
pub(crate) struct CompileCx<'a> {
    /// Types of the inputs, without symbols.
    pub(crate) inputs: &'a [TensorType],
    /// Types of the outputs, without symbols.
    pub(crate) outputs: &'a [TensorType],
    /// The content of inputs that are constant.
    pub(crate) constants: &'a [Option<opt_core::Tensor>],
    pub(crate) device: Device,
}

impl CompileCx<'_> {
    /// The sizes of an input.
    pub(crate) fn shape(&self, input: usize) -> Result<Vec<i64>> {
        sizes(&self.inputs[input])
    }

    /// The sizes of an output.
    pub(crate) fn out_shape(&self, output: usize) -> Result<Vec<i64>> {
        sizes(&self.outputs[output])
    }

    /// The one number of an input that is a constant with one element.
    pub(crate) fn scalar(&self, input: usize) -> Option<f64> {
        let constant = self.constants.get(input)?.as_ref()?;
        // Integers beyond 2^53 are no f64.
        let exact = |v: f64| constant.dtype() != DType::I64 || v.abs() < 9e15;
        constant.item().ok().filter(|&v| exact(v))
    }
}

/// The sizes of a type.
pub(crate) fn sizes(ty: &TensorType) -> Result<Vec<i64>> {
    let shape = ty.shape.fixed()?;
    shape.iter().map(|&n| int(n)).collect()
}

/// A size or index as libtorch has it.
pub(crate) fn int(n: usize) -> Result<i64> {
    i64::try_from(n).map_err(|_| Error::shape(format!("a size of {n}")))
}

/// Sizes or indices as libtorch has them.
pub(crate) fn ints(list: &[usize]) -> Result<Vec<i64>> {
    list.iter().map(|&n| int(n)).collect()
}

/// A constant that kernels share.
#[derive(Debug)]
pub(crate) struct Shared(Tensor);

#[allow(unsafe_code)]
// SAFETY: nothing writes to the tensor, and libtorch's tensors are read, and their references
// counted, from several threads at once.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(tensor: Tensor) -> Shared {
        Shared(tensor)
    }

    pub(crate) fn get(&self) -> &Tensor {
        &self.0
    }

    /// Integers on a device.
    pub(crate) fn ints(values: &[i64], device: Device) -> Result<Shared> {
        let host = Tensor::f_from_slice(values).map_err(crate::convert::failed)?;
        Ok(Shared(crate::convert::to_device(&host, device)?))
    }
}

/// Compiles an op.
pub(crate) fn compile(op: &Op, cx: &CompileCx<'_>) -> Result<Kernel> {
    match op {
        Op::Unary(_) | Op::Binary(_) | Op::Where(_) | Op::Cast(_) => elementwise::compile(op, cx),
        Op::Reduce(op) => reduce::compile(op, cx),
        Op::ArgReduce(op) => scan::compile_arg(op, cx),
        Op::TopK(op) => scan::compile_top_k(op, cx),
        Op::CumSum(op) => scan::compile_cumsum(op, cx),
        Op::Softmax(op) => softmax::compile(op.axis, false),
        Op::LogSoftmax(op) => softmax::compile(op.axis, true),
        Op::MatMul(op) => matmul::compile(op, cx),
        Op::Conv(op) => conv::compile_conv(op, cx),
        Op::ConvTranspose(op) => conv::compile_conv_transpose(op, cx),
        Op::ConvGradWeight(op) => conv::compile_conv_grad_weight(op, cx),
        Op::MaxPool(op) => pool::compile_max_pool(op, cx),
        Op::MaxPoolGrad(op) => pool::compile_max_pool_grad(op, cx),
        Op::AvgPool(op) => pool::compile_avg_pool(op, cx),
        Op::AvgPoolGrad(op) => pool::compile_avg_pool_grad(op, cx),
        Op::BatchNorm(op) => norm::compile_batch_norm(op),
        Op::BatchNormGrad(_) => norm::compile_batch_norm_grad(),
        Op::LayerNorm(op) => norm::compile_layer_norm(op, cx),
        Op::GroupNorm(op) => norm::compile_group_norm(op.groups, op.epsilon, cx),
        Op::InstanceNorm(op) => norm::compile_instance_norm(op.epsilon, cx),
        Op::RmsNorm(op) => norm::compile_rms_norm(op, cx),
        Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Slice(_)
        | Op::SliceGrad(_)
        | Op::Concat(_)
        | Op::Split(_)
        | Op::Pad(_)
        | Op::PadGrad(_)
        | Op::Expand(_)
        | Op::Tile(_)
        | Op::Squeeze(_)
        | Op::Unsqueeze(_) => shape::compile(op, cx),
        Op::Gather(op) => index::compile_gather(op.axis, cx),
        Op::GatherGrad(op) => index::compile_gather_grad(op, cx),
        Op::GatherElements(op) => index::compile_gather_elements(op.axis, cx),
        Op::ScatterElements(op) => index::compile_scatter_elements(op, cx),
        Op::OneHot(op) => index::compile_one_hot(op, cx),
        Op::Lstm(op) => recurrent::compile_lstm(op),
        Op::LstmGrad(op) => recurrent::compile_lstm_grad(op, cx),
        Op::Gru(op) => recurrent::compile_gru(op),
        Op::GruGrad(op) => recurrent::compile_gru_grad(op, cx),
        Op::Attention(op) => attention::compile(op, cx),
        Op::Dropout(op) => random::compile_dropout(op, cx),
        Op::Random(op) => random::compile_random(op, cx),
        Op::Quantize(op) => quant::compile_quantize(op, cx),
        Op::Dequantize(op) => quant::compile_dequantize(op, cx),
        Op::DynamicQuantize(_) => quant::compile_dynamic_quantize(),
        Op::FakeQuantize(op) => quant::compile_fake_quantize(op, cx),
        Op::SoftmaxCrossEntropy(_) => loss::compile(cx),
        Op::Sizes(_) | Op::Iota(_) | Op::Identity(_) | Op::StopGradient(_) | Op::Assign(_) => {
            state::compile(op, cx)
        }
        Op::Custom(op) => custom::compile(op, cx),
        other => Err(Error::unsupported(format!(
            "the libtorch backend has no kernel for {}",
            other.name()
        ))),
    }
}
