//! LSTM, GRU and RNN. What the op set's own ops cannot express (other activations, peepholes,
//! sequences of different lengths) is unrolled over a fixed number of steps.

use opt_core::ops::{Direction, Gru, Lstm, UnaryOp};
use opt_core::{DType, Dim, Error, Result, ValueId};

use super::{Lower, count};
use crate::import::Cx;
use crate::import::node::{Node, V};

/// Steps that are unrolled at most.
const MAX_STEPS: usize = 4096;

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "LSTM" | "GRU" | "RNN" => recurrent,
        _ => return None,
    })
}

/// What the three have in common.
struct Parts {
    /// `[T, N, I]`
    x: ValueId,
    weight: ValueId,
    recurrent: ValueId,
    bias: ValueId,
    lengths: Option<V>,
    h0: Option<ValueId>,
    c0: Option<ValueId>,
    peephole: Option<ValueId>,
    hidden: usize,
    direction: Direction,
    activations: Vec<(String, Option<f64>, Option<f64>)>,
    clip: Option<f64>,
    batch_first: bool,
}

fn zeros(cx: &mut Cx<'_>, dtype: DType, shape: Vec<Dim>) -> Result<ValueId> {
    let zero = cx.b.scalar(dtype, 0.0)?;
    cx.b.expand(zero, shape)
}

fn parts(cx: &mut Cx<'_>, node: &Node<'_>, gates: usize) -> Result<Parts> {
    let batch_first = node.flag("layout", false)?;
    let mut x = cx.x(node, 0)?;
    if cx.b.type_of(x).rank() != 3 {
        return Err(Error::shape(format!(
            "expected a sequence of rank 3, found {}",
            cx.b.type_of(x)
        )));
    }
    if batch_first {
        x = cx.b.transpose(x, &[1, 0, 2])?;
    }
    let (weight, recurrent) = (cx.x(node, 1)?, cx.x(node, 2)?);
    let direction = match node.text_or("direction", "forward")? {
        "forward" => Direction::Forward,
        "reverse" => Direction::Reverse,
        "bidirectional" => Direction::Bidirectional,
        other => return Err(Error::invalid(format!("the direction `{other}`"))),
    };
    let shape = cx.b.type_of(recurrent).shape.clone();
    let hidden = match shape.dims() {
        [_, _, h] => h.fixed()?,
        _ => return Err(Error::shape(format!("a recurrent weight of shape {shape}"))),
    };
    if let Some(given) = node.int("hidden_size")?
        && count(given, "`hidden_size`")? != hidden
    {
        return Err(Error::shape(format!(
            "`hidden_size` is {given}, the recurrent weight has {shape}"
        )));
    }
    let ways = direction.count();
    let dtype = cx.b.type_of(x).dtype;
    let bias = match cx.maybe_x(node, 3)? {
        Some(bias) => bias,
        None => {
            let zeros = opt_core::Tensor::zeros(dtype, [ways, 2 * gates * hidden])?;
            cx.b.constant(zeros)
        }
    };
    let state = |cx: &mut Cx<'_>, at: usize| -> Result<Option<ValueId>> {
        match cx.maybe_x(node, at)? {
            Some(s) if batch_first => cx.b.transpose(s, &[1, 0, 2]).map(Some),
            other => Ok(other),
        }
    };
    let h0 = state(cx, 5)?;
    let (c0, peephole) = if node.op() == "LSTM" {
        (state(cx, 6)?, cx.maybe_x(node, 7)?)
    } else {
        (None, None)
    };
    let default: &[&str] = match node.op() {
        "LSTM" => &["Sigmoid", "Tanh", "Tanh"],
        "GRU" => &["Sigmoid", "Tanh"],
        _ => &["Tanh"],
    };
    let names: Vec<String> = match node.texts("activations")? {
        Some(names) => names.into_iter().map(String::from).collect(),
        None => default.repeat(ways).into_iter().map(String::from).collect(),
    };
    if names.len() != default.len() * ways {
        return Err(Error::invalid(format!(
            "{} activations for {ways} directions",
            names.len()
        )));
    }
    // The lists are consumed in order by the activations that take a number.
    let mut alphas = node
        .floats("activation_alpha")?
        .unwrap_or_default()
        .into_iter();
    let mut betas = node
        .floats("activation_beta")?
        .unwrap_or_default()
        .into_iter();
    let activations = names
        .into_iter()
        .map(|name| {
            let lower = name.to_lowercase();
            let alpha = [
                "affine",
                "leakyrelu",
                "thresholdedrelu",
                "scaledtanh",
                "hardsigmoid",
                "elu",
            ]
            .contains(&lower.as_str())
            .then(|| alphas.next())
            .flatten();
            let beta = ["affine", "scaledtanh", "hardsigmoid"]
                .contains(&lower.as_str())
                .then(|| betas.next())
                .flatten();
            (lower, alpha, beta)
        })
        .collect();
    Ok(Parts {
        x,
        weight,
        recurrent,
        bias,
        lengths: node.maybe(4),
        h0,
        c0,
        peephole,
        hidden,
        direction,
        activations,
        clip: node.float("clip")?,
        batch_first,
    })
}

