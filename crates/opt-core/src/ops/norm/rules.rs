//! The rules of the normalizations.

use super::{BatchNorm, BatchNormGrad, GroupNorm, InstanceNorm, LayerNorm, RmsNorm};
use crate::ops::rules::{arity, axis_in, float, no_gradient, same_dtype};
use crate::ops::{AxisRules, Cost, InputGrads, OpRules, Port, Vjp};
use crate::{DType, Dim, Error, GraphBuilder, Result, TensorType, ValueId};

const X: Port = Port::Input(0);
const OUT: Port = Port::Output(0);

fn epsilon_in_range(epsilon: f64) -> Result<()> {
    if epsilon.is_finite() && epsilon >= 0.0 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "epsilon is {epsilon}, not a positive number"
    )))
}

/// Fails unless x is floating-point of rank 2 at least and the parameters are `[C]`, of x's dtype.
fn per_channel(inputs: &[TensorType]) -> Result<()> {
    for ty in &inputs[1..] {
        same_dtype(&inputs[0], ty)?;
    }
    channels(inputs)
}

/// As [`per_channel`], but `f32` parameters go with a 16-bit x.
fn per_channel_mixed(inputs: &[TensorType]) -> Result<()> {
    let x = &inputs[0];
    for ty in &inputs[1..] {
        same_dtype(&inputs[1], ty)?;
    }
    let dtype = inputs[1].dtype;
    let half = matches!(x.dtype, DType::F16 | DType::BF16);
    if dtype != x.dtype && !(half && dtype == DType::F32) {
        return Err(Error::dtype(format!(
            "parameters of {dtype} for an input {x}; they must have its dtype, or f32 beside f16 \
             and bf16; insert a cast"
        )));
    }
    channels(inputs)
}

fn channels(inputs: &[TensorType]) -> Result<()> {
    let x = &inputs[0];
    float(x, "the input")?;
    if x.rank() < 2 {
        return Err(Error::shape(format!(
            "the input must be [N, C, ..], found {x}"
        )));
    }
    for ty in &inputs[1..] {
        if ty.shape.dims() != [x.shape[1].clone()] {
            return Err(Error::shape(format!(
                "a parameter must be [{}], found {ty}",
                x.shape[1]
            )));
        }
    }
    Ok(())
}

/// All axes but 1 in a tensor of a rank.
fn all_but_channels(rank: usize) -> Vec<usize> {
    (0..rank).filter(|&a| a != 1).collect()
}

/// A per-channel parameter `[C]` in the shape that broadcasts against `[N, C, ..]`.
fn along_channels(b: &mut GraphBuilder, parameter: ValueId, rank: usize) -> Result<ValueId> {
    let mut shape = vec![Dim::from(1); rank - 1];
    shape[0] = b.type_of(parameter).shape[0].clone();
    b.reshape(parameter, shape)
}

/// `1 / sqrt(x + epsilon)`
fn inverse_root(b: &mut GraphBuilder, x: ValueId, epsilon: f64) -> Result<ValueId> {
    let x = b.add_scalar(x, epsilon)?;
    let x = b.sqrt(x)?;
    b.reciprocal(x)
}

