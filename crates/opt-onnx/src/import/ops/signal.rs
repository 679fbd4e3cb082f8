//! Windows and Fourier transforms.

use std::f64::consts::PI;

use opt_core::{Dim, Error, Result, Tensor, ValueId};

use super::{Lower, axis, count};
use crate::import::Cx;
use crate::import::node::{Node, V};
use crate::tensor;

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "HannWindow" | "HammingWindow" | "BlackmanWindow" => window,
        "DFT" => dft,
        "STFT" => stft,
        _ => return None,
    })
}

fn window(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let size = node.input(0)?;
    let size = cx.integers(size, "the size")?;
    let &[size] = &size[..] else {
        return Err(Error::shape("the size must be one number"));
    };
    let size = count(size, "the size")?;
    if size > 1 << 24 {
        return Err(Error::unsupported(format!("a window of {size} entries")));
    }
    let dtype = tensor::dtype_of(node.int_or("output_datatype", 1)?)?;
    let period = if node.flag("periodic", true)? {
        size as f64
    } else {
        size as f64 - 1.0
    };
    let terms: [f64; 3] = match node.op() {
        "HannWindow" => [0.5, 0.5, 0.0],
        "HammingWindow" => [25.0 / 46.0, 21.0 / 46.0, 0.0],
        _ => [0.42, 0.5, 0.08],
    };
    let values: Vec<f64> = (0..size)
        .map(|i| {
            let x = 2.0 * PI * i as f64 / period;
            terms[0] - terms[1] * x.cos() + terms[2] * (2.0 * x).cos()
        })
        .collect();
    let y = cx.b.constant(Tensor::from_f64s(dtype, [size], &values)?);
    Ok(cx.one(y))
}

/// Transforms the last axis of a real and an imaginary part (or none): products with the
/// matrices of cosines and sines.
fn transform(
    cx: &mut Cx<'_>,
    re: ValueId,
    im: Option<ValueId>,
    bins: usize,
    inverse: bool,
) -> Result<[ValueId; 2]> {
    let ty = cx.b.type_of(re).clone();
    let n = ty.shape[ty.rank() - 1].fixed()?;
    if n == 0 || n.saturating_mul(bins) > 1 << 26 {
        return Err(Error::unsupported(format!("a transform of {n} entries")));
    }
    let sign = if inverse { 1.0 } else { -1.0 };
    let norm = if inverse { 1.0 / n as f64 } else { 1.0 };
    let matrix = |f: &dyn Fn(f64) -> f64| -> Result<Tensor> {
        // The angle is reduced before it is taken, which keeps it exact for long transforms.
        let values: Vec<f64> = (0..n * bins)
            .map(|i| {
                let turn = (i / bins * (i % bins)) % n;
                norm * f(sign * 2.0 * PI * turn as f64 / n as f64)
            })
            .collect();
        Tensor::from_f64s(ty.dtype, [n, bins], &values)
    };
    let cos = cx.b.constant(matrix(&f64::cos)?);
    let sin = cx.b.constant(matrix(&f64::sin)?);
    let (mut a, mut b) = (cx.b.matmul(re, cos)?, cx.b.matmul(re, sin)?);
    if let Some(im) = im {
        let (c, d) = (cx.b.matmul(im, sin)?, cx.b.matmul(im, cos)?);
        a = cx.b.sub(a, c)?;
        b = cx.b.add(b, d)?;
    }
    Ok([a, b])
}

fn joined(cx: &mut Cx<'_>, parts: [ValueId; 2]) -> Result<ValueId> {
    let rank = cx.b.type_of(parts[0]).rank();
    let (a, b) = (
        cx.b.unsqueeze(parts[0], &[rank])?,
        cx.b.unsqueeze(parts[1], &[rank])?,
    );
    cx.b.concat(&[a, b], rank)
}

/// Real and imaginary part of a value whose last axis has one or both.
fn parts(cx: &mut Cx<'_>, x: ValueId) -> Result<(ValueId, Option<ValueId>)> {
    let ty = cx.b.type_of(x).clone();
    let last = ty.rank().saturating_sub(1);
    match ty.shape.dims().last().and_then(Dim::as_fixed) {
        Some(1) => Ok((cx.b.squeeze(x, &[last])?, None)),
        Some(2) => {
            let (a, b) = (cx.b.slice(x, last, 0, 1)?, cx.b.slice(x, last, 1, 2)?);
            Ok((cx.b.squeeze(a, &[last])?, Some(cx.b.squeeze(b, &[last])?)))
        }
        _ => Err(Error::shape(format!(
            "the last axis must hold a real and perhaps an imaginary part, found {ty}"
        ))),
    }
}

