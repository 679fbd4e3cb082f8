//! Attention and rotary position embedding.

use opt_core::ops::{MatMul, ReduceOp, UnaryOp};
use opt_core::{DType, Dim, Error, Result, ValueId};

use super::{Lower, count};
use crate::import::Cx;
use crate::import::node::{Node, V};
use crate::tensor;

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "Attention" => attention,
        "RotaryEmbedding" => rotary,
        "SwiGLU" => swiglu,
        _ => return None,
    })
}

/// `[B, S, heads * width]` as `[B, heads, S, width]`.
fn split_heads(cx: &mut Cx<'_>, x: ValueId, heads: usize) -> Result<ValueId> {
    let dims = cx.b.type_of(x).shape.dims().to_vec();
    let width = dims[2].fixed()?;
    if heads == 0 || width % heads != 0 {
        return Err(Error::shape(format!("{width} channels for {heads} heads")));
    }
    let shape = vec![
        dims[0].clone(),
        dims[1].clone(),
        Dim::Fixed(heads),
        Dim::Fixed(width / heads),
    ];
    let y = cx.b.reshape(x, shape)?;
    cx.b.transpose(y, &[0, 2, 1, 3])
}

/// The heads of keys or values repeated for the query heads that share them.
fn repeat_heads(cx: &mut Cx<'_>, x: ValueId, times: usize) -> Result<ValueId> {
    if times == 1 {
        return Ok(x);
    }
    let dims = cx.b.type_of(x).shape.dims().to_vec();
    let y = cx.b.unsqueeze(x, &[2])?;
    let wide = vec![
        dims[0].clone(),
        dims[1].clone(),
        Dim::Fixed(times),
        dims[2].clone(),
        dims[3].clone(),
    ];
    let y = cx.b.expand(y, wide)?;
    let merged = vec![
        dims[0].clone(),
        dims[1].mul(times)?,
        dims[2].clone(),
        dims[3].clone(),
    ];
    cx.b.reshape(y, merged)
}