impl OpRules for BatchNorm {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 5..=5)?;
        per_channel_mixed(inputs)?;
        epsilon_in_range(self.epsilon)?;
        if !(0.0..=1.0).contains(&self.momentum) {
            return Err(Error::invalid(format!(
                "momentum is {}, not in [0, 1]",
                self.momentum
            )));
        }
        let mut outputs = vec![inputs[0].clone()];
        if self.training {
            outputs.extend(vec![inputs[1].clone(); 4]);
        }
        Ok(outputs)
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let (x, scale) = (cx.inputs[0], cx.inputs[1]);
        if self.training {
            if cx.grads[1..].iter().any(Option::is_some) {
                return Err(no_gradient(
                    "BatchNorm",
                    "the loss depends on the statistics of a batch directly",
                ));
            }
            let (mean, inv) = (cx.outputs[3], cx.outputs[4]);
            let grads = cx.b.node(BatchNormGrad, &[x, scale, mean, inv, g])?;
            return Ok(vec![
                Some(grads[0]),
                Some(grads[1]),
                Some(grads[2]),
                None,
                None,
            ]);
        }
        // Sums of 16-bit floats lose what they add.
        let own: Vec<DType> = (0..5).map(|i| cx.input_type(i).dtype).collect();
        let wide = match own[1] {
            DType::F16 | DType::BF16 => DType::F32,
            dtype => dtype,
        };
        let rank = cx.input_type(0).rank();
        let axes = all_but_channels(rank);
        let b = &mut *cx.b;
        let g = b.cast(g, wide)?;
        let [scale, mean, var] = [1, 3, 4].map(|i| b.cast(cx.inputs[i], wide));
        let (scale, mean) = (scale?, mean?);
        let inv = inverse_root(b, var?, self.epsilon)?;
        let mut grads = vec![None; 5];
        let factor = b.mul(scale, inv)?;
        let sum = b.sum(g, &axes, false)?;
        if cx.wanted[0] {
            let factor = along_channels(b, factor, rank)?;
            grads[0] = Some(b.mul(g, factor)?);
        }
        if cx.wanted[1] || cx.wanted[4] {
            let mean = along_channels(b, mean, rank)?;
            let x = b.cast(x, wide)?;
            let centred = b.sub(x, mean)?;
            let product = b.mul(g, centred)?;
            let product = b.sum(product, &axes, false)?;
            let by_scale = b.mul(product, inv)?;
            if cx.wanted[4] {
                let inv2 = b.mul(inv, inv)?;
                let v = b.mul(by_scale, scale)?;
                let v = b.mul(v, inv2)?;
                grads[4] = Some(b.mul_scalar(v, -0.5)?);
            }
            grads[1] = Some(by_scale);
        }
        grads[2] = Some(sum);
        if cx.wanted[3] {
            let by_mean = b.mul(sum, factor)?;
            grads[3] = Some(b.neg(by_mean)?);
        }
        for (gradient, dtype) in grads.iter_mut().zip(own) {
            if let Some(g) = gradient {
                *g = b.cast(*g, dtype)?;
            }
        }
        Ok(grads)
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for axis in 0..inputs[0].rank() {
            rules.same((X, axis), (OUT, axis));
        }
        for i in 1..inputs.len() {
            rules.same((X, 1), (Port::Input(i), 0));
        }
        for o in 1..outputs.len() {
            rules.same((X, 1), (Port::Output(o), 0));
        }
        if self.training {
            for axis in all_but_channels(inputs[0].rank()) {
                rules.block((X, axis));
            }
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(&outputs[..1])
    }
}

impl OpRules for BatchNormGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 5..=5)?;
        per_channel_mixed(&inputs[..4])?;
        if inputs[0] != inputs[4] {
            return Err(Error::shape(format!(
                "input {} and gradient {} differ",
                inputs[0], inputs[4]
            )));
        }
        Ok(vec![
            inputs[0].clone(),
            inputs[1].clone(),
            inputs[1].clone(),
        ])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Err(no_gradient(
            "BatchNormGrad",
            "second derivatives of batch normalization are not supported",
        ))
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for axis in 0..inputs[0].rank() {
            rules.same((X, axis), (OUT, axis));
            rules.same((X, axis), (Port::Input(4), axis));
            if axis != 1 {
                rules.block((X, axis));
            }
        }
        for port in [
            Port::Input(1),
            Port::Input(2),
            Port::Input(3),
            Port::Output(1),
            Port::Output(2),
        ] {
            rules.same((X, 1), (port, 0));
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(&outputs[..1])
    }
}

/// What the normalizations without running statistics have in common once x is brought to the
/// shape in which it is normalized over `axes`: `y = (x - mean) * inv * scale + bias`.
struct Normalized {
    /// `(x - mean) * inv`, or `x * inv` where nothing is subtracted.
    hat: ValueId,
    inv: ValueId,
}

impl Normalized {
    fn of(
        b: &mut GraphBuilder,
        x: ValueId,
        axes: &[usize],
        epsilon: f64,
        centre: bool,
    ) -> Result<Normalized> {
        let centred = if centre {
            let mean = b.mean(x, axes, true)?;
            b.sub(x, mean)?
        } else {
            x
        };
        let square = b.mul(centred, centred)?;
        let var = b.mean(square, axes, true)?;
        let inv = inverse_root(b, var, epsilon)?;
        Ok(Normalized {
            hat: b.mul(centred, inv)?,
            inv,
        })
    }

    /// The gradient by x from that by `hat`: `inv * (g - mean(g) - hat * mean(g * hat))`.
    fn grad(
        &self,
        b: &mut GraphBuilder,
        g: ValueId,
        axes: &[usize],
        centre: bool,
    ) -> Result<ValueId> {
        let product = b.mul(g, self.hat)?;
        let along = b.mean(product, axes, true)?;
        let along = b.mul(self.hat, along)?;
        let mut inner = b.sub(g, along)?;
        if centre {
            let mean = b.mean(g, axes, true)?;
            inner = b.sub(inner, mean)?;
        }
        b.mul(inner, self.inv)
    }
}

