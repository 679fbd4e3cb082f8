//! Quantized patterns to integer kernels.
//!
//! `Dequantize -> conv or matmul (weight and bias from Dequantize of constants) -> [Relu] ->
//! [Quantize]` becomes one integer layer; `Dequantize -> Quantize` on one grid, also through a
//! reshape, disappears; max pooling between them works on the integers.

use std::collections::HashMap;
use std::sync::Arc;

use opt_core::ops::{Binary, BinaryOp, Op, Unary, UnaryOp};
use opt_core::{DType, Result, Tensor, TensorType};

use super::plan::{Id, Ir, Kind, Lowered, Step};
use crate::kernels::conv::Geometry;
use crate::kernels::int8::{self, Finish, IntPath, Layer};
use crate::kernels::{CompileCx, Kernel};

#[derive(Debug)]
struct LoweredLayer {
    layer: Layer,
    rows: usize,
}

impl Lowered for LoweredLayer {
    fn compile(&self, _: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
        Ok(int8::compile(self.layer.clone(), self.rows))
    }

    fn bytes(&self) -> usize {
        let Layer {
            weight,
            bias,
            multiplier,
            ..
        } = &self.layer;
        size_of_val(&weight[..]) + size_of_val(&bias[..]) + size_of_val(&multiplier[..])
    }
}

/// A value on a grid: the integers, and the constants of the grid.
struct OnGrid {
    q: Id,
    scale: Tensor,
    zero: Tensor,
}

/// The graph's steps by what they define and read.
struct Index {
    producer: HashMap<Id, usize>,
    readers: HashMap<Id, Vec<usize>>,
    uses: Vec<usize>,
}

impl Index {
    fn new(ir: &Ir) -> Index {
        let (mut producer, mut readers) = (HashMap::new(), HashMap::<Id, Vec<usize>>::new());
        for (i, step) in ir.steps.iter().enumerate() {
            for &v in &step.outputs {
                producer.insert(v, i);
            }
            for &v in &step.inputs {
                readers.entry(ir.alias[v]).or_default().push(i);
            }
        }
        Index {
            producer,
            readers,
            uses: ir.uses(),
        }
    }

    /// The only step that reads a value, if nothing else does.
    fn only_reader(&self, ir: &Ir, v: Id) -> Option<usize> {
        let root = ir.alias[v];
        match self.readers.get(&root)?[..] {
            [one] if self.uses[root] == 1 => Some(one),
            _ => None,
        }
    }
}

fn op(ir: &Ir, step: usize) -> Option<&Op> {
    match &ir.steps[step].kind {
        Kind::Op(op) if ir.steps[step].epilogue.is_empty() => Some(op),
        _ => None,
    }
}

/// The integers behind a float value that a `Dequantize` makes, by reshaping at most.
fn on_grid(ir: &Ir, index: &Index, v: Id) -> Option<OnGrid> {
    let step = *index.producer.get(&ir.alias[v])?;
    let Some(Op::Dequantize(d)) = op(ir, step) else {
        return None;
    };
    let inputs = &ir.steps[step].inputs;
    if d.block.is_some() {
        return None;
    }
    let scale = ir.constant(inputs[1])?;
    Some(OnGrid {
        q: inputs[0],
        zero: zero_point(ir, inputs, ir.types[inputs[0]].dtype, &scale)?,
        scale,
    })
}

/// The constant zero points that go with constant scales: zeros if there is no third input.
fn zero_point(ir: &Ir, inputs: &[Id], dtype: DType, scale: &Tensor) -> Option<Tensor> {
    match inputs.get(2) {
        Some(&zero) => ir.constant(zero),
        None if dtype.is_int() => Tensor::zeros(dtype, scale.shape()).ok(),
        None => None,
    }
}

/// The scale and zero point of an activation: one for the whole tensor.
fn scalar_grid(grid: &OnGrid) -> Option<(f64, i32)> {
    let one = |t: &Tensor| {
        if t.len() == 1 {
            t.to_f64s().first().copied()
        } else {
            None
        }
    };
    Some((one(&grid.scale)?, one(&grid.zero)? as i32))
}

/// Replaces the patterns by integer kernels.
pub(crate) fn lower(ir: &mut Ir, path: IntPath) -> Result<()> {
    let has_any = |ir: &Ir| {
        ir.steps
            .iter()
            .any(|s| matches!(s.kind, Kind::Op(Op::Dequantize(_))))
    };
    if !has_any(ir) {
        return Ok(());
    }
    while let Some(step) = moved(ir) {
        ir.steps.remove(step);
    }
    let mut i = 0;
    while i < ir.steps.len() {
        if let Some((layer, covered)) = layer(ir, i, path)? {
            // In the place of the last step that it covers, where all its inputs are known.
            let last = *covered.last().expect("covers the product");
            ir.steps[last] = layer;
            for &gone in covered[..covered.len() - 1].iter().rev() {
                ir.steps.remove(gone);
            }
        } else {
            i += 1;
        }
    }
    ir.remove_dead();
    Ok(())
}