impl Parts {
    /// Whether every sequence is known to have all steps.
    fn full_length(&self, cx: &Cx<'_>) -> bool {
        let Some(v) = self.lengths else { return true };
        let steps = cx.b.type_of(self.x).shape[0].expr();
        let items = cx.known(v).and_then(super::super::known::Known::items);
        !cx.vals[v].offered
            && items.is_some_and(|i| {
                i.items
                    .iter()
                    .all(|item| *item == super::super::known::Item::Int(steps.clone()))
            })
    }

    fn plain(&self, cx: &Cx<'_>, activations: &[&str]) -> bool {
        self.full_length(cx)
            && self.peephole.is_none()
            && self.clip.is_none()
            && self
                .activations
                .iter()
                .zip(activations.iter().cycle())
                .all(|(a, b)| a.0 == *b)
    }

    fn state(&self, cx: &mut Cx<'_>, given: Option<ValueId>) -> Result<ValueId> {
        if let Some(state) = given {
            return Ok(state);
        }
        let ty = cx.b.type_of(self.x).clone();
        let shape = vec![
            Dim::Fixed(self.direction.count()),
            ty.shape[1].clone(),
            Dim::Fixed(self.hidden),
        ];
        zeros(cx, ty.dtype, shape)
    }

    /// The outputs in the layout that was asked for.
    fn finish(&self, cx: &mut Cx<'_>, outputs: Vec<ValueId>) -> Result<Vec<V>> {
        let mut out = Vec::new();
        for (i, id) in outputs.into_iter().enumerate() {
            let id = match (self.batch_first, i) {
                (false, _) => id,
                (true, 0) => cx.b.transpose(id, &[2, 0, 1, 3])?,
                (true, _) => cx.b.transpose(id, &[1, 0, 2])?,
            };
            out.push(cx.val(id));
        }
        Ok(out)
    }
}