/// Fails unless the parameters have the shape of the axes from `axis` on.
fn per_element(inputs: &[TensorType], axis: usize) -> Result<()> {
    let x = &inputs[0];
    float(x, "the input")?;
    axis_in(axis, x.rank())?;
    for ty in &inputs[1..] {
        same_dtype(x, ty)?;
        if ty.shape.dims() != &x.shape.dims()[axis..] {
            return Err(Error::shape(format!(
                "a parameter must have the shape of the axes from {axis} on of {x}, found {ty}"
            )));
        }
    }
    Ok(())
}

/// The gradients of layer and root-mean-square normalization.
fn tail_vjp(cx: &mut Vjp<'_>, axis: usize, epsilon: f64, centre: bool) -> Result<InputGrads> {
    let g = cx.grad()?;
    let rank = cx.input_type(0).rank();
    let axes: Vec<usize> = (axis..rank).collect();
    let b = &mut *cx.b;
    let norm = Normalized::of(b, cx.inputs[0], &axes, epsilon, centre)?;
    let mut grads = vec![None; cx.inputs.len()];
    if cx.wanted[0] {
        let scaled = b.mul(g, cx.inputs[1])?;
        grads[0] = Some(norm.grad(b, scaled, &axes, centre)?);
    }
    if cx.wanted[1] {
        grads[1] = Some(b.mul(g, norm.hat)?);
    }
    if cx.inputs.len() > 2 {
        grads[2] = Some(g);
    }
    Ok(grads)
}

/// The axes before `axis` link; the normalized ones are blocked.
fn tail_axes(inputs: &[TensorType], axis: usize) -> AxisRules {
    let mut rules = AxisRules::new();
    for a in 0..inputs[0].rank() {
        if a < axis {
            rules.same((X, a), (OUT, a));
        } else {
            rules.block((X, a));
            rules.block((OUT, a));
        }
    }
    for (i, ty) in inputs.iter().enumerate().skip(1) {
        rules.block_all(Port::Input(i), ty.rank());
    }
    rules
}

impl OpRules for LayerNorm {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=3)?;
        per_element(inputs, self.axis)?;
        epsilon_in_range(self.epsilon)?;
        Ok(vec![inputs[0].clone()])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        tail_vjp(cx, self.axis, self.epsilon, true)
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        tail_axes(inputs, self.axis)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for RmsNorm {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=2)?;
        per_element(inputs, self.axis)?;
        epsilon_in_range(self.epsilon)?;
        Ok(vec![inputs[0].clone()])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        tail_vjp(cx, self.axis, self.epsilon, false)
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        tail_axes(inputs, self.axis)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

/// The gradients of group and instance normalization: x as `[N, groups, C / groups, ..]`.
fn grouped_vjp(cx: &mut Vjp<'_>, groups: Dim, per: Dim, epsilon: f64) -> Result<InputGrads> {
    let g = cx.grad()?;
    let shape = cx.input_type(0).shape;
    let rank = shape.rank();
    let mut split = vec![shape[0].clone(), groups, per];
    split.extend(shape.dims()[2..].iter().cloned());
    let axes: Vec<usize> = (2..split.len()).collect();
    let others = all_but_channels(rank);
    let b = &mut *cx.b;
    let x = b.reshape(cx.inputs[0], split.clone())?;
    let norm = Normalized::of(b, x, &axes, epsilon, true)?;
    let mut grads = vec![None; 3];
    if cx.wanted[0] {
        let scale = along_channels(b, cx.inputs[1], rank)?;
        let scaled = b.mul(g, scale)?;
        let scaled = b.reshape(scaled, split)?;
        let by_x = norm.grad(b, scaled, &axes, true)?;
        grads[0] = Some(b.reshape(by_x, shape.clone())?);
    }
    if cx.wanted[1] {
        let hat = b.reshape(norm.hat, shape)?;
        let product = b.mul(g, hat)?;
        grads[1] = Some(b.sum(product, &others, false)?);
    }
    grads[2] = Some(b.sum(g, &others, false)?);
    Ok(grads)
}

fn spatial(inputs: &[TensorType]) -> Result<()> {
    arity(inputs, 3..=3)?;
    per_channel(inputs)?;
    if inputs[0].rank() < 3 {
        return Err(Error::shape(format!(
            "the input must be [N, C, spatial..], found {}",
            inputs[0]
        )));
    }
    Ok(())
}