/// Rewrites one quantization that undoes a dequantization, directly or around a max pooling; the
/// step to remove.
fn moved(ir: &mut Ir) -> Option<usize> {
    let index = Index::new(ir);
    for i in 0..ir.steps.len() {
        let Some(Op::Quantize(q)) = op(ir, i) else {
            continue;
        };
        if q.axis.is_some() {
            continue;
        }
        let (dtype, inputs) = (q.dtype, ir.steps[i].inputs.clone());
        let out = ir.steps[i].outputs[0];
        let same = |grid: &OnGrid| {
            ir.types[grid.q].dtype == dtype
                && ir.constant(inputs[1]).as_ref() == Some(&grid.scale)
                && zero_point(ir, &inputs, dtype, &grid.scale).as_ref() == Some(&grid.zero)
        };
        if let Some(grid) = on_grid(ir, &index, inputs[0]).filter(&same) {
            let root = ir.alias[grid.q];
            for alias in &mut ir.alias {
                if *alias == out {
                    *alias = root;
                }
            }
            return Some(i);
        }
        let Some(&pool) = index.producer.get(&ir.alias[inputs[0]]) else {
            continue;
        };
        let direct = ir.types[inputs[0]] == ir.types[ir.alias[inputs[0]]];
        if let Some(Op::MaxPool(_)) = op(ir, pool)
            && direct
            && index.only_reader(ir, inputs[0]) == Some(i)
            && let Some(grid) = on_grid(ir, &index, ir.steps[pool].inputs[0]).filter(&same)
        {
            let source = ir.steps[pool].inputs[0];
            let shape = ir.types[source].shape.clone();
            let integers = view(ir, grid.q, shape.fixed().ok()?.to_vec());
            let mut step = ir.steps[pool].clone();
            step.inputs = vec![integers];
            step.outputs = vec![out];
            step.nodes.extend(ir.steps[i].nodes.clone());
            ir.steps[i] = step;
            return Some(pool);
        }
    }
    None
}

/// The same memory as `v` in another shape.
fn view(ir: &mut Ir, v: Id, shape: Vec<usize>) -> Id {
    let ty = TensorType::new(ir.types[v].dtype, shape.as_slice());
    if ir.types[v] == ty {
        return v;
    }
    let root = ir.alias[v];
    let id = ir.add_value(ty);
    ir.alias[id] = root;
    id
}