fn recurrent(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    match node.op() {
        "LSTM" => {
            let p = parts(cx, node, 4)?;
            let coupled = node.flag("input_forget", false)?;
            if coupled || !p.plain(cx, &["sigmoid", "tanh", "tanh"]) {
                return unroll(cx, &p, Cell::Lstm { coupled });
            }
            let initial = p.h0.is_some() || p.c0.is_some();
            let op = Lstm {
                hidden: p.hidden,
                direction: p.direction,
                initial,
            };
            let mut inputs = vec![p.x, p.weight, p.recurrent, p.bias];
            if initial {
                inputs.push(p.state(cx, p.h0)?);
                inputs.push(p.state(cx, p.c0)?);
            }
            let out = cx.b.node(op, &inputs)?;
            p.finish(cx, out)
        }
        "GRU" => {
            let p = parts(cx, node, 3)?;
            let linear_before_reset = node.flag("linear_before_reset", false)?;
            // The op has a kernel for the reset gate after the product.
            if !linear_before_reset || !p.plain(cx, &["sigmoid", "tanh"]) {
                return unroll(
                    cx,
                    &p,
                    Cell::Gru {
                        linear_before_reset,
                    },
                );
            }
            let op = Gru {
                hidden: p.hidden,
                direction: p.direction,
                initial: p.h0.is_some(),
                linear_before_reset,
            };
            let mut inputs = vec![p.x, p.weight, p.recurrent, p.bias];
            inputs.extend(p.h0);
            let out = cx.b.node(op, &inputs)?;
            p.finish(cx, out)
        }
        _ => {
            let p = parts(cx, node, 1)?;
            unroll(cx, &p, Cell::Rnn)
        }
    }
}

#[derive(Clone, Copy)]
enum Cell {
    Rnn,
    Gru { linear_before_reset: bool },
    Lstm { coupled: bool },
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru { .. } => 3,
            Cell::Lstm { .. } => 4,
        }
    }

    fn functions(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru { .. } => 2,
            Cell::Lstm { .. } => 3,
        }
    }
}

/// One entry of the first axis.
fn row(cx: &mut Cx<'_>, x: ValueId, index: usize) -> Result<ValueId> {
    let part = cx.b.slice(x, 0, index, index + 1)?;
    cx.b.squeeze(part, &[0])
}

fn activate(
    cx: &mut Cx<'_>,
    (name, alpha, beta): &(String, Option<f64>, Option<f64>),
    clip: Option<f64>,
    x: ValueId,
) -> Result<ValueId> {
    let x = match clip {
        Some(limit) => cx.b.clip(x, -limit, limit)?,
        None => x,
    };
    let number = |v: &Option<f64>, default: f64| v.unwrap_or(default);
    let op = match name.as_str() {
        "sigmoid" => UnaryOp::Sigmoid,
        "tanh" => UnaryOp::Tanh,
        "relu" => UnaryOp::Relu,
        "softsign" => UnaryOp::Softsign,
        "softplus" => UnaryOp::Softplus,
        "leakyrelu" => UnaryOp::LeakyRelu {
            alpha: number(alpha, 0.01),
        },
        "elu" => UnaryOp::Elu {
            alpha: number(alpha, 1.0),
        },
        "hardsigmoid" => UnaryOp::HardSigmoid {
            alpha: number(alpha, 0.2),
            beta: number(beta, 0.5),
        },
        "affine" => {
            let scaled = cx.b.mul_scalar(x, number(alpha, 1.0))?;
            return cx.b.add_scalar(scaled, number(beta, 0.0));
        }
        "scaledtanh" => {
            let inner = cx.b.mul_scalar(x, number(beta, 1.0))?;
            let t = cx.b.tanh(inner)?;
            return cx.b.mul_scalar(t, number(alpha, 1.0));
        }
        other => return Err(Error::unsupported(format!("the activation `{other}`"))),
    };
    cx.b.unary(op, x)
}

