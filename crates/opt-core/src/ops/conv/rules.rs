//! The rules of the convolutions.

use super::{Conv, ConvGradWeight, ConvTranspose, Window};
use crate::ops::rules::{arity, float, no_gradient, same_dtype};
use crate::ops::{AxisRules, Cost, IndexMap, InputGrads, Op, OpRules, Port, ShrinkCx, Vjp};
use crate::tensor::Dims;
use crate::{Dim, Error, Result, Shape, TensorType};

const X: Port = Port::Input(0);
const W: Port = Port::Input(1);
const B: Port = Port::Input(2);
const OUT: Port = Port::Output(0);

impl Window {
    /// Fails unless there is one entry a spatial axis and no stride or dilation is 0.
    pub(in crate::ops) fn check(&self, spatial: usize) -> Result<()> {
        let lists = [
            &self.strides,
            &self.pads_begin,
            &self.pads_end,
            &self.dilations,
        ];
        if lists.iter().any(|l| l.len() != spatial) {
            return Err(Error::invalid(format!(
                "the window has {} axes, the input {spatial} spatial ones",
                self.rank()
            )));
        }
        if self.strides.contains(&0) || self.dilations.contains(&0) {
            return Err(Error::invalid("strides and dilations must be at least 1"));
        }
        if lists
            .iter()
            .any(|l| l.iter().any(|&v| v > u32::MAX as usize))
        {
            return Err(Error::invalid("a window of more than 2^32"));
        }
        Ok(())
    }

    /// The extent of a kernel on an axis: what it covers with its dilation.
    pub(in crate::ops) fn extent(&self, axis: usize, kernel: usize) -> Result<usize> {
        kernel
            .checked_sub(1)
            .and_then(|k| k.checked_mul(self.dilations[axis]))
            .and_then(|k| k.checked_add(1))
            .filter(|&e| e <= u32::MAX as usize)
            .ok_or_else(|| Error::invalid(format!("a kernel of size {kernel}")))
    }

    /// The output size on an axis; with `ceil` rounded up as PyTorch does.
    pub(in crate::ops) fn output(
        &self,
        axis: usize,
        input: &Dim,
        kernel: usize,
        ceil: bool,
    ) -> Result<Dim> {
        let (begin, end) = (self.pads_begin[axis], self.pads_end[axis]);
        let (stride, extent) = (self.strides[axis], self.extent(axis, kernel)?);
        if input.as_fixed().is_none() && (stride == 1 || !ceil) {
            let room = input.add((begin + end) as isize - extent as isize)?;
            return room.div_floor(stride)?.add(1);
        }
        let size = input.fixed()?;
        let room = (size + begin + end).checked_sub(extent).ok_or_else(|| {
            Error::shape(format!(
                "a kernel that covers {extent} does not fit size {size} with padding {begin} \
                 and {end}"
            ))
        })?;
        let mut steps = if ceil {
            room.div_ceil(stride)
        } else {
            room / stride
        };
        if ceil && steps * stride >= size + begin {
            steps -= 1;
        }
        Ok(Dim::from(steps + 1))
    }
}

/// Ranks, dtypes, groups and bias that all convolutions share; `inputs` are x, weight, bias.
/// `transposed` says on which axis of the weight the input's channels are.
fn check(
    inputs: &[TensorType],
    window: &Window,
    groups: usize,
    transposed: bool,
) -> Result<(Dims, usize)> {
    arity(inputs, 2..=3)?;
    let (x, w) = (&inputs[0], &inputs[1]);
    float(x, "the input")?;
    for ty in &inputs[1..] {
        same_dtype(x, ty)?;
    }
    if x.rank() < 3 || x.rank() > 5 || w.rank() != x.rank() {
        return Err(Error::shape(format!(
            "input and weight must have one rank of 3 to 5, found {x} and {w}"
        )));
    }
    window.check(x.rank() - 2)?;
    let weight = w.shape.fixed()?;
    let channels = x.shape[1].fixed()?;
    let agrees = groups > 0
        && channels % groups == 0
        && match transposed {
            false => weight[1] == channels / groups && weight[0] % groups == 0,
            true => weight[0] == channels,
        };
    if !agrees {
        return Err(Error::shape(format!(
            "{channels} channels in {groups} groups do not fit a weight of {w}"
        )));
    }
    let out = if transposed {
        weight[1]
            .checked_mul(groups)
            .ok_or_else(|| Error::shape("too many output channels"))?
    } else {
        weight[0]
    };
    if let Some(bias) = inputs.get(2)
        && bias.shape != Shape::from([out])
    {
        return Err(Error::shape(format!(
            "the bias must be [{out}], found {bias}"
        )));
    }
    Ok((weight, out))
}