/// The integer layer that starts at a step, and the steps that it covers, ascending.
fn layer(ir: &mut Ir, at: usize, path: IntPath) -> Result<Option<(Step, Vec<usize>)>> {
    let index = Index::new(ir);
    let Some(product) = op(ir, at).cloned() else {
        return Ok(None);
    };
    let is_conv = match &product {
        Op::Conv(conv) => conv.window.rank() <= 2,
        Op::MatMul(m) if !m.trans_a => false,
        _ => return Ok(None),
    };
    if matches!(product, Op::Conv(_)) != is_conv {
        return Ok(None);
    }
    let step = ir.steps[at].clone();
    let (Some(x), Some(w)) = (
        on_grid(ir, &index, step.inputs[0]),
        on_grid(ir, &index, step.inputs[1]),
    ) else {
        return Ok(None);
    };
    let Some((scale, zero)) = scalar_grid(&x) else {
        return Ok(None);
    };
    let dtype = ir.types[x.q].dtype;
    let Some(weight) = ir.constant(w.q) else {
        return Ok(None);
    };
    let weight = match weight.dtype() {
        DType::I4 | DType::I2 => weight.unpack()?,
        _ => weight,
    };
    let symmetric = w.zero.to_f64s().iter().all(|&z| z == 0.0);
    if !matches!(dtype, DType::U8 | DType::I8) || weight.dtype() != DType::I8 || !symmetric {
        return Ok(None);
    }
    let mut covered = vec![at];
    let mut value = step.outputs[0];
    let mut nodes = step.nodes.clone();
    let mut bias_value = step.inputs.get(2).copied();
    let mut next = index.only_reader(ir, value);
    if let (Op::MatMul(_), Some(add)) = (&product, next)
        && op(ir, add) == Some(&Op::Binary(Binary { op: BinaryOp::Add }))
    {
        let other = ir.steps[add].inputs.iter().copied().find(|&v| v != value);
        let constant = other
            .filter(|&v| on_grid(ir, &index, v).is_some_and(|g| ir.types[g.q].dtype == DType::I32));
        if constant.is_some() {
            bias_value = constant;
            covered.push(add);
            nodes.extend(ir.steps[add].nodes.clone());
            value = ir.steps[add].outputs[0];
            next = index.only_reader(ir, value);
        }
    }
    let mut relu = false;
    if let Some(r) = next
        && op(ir, r) == Some(&Op::Unary(Unary { op: UnaryOp::Relu }))
    {
        relu = true;
        covered.push(r);
        nodes.extend(ir.steps[r].nodes.clone());
        value = ir.steps[r].outputs[0];
        next = index.only_reader(ir, value);
    }
    let wide = weight.shape().to_vec();
    let (groups, inputs, outputs, taps, transposed) = match &product {
        Op::Conv(c) => (
            c.groups,
            wide[1],
            wide[0] / c.groups,
            wide[2..].iter().product(),
            false,
        ),
        Op::MatMul(m) if wide.len() == 2 && m.trans_b => (1, wide[1], wide[0], 1usize, false),
        _ if wide.len() == 2 => (1, wide[0], wide[1], 1, true),
        _ => return Ok(None),
    };
    let channels = groups * outputs;
    let each = |t: &Tensor| -> Option<Vec<f64>> {
        let v = t.to_f64s();
        match v.len() {
            1 => Some(vec![v[0]; channels]),
            n if n == channels => Some(v),
            _ => None,
        }
    };
    let Some(weight_scales) = each(&w.scale) else {
        return Ok(None);
    };
    let scales: Vec<f64> = weight_scales.iter().map(|s| s * scale).collect();
    let mut bias = vec![0i32; channels];
    if let Some(v) = bias_value {
        let Some(grid) = on_grid(ir, &index, v) else {
            return Ok(None);
        };
        let (Some(content), Some(own)) = (ir.constant(grid.q), each(&grid.scale)) else {
            return Ok(None);
        };
        let fits = own
            .iter()
            .zip(&scales)
            .all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
        let plain = grid.zero.to_f64s().iter().all(|&z| z == 0.0);
        if content.dtype() != DType::I32 || content.len() != channels || !fits || !plain {
            return Ok(None);
        }
        bias = content.to_vec::<i32>()?;
    }
    // A quantization of the whole result on one grid ends the layer; else it ends in float.
    let quantize = next.filter(|&n| matches!(op(ir, n), Some(Op::Quantize(q)) if q.axis.is_none()));
    let mut finish = Finish::Dequantize { relu };
    let mut multiplier = scales.clone();
    let mut output = value;
    if let Some(n) = quantize {
        let inputs = &ir.steps[n].inputs;
        let out_type = match op(ir, n) {
            Some(Op::Quantize(q)) => q.dtype,
            _ => return Ok(None),
        };
        let scale = ir.constant(inputs[1]);
        let parameters = scale.and_then(|s| {
            let z = zero_point(ir, inputs, out_type, &s)?;
            Some((s, z))
        });
        let Some((s, z)) = parameters else {
            return Ok(None);
        };
        if inputs[0] == value && matches!(out_type, DType::U8 | DType::I8) {
            let (s, z) = (s.item()?, z.item()? as i32);
            let (low, high) = out_type.int_range()?;
            multiplier = scales.iter().map(|v| v / s).collect();
            finish = Finish::Requantize {
                zero: z,
                low: if relu { low.max(z) } else { low },
                high,
            };
            covered.push(n);
            nodes.extend(ir.steps[n].nodes.clone());
            output = ir.steps[n].outputs[0];
        }
    }
    let mut content = weight.to_vec::<i8>()?;
    if transposed {
        content = weight.transpose(&[1, 0])?.to_vec::<i8>()?;
    }
    let x_shape = ir.types[step.inputs[0]].shape.fixed()?;
    let geometry = match &product {
        Op::Conv(c) => {
            let y = ir.types[step.outputs[0]].shape.fixed()?;
            Some(Geometry::new(&x_shape[2..], &y[2..], &wide[2..], &c.window))
        }
        _ => None,
    };
    debug_assert_eq!(content.len(), channels * inputs * taps);
    let rows = x_shape[..x_shape.len() - 1].iter().product();
    let integers = view(ir, x.q, x_shape.to_vec());
    let layer = Layer {
        geometry,
        groups,
        inputs,
        outputs,
        weight: content,
        bias,
        zero,
        dtype,
        multiplier: multiplier.iter().map(|&m| m as f32).collect(),
        finish,
        path,
    };
    covered.sort_unstable();
    let step = Step {
        kind: Kind::Lowered(Arc::new(LoweredLayer { layer, rows })),
        inputs: vec![integers],
        outputs: vec![output],
        epilogue: Vec::new(),
        nodes,
    };
    Ok(Some((step, covered)))
}
