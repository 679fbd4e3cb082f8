//! Scaled dot-product attention, through libtorch's choice of fused kernels.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use opt_core::ops::Attention;
use opt_core::{DType, Result};
use tch::{Kind, Tensor};

use super::elementwise::to;
use super::{CompileCx, Kernel, Shared};
use crate::Device;
use crate::convert::{kind, kind_number, to_device};
use crate::native::{self, Arg, Operator, Outs, aten};

static SDPA: Operator = Operator::new("scaled_dot_product_attention");

/// The triangles that compiled layers hold: those of the same lengths share one.
static TRIANGLES: Mutex<Vec<(Triangle, Weak<Shared>)>> = Mutex::new(Vec::new());

/// A boolean matrix `[queries, keys]` on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Triangle {
    device: Device,
    queries: i64,
    keys: i64,
    /// Whether it is true where the key comes after the query, or where it does not.
    after: bool,
}

impl Triangle {
    fn tensor(self) -> Result<Arc<Shared>> {
        let mut all = TRIANGLES.lock().unwrap_or_else(PoisonError::into_inner);
        let held = all.iter().find(|(triangle, _)| *triangle == self);
        if let Some(held) = held.and_then(|(_, tensor)| tensor.upgrade()) {
            return Ok(held);
        }
        let ones = aten!("ones", &[self.queries, self.keys], kind_number(Kind::Bool))?;
        let tensor = match self.after {
            true => aten!("triu", &ones, 1i64)?,
            false => aten!("tril", &ones)?,
        };
        let tensor = Arc::new(Shared::new(to_device(&tensor, self.device)?));
        all.retain(|(_, tensor)| tensor.strong_count() > 0);
        all.push((self, Arc::downgrade(&tensor)));
        Ok(tensor)
    }
}

#[derive(Debug, Clone)]
struct Shape {
    scale: f64,
    causal: bool,
    /// The leading axes as two, which the fused kernels want.
    lead: [i64; 2],
    mask: Option<DType>,
    /// What a mask is combined with where the layer is causal too: the keys that a boolean one
    /// leaves, or those that one to add hides.
    triangle: Option<Arc<Shared>>,
    out: Vec<i64>,
    /// What it is computed in, where that is not the operands' type: on the processor libtorch
    /// rounds the probabilities to 16 bits, and its gradient by a query in bf16 can be a sixth off.
    wide: Option<Kind>,
    target: Kind,
}

impl Shape {
    fn new(op: &Attention, cx: &CompileCx<'_>) -> Result<Shape> {
        let q = cx.shape(0)?;
        let lead = &q[..q.len() - 2];
        let heads = lead.last().copied().unwrap_or(1);
        let batch = lead.iter().rev().skip(1).product();
        Ok(Shape {
            scale: op.scale_for(&cx.inputs[0])?,
            causal: op.causal,
            lead: [batch, heads],
            mask: None,
            triangle: None,
            out: cx.out_shape(0)?,
            wide: (cx.device == Device::Cpu && cx.inputs[0].dtype.bits() == 16)
                .then_some(Kind::Float),
            target: kind(cx.inputs[0].dtype)?,
        })
    }

    /// The same for what reads the operands: query, key, value, perhaps a mask.
    fn with_mask(mut self, cx: &CompileCx<'_>) -> Result<Shape> {
        self.mask = cx.inputs.get(3).map(|t| t.dtype);
        if let Some(mask) = self.mask.filter(|_| self.causal) {
            let (q, k) = (cx.shape(0)?, cx.shape(1)?);
            let triangle = Triangle {
                device: cx.device,
                queries: q[q.len() - 2],
                keys: k[k.len() - 2],
                after: mask != DType::Bool,
            };
            self.triangle = Some(triangle.tensor()?);
        }
        Ok(self)
    }

    /// An operand with four axes.
    fn four(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.size();
        let x = &match self.wide {
            Some(wide) => to(x, wide)?,
            None => x.shallow_clone(),
        };
        match size.len() {
            4 => Ok(x.shallow_clone()),
            n => aten!(
                "reshape",
                x,
                &[self.lead[0], self.lead[1], size[n - 2], size[n - 1]]
            ),
        }
    }