fn attention(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (mut q, mut k, mut v) = (cx.x(node, 0)?, cx.x(node, 1)?, cx.x(node, 2)?);
    let mut mask = cx.maybe_x(node, 3)?;
    let (past_k, past_v) = (cx.maybe_x(node, 4)?, cx.maybe_x(node, 5)?);
    let lengths = cx.maybe_x(node, 6)?;
    let causal = node.flag("is_causal", false)?;
    let softcap = node.float_or("softcap", 0.0)?;
    let mode = node.int_or("qk_matmul_output_mode", 0)?;
    let left = node.int_or("left_window_size", -1)?;
    let right = node.int_or("right_window_size", -1)?;
    let precision = match node.int("softmax_precision")? {
        Some(code) => Some(tensor::dtype_of(code)?),
        None => None,
    };
    let dtype = cx.b.type_of(q).dtype;
    let flat = cx.b.type_of(q).rank() == 3;
    let given_heads = (node.int("q_num_heads")?, node.int("kv_num_heads")?);
    if flat {
        let (Some(hq), Some(hk)) = given_heads else {
            return Err(Error::invalid(
                "inputs of rank 3 need q_num_heads and kv_num_heads",
            ));
        };
        let (hq, hk) = (count(hq, "q_num_heads")?, count(hk, "kv_num_heads")?);
        q = split_heads(cx, q, hq)?;
        k = split_heads(cx, k, hk)?;
        v = split_heads(cx, v, hk)?;
    }
    let tq = cx.b.type_of(q).clone();
    if tq.rank() != 4 || cx.b.type_of(k).rank() != 4 || cx.b.type_of(v).rank() != 4 {
        return Err(Error::shape("query, key and value must have rank 3 or 4"));
    }
    let given_scale = node.float("scale")?;
    let scale = match given_scale {
        Some(scale) => scale,
        None => 1.0 / (tq.shape[3].fixed()?.max(1) as f64).sqrt(),
    };
    if let Some(past) = past_k {
        k = cx.b.concat(&[past, k], 2)?;
    }
    if let Some(past) = past_v {
        v = cx.b.concat(&[past, v], 2)?;
    }
    let (present_k, present_v) = (k, v);
    let tk = cx.b.type_of(k).clone();
    let (hq, hk) = (tq.shape[1].fixed()?, tk.shape[1].fixed()?);
    if hk == 0 || hq % hk != 0 {
        return Err(Error::shape(format!("{hq} query heads for {hk} key heads")));
    }
    k = repeat_heads(cx, k, hq / hk)?;
    v = repeat_heads(cx, v, hq / hk)?;
    // The plain case is an op of its own, with a kernel and a gradient of its own.
    let plain = past_k.is_none()
        && lengths.is_none()
        && softcap == 0.0
        && left < 0
        && right < 0
        && !node.wants(3)
        && precision.is_none_or(|p| p == dtype)
        && mask.is_none_or(|m| cx.b.type_of(m).shape.dims().last() == Some(&tk.shape[2]));
    let mut scores_out = None;
    let mut y = if plain {
        let op = opt_core::ops::Attention {
            scale: given_scale,
            causal,
        };
        let mut inputs = vec![q, k, v];
        inputs.extend(mask);
        cx.b.op(op, &inputs)?
    } else {
        let rows = tq.shape[2].clone();
        let columns = tk.shape[2].clone();
        // A mask may cover fewer keys than there are: the others are left out.
        if let Some(m) = mask {
            let ty = cx.b.type_of(m).clone();
            let have = ty.shape.dims().last().cloned().unwrap_or(Dim::Fixed(1));
            if have != columns && have.as_fixed() != Some(1) {
                let missing = columns.expr().sub(&have.expr())?.dim()?.fixed()?;
                let (zeros, mut ends) = (vec![0; ty.rank()], vec![0; ty.rank()]);
                ends[ty.rank() - 1] = missing;
                mask = Some(if ty.dtype == DType::Bool {
                    let wide = cx.b.cast(m, DType::U8)?;
                    let mode = opt_core::ops::PadMode::Constant(0.0);
                    let wide = cx.b.pad(wide, &zeros, &ends, mode)?;
                    cx.b.cast(wide, DType::Bool)?
                } else {
                    let mode = opt_core::ops::PadMode::Constant(f64::NEG_INFINITY);
                    cx.b.pad(m, &zeros, &ends, mode)?
                });
            }
        }
        // Which keys a query sees: all conditions hold together.
        let (row, column) = (cx.b.iota(rows.clone())?, cx.b.iota(columns.clone())?);
        let row = cx.b.unsqueeze(row, &[1])?;
        // The position of the first query among the keys.
        let offset = match (past_k, lengths) {
            (Some(past), _) => {
                let before = cx.b.type_of(past).shape[2].clone();
                Some(cx.b.sizes([before])?)
            }
            (None, Some(lengths)) => {
                let lengths = cx.b.cast(lengths, DType::I64)?;
                let n = cx.b.sizes([rows.clone()])?;
                let offset = cx.b.sub(lengths, n)?;
                Some(cx.b.unsqueeze(offset, &[1, 2, 3])?)
            }
            _ => None,
        };
        let position = match offset {
            Some(offset) => cx.b.add(row, offset)?,
            None => row,
        };
        let mut allowed: Option<ValueId> = None;
        let mut also = |cx: &mut Cx<'_>, condition: ValueId| -> Result<()> {
            allowed = Some(match allowed {
                Some(a) => cx.b.and(a, condition)?,
                None => condition,
            });
            Ok(())
        };
        if causal {
            let sees = cx.b.less_or_equal(column, position)?;
            also(cx, sees)?;
        }
        if left >= 0 {
            let first = cx.b.add_scalar(position, -(left as f64))?;
            let sees = cx.b.greater_or_equal(column, first)?;
            also(cx, sees)?;
        }
        if right >= 0 {
            let last = cx.b.add_scalar(position, right as f64)?;
            let sees = cx.b.less_or_equal(column, last)?;
            also(cx, sees)?;
        }
        if let Some(lengths) = lengths {
            let lengths = cx.b.cast(lengths, DType::I64)?;
            let lengths = cx.b.unsqueeze(lengths, &[1, 2, 3])?;
            let sees = cx.b.less(column, lengths)?;
            also(cx, sees)?;
        }
        let mut bias: Option<ValueId> = None;
        match mask {
            Some(m) if cx.b.type_of(m).dtype == DType::Bool => also(cx, m)?,
            Some(m) => bias = Some(m),
            None => {}
        }
        if let Some(allowed) = allowed {
            let zero = cx.b.scalar(dtype, 0.0)?;
            let never = cx.b.scalar(dtype, f64::NEG_INFINITY)?;
            let part = cx.b.select(allowed, zero, never)?;
            bias = Some(match bias {
                Some(b) => cx.b.add(b, part)?,
                None => part,
            });
        }
        let (root_q, root_k) = (
            cx.b.mul_scalar(q, scale.sqrt())?,
            cx.b.mul_scalar(k, scale.sqrt())?,
        );
        let op = MatMul {
            trans_a: false,
            trans_b: true,
        };
        let mut scores = cx.b.op(op, &[root_q, root_k])?;
        if softcap > 0.0 {
            let small = cx.b.mul_scalar(scores, 1.0 / softcap)?;
            let t = cx.b.tanh(small)?;
            scores = cx.b.mul_scalar(t, softcap)?;
        }
        let biased = match bias {
            Some(b) => cx.b.add(scores, b)?,
            None => scores,
        };
        let wide = cx.b.cast(biased, precision.unwrap_or(dtype))?;
        let axis = cx.b.type_of(wide).rank() - 1;
        let mut p = cx.b.softmax(wide, axis)?;
        if let Some(b) = bias {
            // A query that may see nothing attends to nothing.
            let axis = cx.b.type_of(b).rank() - 1;
            let best = cx.b.reduce(ReduceOp::Max, b, &[axis], true)?;
            let infinite = cx.b.unary(UnaryOp::IsInf, best)?;
            let zero = cx.like(best, 0.0)?;
            let negative = cx.b.less(best, zero)?;
            let nothing = cx.b.and(infinite, negative)?;
            let zero = cx.like(p, 0.0)?;
            p = cx.b.select(nothing, zero, p)?;
        }
        let chosen = match mode {
            0 | 1 => scores,
            2 => biased,
            3 => p,
            other => return Err(Error::invalid(format!("qk_matmul_output_mode {other}"))),
        };
        scores_out = Some(cx.b.cast(chosen, dtype)?);
        let p = cx.b.cast(p, dtype)?;
        cx.b.matmul(p, v)?
    };
    if flat {
        y = cx.b.transpose(y, &[0, 2, 1, 3])?;
        let dims = cx.b.type_of(y).shape.dims().to_vec();
        let width = dims[2].times(&dims[3])?;
        y =
            cx.b.reshape(y, vec![dims[0].clone(), dims[1].clone(), width])?;
    }
    let mut out = vec![cx.val(y), cx.val(present_k), cx.val(present_v)];
    if let Some(scores) = scores_out {
        out.push(cx.val(scores));
    }
    Ok(out)
}

