//! Weight-only quantization.

use std::collections::BTreeMap;

use opt_core::ops::{Dequantize, Op};
use opt_core::pass::Needs;
use opt_core::{
    Context, DType, Error, Graph, GraphPatch, Pass, Report, Result, ResultExt, Tensor, ValueId,
};

use crate::scheme::{Scheme, quantize_tensor};
use crate::stored::find;

/// Stores the weights of matrix products and convolutions as integers; they are dequantized where
/// they are read, and computing stays in float.
///
/// 8 bits have one scale for each output channel. 4 bits have one for each block of entries along
/// the reduced axis of a matrix product, and one for each output channel of a convolution.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass};
/// use opt_quant::QuantizeWeights;
///
/// let mut m = ModelBuilder::new("model", 0);
/// let x = m.batch("x", [64])?;
/// let y = m.layer("fc", Linear::new(3), x)?;
/// m.output("y", y)?;
/// let pass = QuantizeWeights::int4(32).asymmetric();
/// let (graph, _) = pass.apply(m.finish()?, &mut Context::new())?;
/// assert_eq!(graph.type_of(graph.find("fc.weight.q")?).to_string(), "u4[3,64]");
/// assert_eq!(graph.type_of(graph.find("fc.weight.s")?).to_string(), "f32[3,2]");
/// # Ok::<(), opt_quant::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeWeights {
    dtype: DType,
    block: Option<usize>,
    exclude: Vec<String>,
}

impl QuantizeWeights {
    /// 8 bits, symmetric, a scale for each output channel.
    pub fn int8() -> QuantizeWeights {
        QuantizeWeights {
            dtype: DType::I8,
            block: None,
            exclude: Vec::new(),
        }
    }

    /// 4 bits, symmetric, a scale for each `block` entries along the reduced axis (32 is usual).
    pub fn int4(block: usize) -> QuantizeWeights {
        QuantizeWeights {
            dtype: DType::I4,
            block: Some(block),
            exclude: Vec::new(),
        }
    }

    /// With a zero point for each scale, in unsigned integers.
    #[must_use]
    pub fn asymmetric(mut self) -> QuantizeWeights {
        self.dtype = if self.dtype == DType::I8 {
            DType::U8
        } else {
            DType::U4
        };
        self
    }

    /// Leaves out layers whose weights' names contain the pattern; one that matches nothing is an
    /// error.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> QuantizeWeights {
        self.exclude.push(pattern.into());
        self
    }

    fn scheme(&self) -> Scheme {
        let mut scheme = Scheme::weights();
        scheme.dtype = self.dtype;
        scheme.symmetric = matches!(self.dtype, DType::I8 | DType::I4);
        scheme
    }
}

/// A weight in blocks along an axis: integers, scales and zero points.
fn blocked(
    weight: &Tensor,
    axis: usize,
    block: usize,
    scheme: &Scheme,
) -> Result<(Tensor, Tensor, Tensor)> {
    let shape = weight.shape().to_vec();
    let inner: usize = shape[axis + 1..].iter().product();
    let size = shape[axis];
    let blocks = size.div_ceil(block);
    let values = weight.to_f64s();
    let place = |i: usize| {
        let (outer, along, rest) = (i / (inner * size), i / inner % size, i % inner);
        (outer * blocks + along / block) * inner + rest
    };
    let mut scale_shape = shape.clone();
    scale_shape[axis] = blocks;
    let count: usize = scale_shape.iter().product();
    let mut ranges = vec![(0f64, 0f64); count];
    for (i, &v) in values.iter().enumerate() {
        let range = &mut ranges[place(i)];
        // NaN has to reach the check of the range.
        *range = if v.is_nan() {
            (f64::NAN, f64::NAN)
        } else {
            (range.0.min(v), range.1.max(v))
        };
    }
    let (mut scales, mut zeros) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for (low, high) in ranges {
        let (scale, zero) = scheme.scale(low, high)?;
        scales.push(scale);
        zeros.push(f64::from(zero));
    }
    let (low, high) = scheme.grid()?;
    let levels: Vec<f64> = values
        .iter()
        .enumerate()
        .map(|(i, &v)| {
            let at = place(i);
            let level = (v / f64::from(scales[at])).round_ties_even() + zeros[at];
            level.clamp(f64::from(low), f64::from(high))
        })
        .collect();
    Ok((
        Tensor::from_f64s(scheme.dtype, &shape, &levels)?,
        Tensor::new(&scale_shape, scales)?,
        Tensor::from_f64s(scheme.dtype, &scale_shape, &zeros)?,
    ))
}

impl Pass for QuantizeWeights {
    fn name(&self) -> &str {
        "quantize_weights"
    }

    fn config(&self) -> String {
        format!(
            "dtype = \"{}\"\nblock = {:?}\nexclude = {:?}\n",
            self.dtype, self.block, self.exclude
        )
    }

    fn needs(&self) -> Needs {
        Needs::NOTHING
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        if self.block == Some(0) {
            return Err(Error::invalid("a block of no entries"));
        }
        let (layers, left) = find(&graph, &self.exclude, true)?;
        let scheme = self.scheme();
        let original = graph.clone();
        let mut patch = GraphPatch::new(graph);
        let mut done: BTreeMap<ValueId, usize> = BTreeMap::new();
        let mut report = Report::default();
        for layer in layers {
            let node = original.node(layer.node);
            // All readers of a weight read the same integers.
            if let Some(&axis) = done.get(&layer.weight) {
                if axis != layer.axis {
                    report = report.note(format!(
                        "{}: shares a weight that is scaled along its other axis",
                        node.name()
                    ));
                }
                continue;
            }
            done.insert(layer.weight, layer.axis);
            let value = original.value(layer.weight);
            let name = value.name().to_string();
            let content = value.tensor().expect("found as stored");
            let (q, scale, zero, op) = match (self.block, node.op()) {
                (Some(block), Op::MatMul(_)) => {
                    let axis = 1 - layer.axis;
                    let (q, scale, zero) =
                        blocked(content, axis, block, &scheme).at(|| name.clone())?;
                    let op = Dequantize {
                        axis: Some(axis),
                        block: Some(block),
                    };
                    (q, scale, zero, op)
                }
                _ => {
                    let params = scheme.of_tensor(content, layer.axis).at(|| name.clone())?;
                    let q = quantize_tensor(content, &params)?;
                    let op = Dequantize {
                        axis: params.axis,
                        block: None,
                    };
                    (q, params.scale, params.zero_point, op)
                }
            };
            report.changed += 1;
            let q = patch.named_constant(&format!("{name}.q"), q);
            let scale = patch.named_constant(&format!("{name}.s"), scale);
            let zero = patch.named_constant(&format!("{name}.z"), zero);
            let dq = patch.op(op, &[q, scale, zero])?;
            patch.replace(layer.weight, dq)?;
        }
        for note in left {
            report = report.note(note);
        }
        Ok((patch.finish()?, report))
    }
}