/// The gradient by a bias: the sum over all axes but the channels'.
fn bias_grad(cx: &mut Vjp<'_>, g: crate::ValueId) -> Result<crate::ValueId> {
    let axes: Vec<usize> = (0..cx.b.type_of(g).rank()).filter(|&a| a != 1).collect();
    cx.b.sum(g, &axes, false)
}

/// Links of channel axes: `input` is the axis of x that carries them, weight axes as in [`Conv`].
fn channel_links(
    rules: &mut AxisRules,
    channels: usize,
    groups: usize,
    out: (Port, usize),
    per: usize,
    x: (Port, usize),
    weight: Port,
) {
    let (wo, wi) = ((weight, 0), (weight, 1));
    if groups == 1 {
        rules.same(wi, x);
        rules.same(wo, out);
    } else if channels == groups {
        rules.link(x, wo, IndexMap::Merge { inner: per });
        rules.same(wo, out);
        rules.block(wi);
    } else {
        rules.link(wi, x, IndexMap::Merge { inner: 1 });
        rules.same(wo, out);
        rules.link(wo, wo, IndexMap::Modulo(per));
    }
}

fn block_spatial(rules: &mut AxisRules, ports: &[Port], rank: usize) {
    for &port in ports {
        for axis in 2..rank {
            rules.block((port, axis));
        }
    }
}

fn multiply_adds(outputs: usize, per: &[usize]) -> Result<Cost> {
    per.iter()
        .try_fold(outputs, |p, &n| p.checked_mul(n))
        .map(Cost::macs)
        .ok_or_else(|| Error::shape("the number of multiply-adds overflows"))
}

/// Groups after a shrink: a depthwise convolution has one a channel that is left.
fn groups_after(cx: &ShrinkCx<'_>, groups: usize, x: usize) -> Result<usize> {
    let old = cx.old_inputs[x].shape[1].fixed()?;
    let new = cx.new_inputs[x].shape[1].fixed()?;
    Ok(if old == groups { new } else { groups })
}