impl OpRules for GroupNorm {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        spatial(inputs)?;
        epsilon_in_range(self.epsilon)?;
        let channels = inputs[0].shape[1].fixed()?;
        if self.groups == 0 || channels % self.groups != 0 {
            return Err(Error::invalid(format!(
                "{channels} channels in {} groups",
                self.groups
            )));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let channels = cx.input_type(0).shape[1].fixed()?;
        let per = channels / self.groups;
        grouped_vjp(cx, self.groups.into(), per.into(), self.epsilon)
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::blocked(inputs, outputs);
        rules
            .blocked
            .retain(|&(port, axis)| axis != 0 || !matches!(port, X | OUT));
        rules.same((X, 0), (OUT, 0));
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for InstanceNorm {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        spatial(inputs)?;
        epsilon_in_range(self.epsilon)?;
        Ok(vec![inputs[0].clone()])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let channels = cx.input_type(0).shape[1].clone();
        grouped_vjp(cx, channels, 1.into(), self.epsilon)
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for axis in 0..2 {
            rules.same((X, axis), (OUT, axis));
        }
        for axis in 2..inputs[0].rank() {
            rules.block((X, axis));
            rules.block((OUT, axis));
        }
        rules.same((X, 1), (Port::Input(1), 0));
        rules.same((X, 1), (Port::Input(2), 0));
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use crate::ops::Op;
    use crate::ops::testing::infer;

    #[test]
    fn training_mode_has_five_outputs() {
        let mut types = vec![TensorType::new(DType::F32, [4, 3, 2, 2])];
        types.extend(vec![TensorType::new(DType::F32, [3]); 4]);
        for (training, count) in [(false, 1), (true, 5)] {
            let op = BatchNorm {
                epsilon: 1e-5,
                momentum: 0.1,
                training,
            };
            let out = op.infer(&types).unwrap();
            assert_eq!(out.len(), count);
            op.axes(&types, &out).check(&types, &out).unwrap();
        }
        types[2] = TensorType::new(DType::F32, [2]);
        let op = BatchNorm {
            epsilon: 1e-5,
            momentum: 0.1,
            training: false,
        };
        assert!(op.infer(&types).is_err());
    }

    #[test]
    fn parameters_of_batch_norm_may_be_wider_than_its_input() {
        let op = |training| {
            Op::from(BatchNorm {
                epsilon: 1e-5,
                momentum: 0.1,
                training,
            })
        };
        let with = |x: &str, p: &str| format!("{x}[n,3,2]{}", format!(" {p}[3]").repeat(4));
        for (x, p, expected) in [
            ("f32", "f32", "f32[n,3,2]"),
            ("bf16", "bf16", "bf16[n,3,2]"),
            ("bf16", "f32", "bf16[n,3,2]"),
            ("f16", "f32", "f16[n,3,2]"),
            ("f16", "bf16", "error"),
            ("f16", "f64", "error"),
            ("f64", "f32", "error"),
            ("f32", "f16", "error"),
            ("i8", "f32", "error"),
        ] {
            assert_eq!(infer(&op(false), &with(x, p)), expected, "{x} {p}");
        }
        assert_eq!(
            infer(&op(true), &with("bf16", "f32")),
            "bf16[n,3,2] f32[3] f32[3] f32[3] f32[3]"
        );
        assert_eq!(
            infer(&op(false), "f16[n,3] f32[3] f32[3] f32[3] f16[3]"),
            "error"
        );
        let grad = Op::from(BatchNormGrad);
        assert_eq!(
            infer(&grad, "f16[4,3] f32[3] f32[3] f32[3] f16[4,3]"),
            "f16[4,3] f32[3] f32[3]"
        );
        assert_eq!(
            infer(&grad, "f16[4,3] f32[3] f32[3] f32[3] f32[4,3]"),
            "error"
        );
    }

    #[test]
    fn parameters_of_layer_norm_cover_the_normalized_axes() {
        let x = TensorType::new(DType::F32, [4, 3, 2]);
        let op = LayerNorm {
            axis: 1,
            epsilon: 1e-5,
        };
        let good: Shape = [3, 2].into();
        let types = [x.clone(), x.with_shape(good)];
        let out = op.infer(&types).unwrap();
        op.axes(&types, &out).check(&types, &out).unwrap();
        assert!(op.infer(&[x.clone(), x.with_shape([2])]).is_err());
    }
}
