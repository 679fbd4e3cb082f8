//! Constant folding: what depends on constants only is computed once, when compiling.

use opt_core::ops::Op;
use opt_core::tensor::Buffer;
use opt_core::{Result, ResultExt, Tensor};

use super::plan::{Ir, Kind};
use crate::kernels::{Arg, Out, RunCx};

/// Results up to this many bytes are folded even if they are larger than what they come from.
const SMALL: usize = 1 << 16;

/// Computes the deterministic steps whose inputs are all constants.
pub(super) fn fold(ir: &mut Ir) -> Result<()> {
    let steps = std::mem::take(&mut ir.steps);
    for step in steps {
        let deterministic = match &step.kind {
            Kind::Op(op) => op.rules().is_deterministic(),
            _ => true,
        };
        let inputs: Option<Vec<Tensor>> = step.inputs.iter().map(|&v| ir.constant(v)).collect();
        let Some(inputs) = inputs.filter(|inputs| deterministic && !inputs.is_empty()) else {
            ir.steps.push(step);
            continue;
        };
        let mut shapes = Vec::new();
        let mut buffers = Vec::new();
        for &v in &step.outputs {
            let ty = &ir.types[v];
            buffers.push(Buffer::zeroed(ty.dtype.bytes(ty.shape.len()?)));
            shapes.push(ty.shape.fixed()?);
        }
        // A scalar expanded to a large tensor is cheaper to expand at each run than to keep; weights
        // of 2 bits are not.
        let from: usize = inputs.iter().map(Tensor::size_in_bytes).sum();
        let to: usize = buffers.iter().map(Buffer::len).sum();
        let quantized = matches!(&step.kind, Kind::Op(Op::Dequantize(_) | Op::Cast(_)));
        if to > SMALL && to > 8 * from && !quantized {
            ir.steps.push(step);
            continue;
        }
        let kernel = step.compile(&ir.types, |v| ir.constant(v), 1)?;
        let mut scratch = Buffer::zeroed(kernel.scratch());
        let mut args = Vec::new();
        for tensor in &inputs {
            args.push(Arg {
                dtype: tensor.dtype(),
                shape: tensor.shape(),
                bytes: tensor.bytes()?,
            });
        }
        let mut outs: Vec<Out<'_>> = Vec::new();
        for ((buffer, shape), &v) in buffers.iter_mut().zip(&shapes).zip(&step.outputs) {
            outs.push(Out {
                dtype: ir.types[v].dtype,
                shape,
                bytes: buffer.bytes_mut(),
            });
        }
        let mut cx = RunCx {
            threads: 1,
            scratch: scratch.bytes_mut(),
        };
        kernel
            .run(&args, &mut outs, &mut cx)
            .at(|| step.nodes[0].clone())?;
        for ((buffer, shape), &v) in buffers.into_iter().zip(shapes).zip(&step.outputs) {
            let tensor = Tensor::from_buffer(ir.types[v].dtype, shape, buffer)?;
            ir.constants.insert(v, tensor);
        }
    }
    Ok(())
}