fn rotary(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let (mut cos, mut sin) = (cx.x(node, 1)?, cx.x(node, 2)?);
    let interleaved = node.flag("interleaved", false)?;
    let heads = count(node.int_or("num_heads", 0)?, "`num_heads`")?;
    let partial = count(node.int_or("rotary_embedding_dim", 0)?, "the width")?;
    let ty = cx.b.type_of(x).clone();
    // [B, S, heads, width]
    let y = match ty.rank() {
        4 => cx.b.transpose(x, &[0, 2, 1, 3])?,
        3 => {
            let width = ty.shape[2].fixed()?;
            if heads == 0 || width % heads != 0 {
                return Err(Error::shape(format!("{width} channels for {heads} heads")));
            }
            cx.b.reshape(
                x,
                vec![
                    ty.shape[0].clone(),
                    ty.shape[1].clone(),
                    Dim::Fixed(heads),
                    Dim::Fixed(width / heads),
                ],
            )?
        }
        _ => return Err(Error::shape(format!("expected rank 3 or 4, found {ty}"))),
    };
    let width = cx.b.type_of(y).shape[3].fixed()?;
    let turned = if partial == 0 { width } else { partial };
    if turned > width || turned % 2 != 0 {
        return Err(Error::shape(format!(
            "a rotation of {turned} of {width} channels"
        )));
    }
    if let Some(positions) = cx.maybe_x(node, 3)? {
        cos = cx.b.gather(cos, positions, 0)?;
        sin = cx.b.gather(sin, positions, 0)?;
    }
    let (cos, sin) = (cx.b.unsqueeze(cos, &[2])?, cx.b.unsqueeze(sin, &[2])?);
    let rotated = cx.b.slice(y, 3, 0, turned)?;
    let half = turned / 2;
    let lead = cx.b.type_of(y).shape.dims()[..3].to_vec();
    let with = |tail: &[usize]| -> Vec<Dim> {
        lead.iter()
            .cloned()
            .chain(tail.iter().map(|&n| Dim::Fixed(n)))
            .collect()
    };
    let (a, b) = if interleaved {
        let pairs = cx.b.reshape(rotated, with(&[half, 2]))?;
        let (a, b) = (cx.b.slice(pairs, 4, 0, 1)?, cx.b.slice(pairs, 4, 1, 2)?);
        (cx.b.squeeze(a, &[4])?, cx.b.squeeze(b, &[4])?)
    } else {
        (
            cx.b.slice(rotated, 3, 0, half)?,
            cx.b.slice(rotated, 3, half, turned)?,
        )
    };
    let product = |cx: &mut Cx<'_>, u: ValueId, v: ValueId| cx.b.mul(u, v);
    let (ac, bs) = (product(cx, cos, a)?, product(cx, sin, b)?);
    let (bc, a_s) = (product(cx, cos, b)?, product(cx, sin, a)?);
    let (real, imaginary) = (cx.b.sub(ac, bs)?, cx.b.add(a_s, bc)?);
    let mut out = if interleaved {
        let (u, v) = (
            cx.b.unsqueeze(real, &[4])?,
            cx.b.unsqueeze(imaginary, &[4])?,
        );
        let pairs = cx.b.concat(&[u, v], 4)?;
        cx.b.reshape(pairs, with(&[turned]))?
    } else {
        cx.b.concat(&[real, imaginary], 3)?
    };
    if turned < width {
        let rest = cx.b.slice(y, 3, turned, width)?;
        out = cx.b.concat(&[out, rest], 3)?;
    }
    let out = if ty.rank() == 4 {
        cx.b.transpose(out, &[0, 2, 1, 3])?
    } else {
        cx.b.reshape(out, ty.shape)?
    };
    Ok(cx.one(out))
}

fn swiglu(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (a, b) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let alpha = node.float_or("alpha", 1.0)?;
    let inner = if alpha == 1.0 {
        a
    } else {
        cx.b.mul_scalar(a, alpha)?
    };
    let gate = cx.b.sigmoid(inner)?;
    let swish = cx.b.mul(a, gate)?;
    let y = cx.b.mul(swish, b)?;
    Ok(cx.one(y))
}