    /// The mask with four axes, the triangle in it where there are both.
    fn mask(&self, mask: Option<&&Tensor>, queries: i64, keys: i64) -> Result<Option<Tensor>> {
        let Some(mask) = mask else {
            return Ok(None);
        };
        let mut mask = match (self.wide, self.mask) {
            (Some(wide), Some(dtype)) if dtype != DType::Bool => to(mask, wide)?,
            _ => mask.shallow_clone(),
        };
        let rank = mask.dim();
        if self.out.len() > 4 && rank > 2 {
            // Leading axes can be merged once they are all there.
            let mut full = self.out[..self.out.len() - 2].to_vec();
            full.extend([queries, keys]);
            let all = aten!("expand", &mask, &full)?;
            mask = aten!(
                "reshape",
                &all,
                &[self.lead[0], self.lead[1], queries, keys]
            )?;
        } else if self.out.len() == 2 && rank == 2 {
            mask = aten!("reshape", &mask, &[&[1, 1], &mask.size()[..]].concat())?;
        } else {
            while mask.dim() < 4 {
                mask = aten!("unsqueeze", &mask, 0i64)?;
            }
        }
        if let Some(triangle) = &self.triangle {
            let triangle = triangle.get();
            mask = match self.mask {
                Some(DType::Bool) => aten!("logical_and", &mask, triangle)?,
                _ => aten!("masked_fill.Scalar", &mask, triangle, f64::NEG_INFINITY)?,
            };
        }
        Ok(Some(mask))
    }

    /// The result with four axes.
    fn run(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Tensor>,
        record: bool,
    ) -> Result<Tensor> {
        let args = [
            q.into(),
            k.into(),
            v.into(),
            Arg::from(mask),
            Arg::Float(0.0),
            Arg::Bool(self.causal && mask.is_none()),
            Arg::Float(self.scale),
        ];
        native::first(match record {
            true => SDPA.record(&args),
            false => SDPA.call(&args),
        })
    }

    /// A result as the op has it.
    fn leave(&self, y: &Tensor, shape: &[i64]) -> Result<Tensor> {
        let y = aten!("reshape", y, shape)?;
        match self.wide {
            Some(_) => to(&y, self.target),
            None => Ok(y),
        }
    }

    fn operands(&self, x: &[&Tensor]) -> Result<([Tensor; 3], Option<Tensor>)> {
        let four = [self.four(x[0])?, self.four(x[1])?, self.four(x[2])?];
        let (queries, keys) = (four[0].size()[2], four[1].size()[2]);
        let mask = self.mask(x.get(3), queries, keys)?;
        Ok((four, mask))
    }
}

pub(super) fn compile(op: &Attention, cx: &CompileCx<'_>) -> Result<Kernel> {
    let shape = Shape::new(op, cx)?.with_mask(cx)?;
    Ok(Kernel::one("attention", move |x| {
        let ([q, k, v], mask) = shape.operands(x)?;
        let y = shape.run(&q, &k, &v, mask.as_ref(), false)?;
        shape.leave(&y, &shape.out)
    }))
}

/// Attention that is recorded: after its result come the recorded one, query, key and value.
pub(crate) fn compile_recorded(op: &Attention, cx: &CompileCx<'_>) -> Result<Kernel> {
    let shape = Shape::new(op, cx)?.with_mask(cx)?;
    Ok(Kernel::new("attention", move |x, _| {
        let ([q, k, v], mask) = shape.operands(x)?;
        let [q, k, v] = [native::leaf(&q)?, native::leaf(&k)?, native::leaf(&v)?];
        let y = shape.run(&q, &k, &v, mask.as_ref(), true)?;
        let plain = shape.leave(&aten!("detach", &y)?, &shape.out)?;
        Ok(Outs::from_vec(vec![plain, y, q, k, v]))
    }))
}

/// The gradients of a recorded attention: inputs are the gradient by its result, and what it
/// recorded.
pub(crate) fn compile_grad(op: &Attention, cx: &CompileCx<'_>) -> Result<Kernel> {
    let shape = Shape::new(op, cx)?;
    let shapes = [cx.out_shape(0)?, cx.out_shape(1)?, cx.out_shape(2)?];
    Ok(Kernel::new("attention_backward", move |x, _| {
        let g = shape.four(x[0])?;
        let grads = native::gradients(&[x[1]], &[&g], &[x[2], x[3], x[4]])?;
        let mut outs = Outs::new();
        for (g, size) in grads.into_iter().zip(&shapes) {
            outs.push(shape.leave(&g, size)?);
        }
        Ok(outs)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triangles_are_shared_and_go_with_the_last_layer() {
        let triangle = |keys, after| Triangle {
            device: Device::Cpu,
            queries: 3,
            keys,
            after,
        };
        let content = |t: &Shared| crate::convert::to_host(t.get(), DType::Bool).unwrap();
        let (left, hidden) = (triangle(11, false), triangle(11, true));
        let (a, b) = (left.tensor().unwrap(), hidden.tensor().unwrap());
        assert!(Arc::ptr_eq(&a, &left.tensor().unwrap()));
        let (seen, after) = (content(&a).to_f64s(), content(&b).to_f64s());
        for (i, (seen, after)) in seen.into_iter().zip(after).enumerate() {
            let expected = f64::from(u8::from(i % 11 <= i / 11));
            assert_eq!((seen, after), (expected, 1.0 - expected), "entry {i}");
        }
        let weak = Arc::downgrade(&a);
        drop(a);
        assert!(weak.upgrade().is_none());
        assert_eq!(content(&left.tensor().unwrap()).shape(), [3, 11]);
    }
}