impl OpRules for Conv {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let (weight, out) = check(inputs, &self.window, self.groups, false)?;
        let x = &inputs[0];
        let mut shape = vec![x.shape[0].clone(), Dim::from(out)];
        for axis in 0..x.rank() - 2 {
            let input = &x.shape[axis + 2];
            shape.push(self.window.output(axis, input, weight[axis + 2], false)?);
        }
        Ok(vec![x.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let (x, w) = (cx.inputs[0], cx.inputs[1]);
        let mut grads = vec![None; cx.inputs.len()];
        let kernel: Dims = cx.input_type(1).shape.fixed()?[2..].into();
        if cx.wanted[0] {
            let (tx, tg) = (cx.input_type(0), cx.b.type_of(g).clone());
            let mut output_padding = Dims::new();
            for axis in 0..kernel.len() {
                // What a stride that does not divide leaves over at the end.
                let stride = self.window.strides[axis];
                output_padding.push(if stride == 1 {
                    0
                } else {
                    let covered = (tg.shape[axis + 2].fixed()? - 1) * stride
                        + self.window.extent(axis, kernel[axis])?;
                    let size = tx.shape[axis + 2].fixed()?;
                    size + self.window.pads_begin[axis] + self.window.pads_end[axis] - covered
                });
            }
            let op = ConvTranspose {
                window: self.window.clone(),
                groups: self.groups,
                output_padding,
            };
            grads[0] = Some(cx.b.op(op, &[g, w])?);
        }
        if cx.wanted[1] {
            let op = ConvGradWeight {
                window: self.window.clone(),
                groups: self.groups,
                kernel,
            };
            grads[1] = Some(cx.b.op(op, &[x, g])?);
        }
        if cx.wanted.get(2) == Some(&true) {
            grads[2] = Some(bias_grad(cx, g)?);
        }
        Ok(grads)
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        let size = |p: usize, a: usize| inputs[p].shape[a].as_fixed().unwrap_or(0);
        rules.same((X, 0), (OUT, 0));
        let per = size(1, 0) / self.groups.max(1);
        channel_links(
            &mut rules,
            size(0, 1),
            self.groups,
            (OUT, 1),
            per,
            (X, 1),
            W,
        );
        if inputs.len() > 2 {
            rules.same((B, 0), (OUT, 1));
        }
        block_spatial(&mut rules, &[X, W, OUT], inputs[0].rank());
        rules
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        multiply_adds(outputs[0].shape.len()?, &inputs[1].shape.fixed()?[1..])
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let mut op = self.clone();
        op.groups = groups_after(cx, self.groups, 0)?;
        Ok(Some(op.into()))
    }
}

impl OpRules for ConvTranspose {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let (weight, out) = check(inputs, &self.window, self.groups, true)?;
        let x = &inputs[0];
        let spatial = x.rank() - 2;
        if self.output_padding.len() != spatial {
            return Err(Error::invalid(
                "output padding needs one entry a spatial axis",
            ));
        }
        let mut shape = vec![x.shape[0].clone(), Dim::from(out)];
        for axis in 0..spatial {
            let stride = self.window.strides[axis];
            let extra = self.output_padding[axis];
            if extra >= stride {
                return Err(Error::invalid(format!(
                    "output padding {extra} must be smaller than the stride {stride}"
                )));
            }
            let extent = self.window.extent(axis, weight[axis + 2])?;
            let pads = self.window.pads_begin[axis] + self.window.pads_end[axis];
            let shift = (extent + extra) as isize - (pads + stride) as isize;
            shape.push(x.shape[axis + 2].mul(stride)?.add(shift)?);
        }
        Ok(vec![x.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let (x, w) = (cx.inputs[0], cx.inputs[1]);
        let mut grads = vec![None; cx.inputs.len()];
        // The convolution whose gradient this is has the output padding as room that its stride
        // does not reach, so that no entry of it is read.
        let conv = Conv {
            window: self.window.clone(),
            groups: self.groups,
        };
        if cx.wanted[0] {
            grads[0] = Some(cx.b.op(conv, &[g, w])?);
        }
        if cx.wanted[1] {
            let op = ConvGradWeight {
                window: self.window.clone(),
                groups: self.groups,
                kernel: cx.input_type(1).shape.fixed()?[2..].into(),
            };
            grads[1] = Some(cx.b.op(op, &[g, x])?);
        }
        if cx.wanted.get(2) == Some(&true) {
            grads[2] = Some(bias_grad(cx, g)?);
        }
        Ok(grads)
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        // As the convolution from the output back to the input, whose weight this is.
        let mut rules = AxisRules::new();
        let channels = outputs[0].shape[1].as_fixed().unwrap_or(0);
        let per = inputs[1].shape[0].as_fixed().unwrap_or(0) / self.groups.max(1);
        rules.same((X, 0), (OUT, 0));
        channel_links(&mut rules, channels, self.groups, (X, 1), per, (OUT, 1), W);
        if inputs.len() > 2 {
            rules.same((B, 0), (OUT, 1));
        }
        block_spatial(&mut rules, &[X, W, OUT], inputs[0].rank());
        rules
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        multiply_adds(inputs[0].shape.len()?, &inputs[1].shape.fixed()?[1..])
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let mut op = self.clone();
        let old = cx.old_outputs[0].shape[1].fixed()?;
        if old == self.groups {
            op.groups = cx.new_outputs[0].shape[1].fixed()?;
        }
        Ok(Some(op.into()))
    }
}

impl OpRules for ConvGradWeight {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=2)?;
        let (x, g) = (&inputs[0], &inputs[1]);
        float(x, "the input")?;
        same_dtype(x, g)?;
        if x.rank() < 3 || x.rank() != g.rank() || self.kernel.len() + 2 != x.rank() {
            return Err(Error::shape(format!(
                "input, gradient and kernel must have one rank, found {x}, {g} and {:?}",
                self.kernel
            )));
        }
        self.window.check(self.kernel.len())?;
        let (c, o) = (x.shape[1].fixed()?, g.shape[1].fixed()?);
        if self.groups == 0 || c % self.groups != 0 || o % self.groups != 0 {
            return Err(Error::shape(format!(
                "{c} and {o} channels in {} groups",
                self.groups
            )));
        }
        let mut shape = vec![Dim::from(o), Dim::from(c / self.groups)];
        shape.extend(self.kernel.iter().map(|&k| Dim::from(k)));
        Ok(vec![x.with_shape(shape)])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Err(no_gradient(
            "ConvGradWeight",
            "second derivatives of convolutions are not supported",
        ))
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        let size = |p: usize| inputs[p].shape[1].as_fixed().unwrap_or(0);
        let per = size(1) / self.groups.max(1);
        channel_links(&mut rules, size(0), self.groups, (W, 1), per, (X, 1), OUT);
        rules.same((X, 0), (W, 0));
        block_spatial(&mut rules, &[X, W, OUT], inputs[0].rank());
        rules
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        multiply_adds(inputs[1].shape.len()?, &outputs[0].shape.fixed()?[1..])
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let mut op = self.clone();
        op.groups = groups_after(cx, self.groups, 0)?;
        Ok(Some(op.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn infer(x: &[usize], w: &[usize], window: Window, groups: usize) -> Result<Shape> {
        let types = [x, w].map(|s| TensorType::new(DType::F32, s));
        let conv = Conv { window, groups };
        let out = conv.infer(&types)?;
        conv.axes(&types, &out).check(&types, &out)?;
        Ok(out[0].shape.clone())
    }

    #[test]
    fn sizes_follow_the_formula() {
        let w = || Window::new(2);
        for (x, k, window, groups, expected) in [
            ([1, 3, 8, 8], [4, 3, 3, 3], w(), 1, [1, 4, 6, 6]),
            ([1, 3, 8, 8], [4, 3, 3, 3], w().pad(1), 1, [1, 4, 8, 8]),
            (
                [1, 3, 8, 7],
                [4, 3, 3, 3],
                w().pad(1).stride(2),
                1,
                [1, 4, 4, 4],
            ),
            ([1, 4, 9, 9], [4, 1, 3, 3], w().dilation(2), 4, [1, 4, 5, 5]),
            ([1, 4, 9, 9], [6, 2, 1, 1], w(), 2, [1, 6, 9, 9]),
        ] {
            assert_eq!(
                infer(&x, &k, window, groups).unwrap(),
                Shape::from(expected)
            );
        }
    }

    #[test]
    fn mismatches_are_errors() {
        let w = || Window::new(2);
        for (x, k, window, groups) in [
            ([1, 3, 8, 8], [4, 2, 3, 3], w(), 1),
            ([1, 3, 2, 2], [4, 3, 3, 3], w(), 1),
            ([1, 3, 8, 8], [4, 3, 3, 3], w().stride(0), 1),
            ([1, 4, 8, 8], [5, 2, 3, 3], w(), 2),
            ([1, 4, 8, 8], [4, 4, 3, 3], w(), 0),
            ([1, 4, 8, 8], [4, 4, 3, 3], Window::new(1), 1),
        ] {
            assert!(
                infer(&x, &k, window, groups).is_err(),
                "{x:?} {k:?} {groups}"
            );
        }
    }

    #[test]
    fn the_transpose_undoes_the_shape() {
        let window = Window::new(2).stride(2).pad(1);
        let types = [[2, 6, 4, 4], [6, 3, 3, 3]].map(|s| TensorType::new(DType::F32, s));
        let op = ConvTranspose {
            window,
            groups: 1,
            output_padding: smallvec::smallvec![1, 0],
        };
        assert_eq!(op.infer(&types).unwrap()[0].shape, [2, 3, 8, 7].into());
    }
}
