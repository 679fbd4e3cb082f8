//! Products with weights in blocks of few bits, as ONNX Runtime has them.

use opt_core::ops::{Dequantize, MatMul};
use opt_core::tensor::read_code;
use opt_core::{DType, Error, Result, Tensor};

use super::count;
use crate::import::Cx;
use crate::import::known::Known;
use crate::import::node::{Node, V};

fn constant(cx: &Cx<'_>, v: V, what: &str) -> Result<Tensor> {
    let known = cx.known(v).and_then(Known::tensor);
    known.ok_or_else(|| Error::unsupported(format!("{what} that is not an initializer")))
}

/// `MatMulNBits`: a product with a weight `[N, K]` in blocks of integers of 2, 4 or 8 bits along K.
pub(super) fn matmul(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let a = cx.x(node, 0)?;
    let (packed, scales) = (node.input(1)?, node.input(2)?);
    let zeros = node.maybe(3);
    node.int("accuracy_level")?;
    let number = |name: &str| -> Result<usize> { count(node.int_or(name, 0)?, name) };
    let (k, n, block) = (number("K")?, number("N")?, number("block_size")?);
    let bits = count(node.int_or("bits", 4)?, "bits")?;
    let dtype = match bits {
        2 => DType::U2,
        4 => DType::U4,
        8 => DType::U8,
        _ => {
            return Err(Error::unsupported(format!(
                "weights of {bits} bits; 2, 4 and 8 are supported"
            )));
        }
    };
    if block < 16 || !block.is_power_of_two() || k == 0 || n == 0 {
        return Err(Error::unsupported(format!(
            "a weight of {n} rows of {k} in blocks of {block}"
        )));
    }
    let blocks = k.div_ceil(block);
    let bytes = constant(cx, packed, "a weight")?;
    let stored = bytes.contiguous().as_slice::<u8>()?.to_vec();
    // All sizes come from the file: the products may overflow.
    let expected = n
        .checked_mul(blocks)
        .and_then(|b| b.checked_mul(block / 8 * bits));
    if expected != Some(stored.len()) {
        return Err(Error::shape(format!(
            "a weight of {} bytes for {n} rows of {blocks} blocks of {block} of {bits} bits",
            stored.len()
        )));
    }
    // Rows are stored in whole blocks; what is beyond K is cut off.
    let mut weight = Vec::with_capacity(n * k);
    for row in 0..n {
        let codes = (0..k).map(|i| read_code(&stored, bits, row * blocks * block + i));
        weight.extend(codes);
    }
    let weight = Tensor::from_codes(dtype, [n, k], &weight)?;
    let zero = match zeros {
        None => vec![1 << (bits - 1); n * blocks],
        Some(v) => {
            let tensor = constant(cx, v, "a zero point")?;
            if tensor.dtype() != DType::U8 {
                return Err(Error::unsupported(
                    "zero points that are not packed integers",
                ));
            }
            let bytes = tensor.contiguous().as_slice::<u8>()?.to_vec();
            let width = (blocks * bits).div_ceil(8);
            if bytes.len() != n * width {
                return Err(Error::shape("zero points of another size"));
            }
            (0..n * blocks)
                .map(|i| read_code(&bytes[i / blocks * width..], bits, i % blocks))
                .collect()
        }
    };
    let zero = Tensor::from_codes(dtype, [n, blocks], &zero)?;
    let scale = constant(cx, scales, "a scale")?.reshape([n, blocks])?;
    let name = cx.vals[packed].name.clone();
    let weight = cx.b.named_constant(&name, weight);
    let scale_name = cx.vals[scales].name.clone();
    let scale = cx.b.named_constant(&scale_name, scale.cast(DType::F32));
    let zero = cx.b.named_constant(&format!("{name}_zero_point"), zero);
    let op = Dequantize {
        axis: Some(1),
        block: Some(block),
    };
    let b = cx.b.op(op, &[weight, scale, zero])?;
    let dtype = cx.b.type_of(a).dtype;
    let b = cx.b.cast(b, dtype)?;
    let op = MatMul {
        trans_a: false,
        trans_b: true,
    };
    let mut y = cx.b.op(op, &[a, b])?;
    if node.maybe(4).is_some() {
        return Err(Error::unsupported("reordered columns (`g_idx`)"));
    }
    if let Some(bias) = cx.maybe_x(node, 5)? {
        y = cx.b.add(y, bias)?;
    }
    Ok(cx.one(y))
}
