//! The rules of pooling.

use super::{AvgPool, AvgPoolGrad, MaxPool, MaxPoolGrad};
use crate::ops::rules::{arity, float, no_gradient};
use crate::ops::{AxisRules, Cost, InputGrads, OpRules, Port, Vjp, Window};
use crate::{Dim, Error, Result, TensorType};

fn pooled(x: &TensorType, kernel: &[usize], window: &Window, ceil: bool) -> Result<TensorType> {
    if x.rank() < 3 || kernel.len() + 2 != x.rank() || kernel.contains(&0) {
        return Err(Error::shape(format!(
            "a window of {kernel:?} does not fit {x}: it needs one entry, at least 1, for each \
             axis after the channels"
        )));
    }
    window.check(kernel.len())?;
    let mut shape = x.shape.clone();
    for (axis, &k) in kernel.iter().enumerate() {
        let extent = window.extent(axis, k)?;
        if window.pads_begin[axis] >= extent || window.pads_end[axis] >= extent {
            return Err(Error::invalid(format!(
                "padding must be smaller than the window, which covers {extent}"
            )));
        }
        shape.dims_mut()[axis + 2] = window.output(axis, &x.shape[axis + 2], k, ceil)?;
    }
    Ok(x.with_shape(shape))
}

/// Batch and channels link every port; spatial axes are blocked.
fn links(ports: &[Port], rank: usize) -> AxisRules {
    let mut rules = AxisRules::new();
    for &port in &ports[1..] {
        rules.same((ports[0], 0), (port, 0));
        rules.same((ports[0], 1), (port, 1));
    }
    for &port in ports {
        for axis in 2..rank {
            rules.block((port, axis));
        }
    }
    rules
}

fn cost(kernel: &[usize], smaller: &TensorType) -> Result<Cost> {
    let per: usize = kernel.iter().product();
    Ok(Cost {
        macs: 0,
        elements: (smaller.shape.len()? * per) as u64,
    })
}

impl OpRules for MaxPool {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        Ok(vec![pooled(
            &inputs[0],
            &self.kernel,
            &self.window,
            self.ceil_mode,
        )?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let pool = self.clone();
        Ok(vec![Some(
            cx.b.op(MaxPoolGrad { pool }, &[cx.inputs[0], g])?,
        )])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        links(&[Port::Input(0), Port::Output(0)], inputs[0].rank())
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        cost(&self.kernel, &outputs[0])
    }
}

impl OpRules for MaxPoolGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=2)?;
        let y = self.pool.infer(&inputs[..1])?;
        if y[0] != inputs[1] {
            return Err(Error::shape(format!(
                "the pooled type is {}, the gradient is {}",
                y[0], inputs[1]
            )));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Err(no_gradient(
            "MaxPoolGrad",
            "second derivatives of pooling are not supported",
        ))
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let ports = [Port::Input(0), Port::Input(1), Port::Output(0)];
        links(&ports, inputs[0].rank())
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        cost(&self.pool.kernel, &inputs[1])
    }
}

impl OpRules for AvgPool {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        float(&inputs[0], "the input")?;
        Ok(vec![pooled(
            &inputs[0],
            &self.kernel,
            &self.window,
            self.ceil_mode,
        )?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let op = AvgPoolGrad {
            pool: self.clone(),
            spatial: cx.input_type(0).shape.dims()[2..]
                .iter()
                .map(Dim::fixed)
                .collect::<Result<_>>()?,
        };
        Ok(vec![Some(cx.b.op(op, &[g])?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        links(&[Port::Input(0), Port::Output(0)], inputs[0].rank())
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        cost(&self.kernel, &outputs[0])
    }
}

impl OpRules for AvgPoolGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let g = &inputs[0];
        if g.rank() != self.spatial.len() + 2 {
            return Err(Error::shape(format!(
                "a gradient of {g} for spatial sizes {:?}",
                self.spatial
            )));
        }
        let mut shape = g.shape.clone();
        for (axis, &size) in self.spatial.iter().enumerate() {
            shape.dims_mut()[axis + 2] = Dim::from(size);
        }
        let x = g.with_shape(shape);
        if self.pool.infer(std::slice::from_ref(&x))?[0] != *g {
            return Err(Error::shape(format!(
                "pooling {x} does not give the gradient's type {g}"
            )));
        }
        Ok(vec![x])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(cx.b.op(self.pool.clone(), &[g])?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        links(&[Port::Input(0), Port::Output(0)], inputs[0].rank())
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        cost(&self.pool.kernel, &inputs[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn ceil_mode_leaves_out_windows_that_start_in_the_padding() {
        // PyTorch: MaxPool2d(2, 2, padding=1, ceil_mode=True) on 4 gives 3, on 5 gives 3.
        for (size, expected) in [(4, 3), (5, 3)] {
            let op = MaxPool {
                kernel: smallvec::smallvec![2],
                window: Window::new(1).stride(2).pad(1),
                ceil_mode: true,
            };
            let x = TensorType::new(DType::F32, [1, 1, size]);
            assert_eq!(op.infer(&[x]).unwrap()[0].shape, [1, 1, expected].into());
        }
    }

    #[test]
    fn windows_must_fit() {
        let pool = |kernel, pad| MaxPool {
            kernel: smallvec::smallvec![kernel],
            window: Window::new(1).pad(pad),
            ceil_mode: false,
        };
        let x = [TensorType::new(DType::F32, [1, 1, 3])];
        assert!(pool(4, 0).infer(&x).is_err());
        assert!(pool(2, 2).infer(&x).is_err());
        assert!(pool(0, 0).infer(&x).is_err());
        assert_eq!(pool(3, 0).infer(&x).unwrap()[0].shape, [1, 1, 1].into());
    }
}
