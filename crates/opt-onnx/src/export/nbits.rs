//! Products with weights in blocks of few bits as `MatMulNBits`, which ONNX Runtime has kernels for.

use opt_core::ops::{Dequantize, MatMul, Op};
use opt_core::tensor::write_codes;
use opt_core::{DType, Node, Result, Tensor, ValueId};

use super::Cx;
use super::attributes::int;

/// The domain of ONNX Runtime's own operators.
pub(super) const DOMAIN: &str = "com.microsoft";

/// The constants of a weight that `MatMulNBits` takes.
struct Weight<'g> {
    q: &'g Tensor,
    scale: &'g Tensor,
    zero: Option<&'g Tensor>,
    block: usize,
    /// The axis that the product sums over.
    inner: usize,
}

/// The weight of a product, if it is one in blocks of 2, 4 or 8 bits along the summed axis.
fn weight<'g>(cx: &Cx<'g>, node: &Node, op: &MatMul) -> Option<Weight<'g>> {
    if !cx.nbits || op.trans_a || cx.ty(node.inputs()[0]).dtype != DType::F32 {
        return None;
    }
    let (_, Op::Dequantize(Dequantize { axis, block }), inputs) = cx.maker(node.inputs()[1])?
    else {
        return None;
    };
    let content = |v: ValueId| cx.graph.value(v).tensor();
    let (q, scale) = (content(inputs[0])?, content(inputs[1])?);
    let zero = match inputs.get(2) {
        Some(&v) => Some(content(v)?),
        None => None,
    };
    let (block, inner) = ((*block)?, usize::from(op.trans_b));
    let fits = q.rank() == 2
        && *axis == Some(inner)
        && !q.is_empty()
        && block.is_power_of_two()
        && (16..=256).contains(&block)
        && q.dtype().int_range().is_ok()
        && scale.dtype() == DType::F32;
    fits.then_some(Weight {
        q,
        scale,
        zero,
        block,
        inner,
    })
}

/// Whether all that read a dequantized weight are such products.
pub(super) fn readers_are_products(cx: &Cx<'_>, value: ValueId) -> bool {
    if !cx.nbits || cx.graph.outputs().any(|o| o == value) {
        return false;
    }
    let readers = cx.consumers.get(&value).map_or(&[][..], Vec::as_slice);
    !readers.is_empty()
        && readers.iter().all(|&(id, input)| {
            let node = cx.graph.node(id);
            match node.op() {
                Op::MatMul(op) => input == 1 && weight(cx, node, op).is_some(),
                _ => false,
            }
        })
}

/// The codes of a matrix by rows of output channels, moved to an unsigned type.
fn rows(tensor: &Tensor, inner: usize) -> Result<Vec<u8>> {
    let (low, _) = tensor.dtype().int_range()?;
    let values = tensor.to_f64s();
    let (a, b) = (tensor.shape()[0], tensor.shape()[1]);
    let code = |v: f64| (v as i32 - low) as u8;
    Ok(match inner {
        1 => values.into_iter().map(code).collect(),
        _ => (0..a * b)
            .map(|i| code(values[i % a * b + i / a]))
            .collect(),
    })
}

/// Writes a product as `MatMulNBits`, if it is one; says whether it was.
pub(super) fn matmul(cx: &mut Cx<'_>, node: &Node, op: &MatMul) -> Result<bool> {
    let Some(Weight {
        q,
        scale,
        zero,
        block,
        inner,
    }) = weight(cx, node, op)
    else {
        return Ok(false);
    };
    let bits = q.dtype().bits();
    let (k, n) = (q.shape()[inner], q.shape()[1 - inner]);
    let blocks = k.div_ceil(block);
    let blob = block * bits / 8;
    // Each row is filled up to whole blocks.
    let codes = rows(q, inner)?;
    let mut content = vec![0u8; n * blocks * blob];
    for (row, bytes) in codes.chunks(k).zip(content.chunks_mut(blocks * blob)) {
        write_codes(row.iter().copied(), bits, bytes);
    }
    let content = Tensor::new([n, blocks, blob], content)?;
    let scale = match inner {
        1 => scale.contiguous(),
        _ => scale.transpose(&[1, 0])?.contiguous(),
    };
    let width = (blocks * bits).div_ceil(8);
    // What is stored in a signed type has its 0 in the middle of the unsigned one.
    let middle = match q.dtype().int_range()?.0 {
        0 => 0,
        low => -low as u8,
    };
    let points = match zero {
        Some(zero) => rows(zero, inner)?,
        None => vec![middle; n * blocks],
    };
    let mut zeros = vec![0u8; n * width];
    for (row, bytes) in points.chunks(blocks).zip(zeros.chunks_mut(width)) {
        write_codes(row.iter().copied(), bits, bytes);
    }
    let name = node.name().to_string();
    let base = format!("{name}/weight");
    let mut inputs = vec![cx.read(node.inputs()[0])];
    inputs.push(cx.constant(&base, content));
    inputs.push(cx.constant(&format!("{base}_scales"), scale));
    // Left out, it is the middle.
    if points.iter().any(|&p| p != 1 << (bits - 1)) {
        let zeros = Tensor::new([n, width], zeros)?;
        inputs.push(cx.constant(&format!("{base}_zero_points"), zeros));
    }
    let attributes = vec![
        int("K", k as i64),
        int("N", n as i64),
        int("bits", bits as i64),
        int("block_size", block as i64),
    ];
    let out = cx.name(node.outputs()[0]);
    cx.emit("MatMulNBits", &name, inputs, vec![out], attributes);
    cx.nodes.last_mut().expect("just written").domain = Some(DOMAIN.into());
    Ok(true)
}