fn dft(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let rank = cx.b.type_of(x).rank();
    let length = match node.maybe(1) {
        Some(v) => cx.integers(v, "the length")?.first().copied(),
        None => None,
    };
    let inverse = node.flag("inverse", false)?;
    let onesided = node.flag("onesided", false)?;
    if inverse && onesided {
        return Err(Error::unsupported("the inverse of a one-sided transform"));
    }
    let at = if node.version >= 20 {
        match node.maybe(2) {
            Some(v) => cx.integers(v, "the axis")?.first().copied().unwrap_or(-2),
            None => -2,
        }
    } else {
        node.int_or("axis", 1)?
    };
    let at = axis(at, rank)?;
    if at + 1 == rank {
        return Err(Error::invalid(
            "the last axis holds the parts of the numbers",
        ));
    }
    let (re, im) = parts(cx, x)?;
    // The axis to the end, and back.
    let inner = rank - 1;
    let mut perm: Vec<usize> = (0..inner).filter(|&a| a != at).collect();
    perm.push(at);
    let mut back = vec![0; inner];
    for (i, &p) in perm.iter().enumerate() {
        back[p] = i;
    }
    let arrange = |cx: &mut Cx<'_>, v: ValueId| -> Result<ValueId> {
        let mut v = cx.b.transpose(v, &perm)?;
        if let Some(length) = length {
            let length = count(length, "the length")?;
            let n = cx.b.type_of(v).shape[inner - 1].fixed()?;
            if length < n {
                v = cx.b.slice(v, inner - 1, 0, length)?;
            } else if length > n {
                let (zeros, mut end) = (vec![0; inner], vec![0; inner]);
                end[inner - 1] = length - n;
                v =
                    cx.b.pad(v, &zeros, &end, opt_core::ops::PadMode::Constant(0.0))?;
            }
        }
        Ok(v)
    };
    let re = arrange(cx, re)?;
    let im = match im {
        Some(im) => Some(arrange(cx, im)?),
        None => None,
    };
    let n = cx.b.type_of(re).shape[inner - 1].fixed()?;
    let bins = if onesided { n / 2 + 1 } else { n };
    let out = transform(cx, re, im, bins, inverse)?;
    let mut moved = [out[0]; 2];
    for (m, o) in moved.iter_mut().zip(out) {
        *m = cx.b.transpose(o, &back)?;
    }
    let y = joined(cx, moved)?;
    Ok(cx.one(y))
}

fn stft(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let one = |cx: &mut Cx<'_>, at: usize, what: &str| -> Result<Option<usize>> {
        match node.maybe(at) {
            Some(v) => match cx.integers(v, what)?.first() {
                Some(&n) => count(n, what).map(Some),
                None => Err(Error::shape(format!("{what} must be one number"))),
            },
            None => Ok(None),
        }
    };
    let step = one(cx, 1, "the step")?.ok_or_else(|| Error::invalid("there is no step"))?;
    let window = cx.maybe_x(node, 2)?;
    let length = match (one(cx, 3, "the frame length")?, window) {
        (Some(n), _) => n,
        (None, Some(w)) => cx.b.type_of(w).shape[0].fixed()?,
        _ => {
            return Err(Error::invalid(
                "there is neither a window nor a frame length",
            ));
        }
    };
    let onesided = node.flag("onesided", true)?;
    if cx.b.type_of(x).rank() != 3 {
        return Err(Error::shape("the signal must be [batch, length, parts]"));
    }
    let size = cx.b.type_of(x).shape[1].fixed()?;
    if step == 0 || length == 0 || length > size {
        return Err(Error::invalid(format!(
            "frames of {length} every {step} in a signal of {size}"
        )));
    }
    let frames = (size - length) / step + 1;
    let index: Vec<i64> = (0..frames * length)
        .map(|i| (i / length * step + i % length) as i64)
        .collect();
    let index = cx.b.constant(Tensor::new([frames, length], index)?);
    let (re, im) = parts(cx, x)?;
    let cut = |cx: &mut Cx<'_>, v: ValueId| -> Result<ValueId> {
        let framed = cx.b.gather(v, index, 1)?;
        match window {
            Some(w) => cx.b.mul(framed, w),
            None => Ok(framed),
        }
    };
    let re = cut(cx, re)?;
    let im = match im {
        Some(im) => Some(cut(cx, im)?),
        None => None,
    };
    let bins = if onesided { length / 2 + 1 } else { length };
    let out = transform(cx, re, im, bins, false)?;
    let y = joined(cx, out)?;
    Ok(cx.one(y))
}