fn unroll(cx: &mut Cx<'_>, p: &Parts, cell: Cell) -> Result<Vec<V>> {
    let ty = cx.b.type_of(p.x).clone();
    let steps = ty.shape[0].fixed().map_err(|_| {
        Error::unsupported(format!(
            "this recurrent cell is unrolled, which needs a fixed number of steps; bind {} with \
             `Importer::dim`",
            ty.shape[0]
        ))
    })?;
    if steps > MAX_STEPS {
        return Err(Error::unsupported(format!(
            "this recurrent cell is unrolled, which is done up to {MAX_STEPS} steps, not {steps}"
        )));
    }
    let lengths = match p.lengths {
        Some(v) if !p.full_length(cx) => {
            let lengths = cx.id(v)?;
            Some(cx.b.cast(lengths, DType::I64)?)
        }
        _ => None,
    };
    let (h0, c0) = (p.state(cx, p.h0)?, p.state(cx, p.c0)?);
    let is_lstm = matches!(cell, Cell::Lstm { .. });
    let (mut ys, mut last_h, mut last_c) = (Vec::new(), Vec::new(), Vec::new());
    for way in 0..p.direction.count() {
        let functions = &p.activations[way * cell.functions()..][..cell.functions()];
        let (w, r, b) = (
            row(cx, p.weight, way)?,
            row(cx, p.recurrent, way)?,
            row(cx, p.bias, way)?,
        );
        let width = cell.gates() * p.hidden;
        let (wb, rb) = (
            cx.b.slice(b, 0, 0, width)?,
            cx.b.slice(b, 0, width, 2 * width)?,
        );
        let peephole = match p.peephole {
            Some(v) => Some(row(cx, v, way)?),
            None => None,
        };
        let (mut h, mut c) = (row(cx, h0, way)?, row(cx, c0, way)?);
        let reverse = way == 1 || p.direction == Direction::Reverse;
        let mut outputs = vec![None; steps];
        for k in 0..steps {
            let t = if reverse { steps - 1 - k } else { k };
            let x = row(cx, p.x, t)?;
            let xw = super::matmul::product(cx, x, w, false, true)?;
            let xw = cx.b.add(xw, wb)?;
            let (new_h, new_c) = step(cx, p, cell, functions, xw, h, c, r, rb, peephole)?;
            let mut y = new_h;
            (h, c) = match lengths {
                None => (new_h, new_c),
                Some(lengths) => {
                    // Beyond its length a sequence keeps its state and gives zeros.
                    let t = cx.like(lengths, t as f64)?;
                    let inside = cx.b.less(t, lengths)?;
                    let inside = cx.b.unsqueeze(inside, &[1])?;
                    let zero = cx.like(new_h, 0.0)?;
                    y = cx.b.select(inside, new_h, zero)?;
                    (
                        cx.b.select(inside, new_h, h)?,
                        if is_lstm {
                            cx.b.select(inside, new_c, c)?
                        } else {
                            c
                        },
                    )
                }
            };
            outputs[t] = Some(cx.b.unsqueeze(y, &[0])?);
        }
        let outputs: Vec<ValueId> = outputs.into_iter().flatten().collect();
        let y = if outputs.is_empty() {
            let dims = [
                ty.shape[0].clone(),
                ty.shape[1].clone(),
                Dim::Fixed(p.hidden),
            ];
            zeros(cx, ty.dtype, dims.to_vec())?
        } else {
            cx.b.concat(&outputs, 0)?
        };
        ys.push(cx.b.unsqueeze(y, &[1])?);
        last_h.push(cx.b.unsqueeze(h, &[0])?);
        last_c.push(cx.b.unsqueeze(c, &[0])?);
    }
    let join = |cx: &mut Cx<'_>, parts: &[ValueId], axis: usize| match parts {
        [one] => Ok(*one),
        _ => cx.b.concat(parts, axis),
    };
    let mut out = vec![join(cx, &ys, 1)?, join(cx, &last_h, 0)?];
    if is_lstm {
        out.push(join(cx, &last_c, 0)?);
    }
    p.finish(cx, out)
}

/// One step of a cell: the new state from the input's part of the gates.
fn step(
    cx: &mut Cx<'_>,
    p: &Parts,
    cell: Cell,
    functions: &[(String, Option<f64>, Option<f64>)],
    xw: ValueId,
    h: ValueId,
    c: ValueId,
    r: ValueId,
    rb: ValueId,
    peephole: Option<ValueId>,
) -> Result<(ValueId, ValueId)> {
    let n = p.hidden;
    let part = |cx: &mut Cx<'_>, x: ValueId, gate: usize| {
        let axis = cx.b.type_of(x).rank() - 1;
        cx.b.slice(x, axis, gate * n, (gate + 1) * n)
    };
    match cell {
        Cell::Rnn => {
            let hr = super::matmul::product(cx, h, r, false, true)?;
            let hr = cx.b.add(hr, rb)?;
            let sum = cx.b.add(xw, hr)?;
            let h = activate(cx, &functions[0], p.clip, sum)?;
            Ok((h, c))
        }
        Cell::Gru {
            linear_before_reset,
        } => {
            let rows = cx.b.slice(r, 0, 0, 2 * n)?;
            let bias = cx.b.slice(rb, 0, 0, 2 * n)?;
            let hr = super::matmul::product(cx, h, rows, false, true)?;
            let hr = cx.b.add(hr, bias)?;
            let gate = |cx: &mut Cx<'_>, k: usize| -> Result<ValueId> {
                let (a, b) = (part(cx, xw, k)?, part(cx, hr, k)?);
                let sum = cx.b.add(a, b)?;
                activate(cx, &functions[0], p.clip, sum)
            };
            let (z, reset) = (gate(cx, 0)?, gate(cx, 1)?);
            let (rows, bias) = (
                cx.b.slice(r, 0, 2 * n, 3 * n)?,
                cx.b.slice(rb, 0, 2 * n, 3 * n)?,
            );
            let recurrent = if linear_before_reset {
                let hr = super::matmul::product(cx, h, rows, false, true)?;
                let hr = cx.b.add(hr, bias)?;
                cx.b.mul(reset, hr)?
            } else {
                let rh = cx.b.mul(reset, h)?;
                let hr = super::matmul::product(cx, rh, rows, false, true)?;
                cx.b.add(hr, bias)?
            };
            let x = part(cx, xw, 2)?;
            let sum = cx.b.add(x, recurrent)?;
            let new = activate(cx, &functions[1], p.clip, sum)?;
            // (1 - z) * new + z * h
            let gap = cx.b.sub(h, new)?;
            let gap = cx.b.mul(z, gap)?;
            let h = cx.b.add(new, gap)?;
            Ok((h, c))
        }
        Cell::Lstm { coupled } => {
            let hr = super::matmul::product(cx, h, r, false, true)?;
            let hr = cx.b.add(hr, rb)?;
            let all = cx.b.add(xw, hr)?;
            let peek =
                |cx: &mut Cx<'_>, sum: ValueId, k: usize, state: ValueId| -> Result<ValueId> {
                    match peephole {
                        None => Ok(sum),
                        Some(weights) => {
                            let w = part(cx, weights, k)?;
                            let seen = cx.b.mul(w, state)?;
                            cx.b.add(sum, seen)
                        }
                    }
                };
            let (i, o, f, g) = (
                part(cx, all, 0)?,
                part(cx, all, 1)?,
                part(cx, all, 2)?,
                part(cx, all, 3)?,
            );
            let i = peek(cx, i, 0, c)?;
            let i = activate(cx, &functions[0], p.clip, i)?;
            let f = if coupled {
                let minus = cx.b.neg(i)?;
                cx.b.add_scalar(minus, 1.0)?
            } else {
                let f = peek(cx, f, 2, c)?;
                activate(cx, &functions[0], p.clip, f)?
            };
            let g = activate(cx, &functions[1], p.clip, g)?;
            let (kept, new) = (cx.b.mul(f, c)?, cx.b.mul(i, g)?);
            let c = cx.b.add(kept, new)?;
            let o = peek(cx, o, 1, c)?;
            let o = activate(cx, &functions[0], p.clip, o)?;
            // The clip is for the gates; the cell goes through as it is.
            let squashed = activate(cx, &functions[2], None, c)?;
            let h = cx.b.mul(o, squashed)?;
            Ok((h, c))
        }
    }
}
