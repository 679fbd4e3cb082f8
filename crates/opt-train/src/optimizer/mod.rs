//! Optimizers as graph builders, one a file: each adds the nodes that compute a parameter's new
//! value, so that it runs on every backend, fused with the rest of the step.

mod adadelta;
mod adagrad;
mod adam;
mod adamax;
mod groups;
mod lion;
mod muon;
mod nadam;
mod radam;
mod rmsprop;
mod sgd;

pub use adadelta::Adadelta;
pub use adagrad::Adagrad;
pub use adam::{Adam, AdamW};
pub use adamax::Adamax;
pub use groups::Groups;
pub use lion::Lion;
pub use muon::{Muon, MuonScale};
pub use nadam::NAdam;
pub use radam::RAdam;
pub use rmsprop::RmsProp;
pub use sgd::{GradientDescent, Sgd};

use opt_core::{DType, Graph, GraphBuilder, Result, Tensor, ValueId};

/// The variable that counts the steps of a training graph.
pub const STEP: &str = "optimizer.step";

/// An optimizer: the rule by which a gradient changes a parameter.
///
/// ```
/// use opt_core::{GraphBuilder, Result, ValueId};
/// use opt_train::{Optimizer, Slots};
///
/// /// Steps of equal length against the sign of the gradient.
/// #[derive(Debug)]
/// struct SignSgd;
///
/// impl Optimizer for SignSgd {
///     fn update(&self, b: &mut GraphBuilder, param: ValueId, grad: ValueId, lr: ValueId, _: &mut Slots) -> Result<ValueId> {
///         let sign = b.sign(grad)?;
///         let step = b.mul(sign, lr)?;
///         b.sub(param, step)
///     }
/// }
/// ```
pub trait Optimizer: std::fmt::Debug + Send + Sync {
    /// Adds the nodes that compute the parameter's new value and returns it. State between steps
    /// lives in [`Slots`]. `lr` is the learning rate, a scalar of the parameter's dtype.
    ///
    /// # Errors
    /// If a hyper-parameter is out of its range.
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId>;

    /// Looks at the parameters that are going to be trained, before any of them is updated.
    ///
    /// # Errors
    /// If the optimizer does not suit them; here never.
    fn check(&self, _graph: &Graph, _parameters: &[ValueId]) -> Result<()> {
        Ok(())
    }
}

/// The variable of a parameter's slot.
pub(crate) fn slot_name(parameter: &str, slot: &str) -> String {
    format!("optimizer.{parameter}.{slot}")
}

/// The state of an optimizer for one parameter, as variables named
/// `optimizer.<parameter>.<slot>`, and the count of steps that all parameters share.
#[derive(Debug)]
pub struct Slots {
    parameter: String,
    step: ValueId,
}

impl Slots {
    /// The slots of a parameter.
    ///
    /// # Errors
    /// None for graphs whose names are valid.
    pub fn new(b: &mut GraphBuilder, param: ValueId) -> Result<Slots> {
        let parameter = b.graph().value(param).name().to_string();
        let step = match b.graph().find(STEP) {
            Ok(v) => v,
            Err(_) => b.variable(STEP, Tensor::scalar(0f64))?,
        };
        Ok(Slots { parameter, step })
    }

    /// A variable of the parameter's type, with one initial value everywhere.
    ///
    /// # Errors
    /// If the parameter's shape is symbolic.
    pub fn get(
        &mut self,
        b: &mut GraphBuilder,
        param: ValueId,
        name: &str,
        initial: f64,
    ) -> Result<ValueId> {
        let name = slot_name(&self.parameter, name);
        if let Ok(found) = b.graph().find(&name) {
            return Ok(found);
        }
        let ty = b.type_of(param).clone();
        b.variable(&name, Tensor::full(ty.dtype, ty.shape.fixed()?, initial)?)
    }

    /// A variable of one number, in `f64`.
    ///
    /// # Errors
    /// If the name is taken by something else.
    pub fn number(&mut self, b: &mut GraphBuilder, name: &str, initial: f64) -> Result<ValueId> {
        let name = slot_name(&self.parameter, name);
        if let Ok(found) = b.graph().find(&name) {
            return Ok(found);
        }
        b.variable(&name, Tensor::scalar(initial))
    }

    /// The number of this step, 1 for the first, as an `f64` scalar: bias corrections lose digits
    /// in `f32`.
    ///
    /// # Errors
    /// None.
    pub fn step(&mut self, b: &mut GraphBuilder) -> Result<ValueId> {
        b.add_scalar(self.step, 1.0)
    }

    /// A function of the step, computed in `f64`, as a scalar of a dtype.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn of_step(
        &mut self,
        b: &mut GraphBuilder,
        dtype: DType,
        f: impl FnOnce(&mut GraphBuilder, ValueId) -> Result<ValueId>,
    ) -> Result<ValueId> {
        let step = self.step(b)?;
        let value = f(b, step)?;
        b.cast(value, dtype)
    }
}

/// `a * x + b * y` for numbers a and b.
fn blend(b: &mut GraphBuilder, a: f64, x: ValueId, c: f64, y: ValueId) -> Result<ValueId> {
    let x = b.mul_scalar(x, a)?;
    let y = b.mul_scalar(y, c)?;
    b.add(x, y)
}

/// `param * (1 - lr * decay)`: decoupled weight decay.
fn shrunk(b: &mut GraphBuilder, param: ValueId, lr: ValueId, decay: f64) -> Result<ValueId> {
    let shrink = b.mul_scalar(lr, -decay)?;
    let shrink = b.add_scalar(shrink, 1.0)?;
    b.mul(param, shrink)
}

/// `grad + decay * param`: weight decay as PyTorch's coupled optimizers have it.
fn decayed(b: &mut GraphBuilder, param: ValueId, grad: ValueId, decay: f64) -> Result<ValueId> {
    if decay == 0.0 {
        return Ok(grad);
    }
    let term = b.mul_scalar(param, decay)?;
    b.add(grad, term)
}

/// The running means of a gradient and of its square after this step, assigned to their slots.
fn moments(
    b: &mut GraphBuilder,
    param: ValueId,
    grad: ValueId,
    (beta1, beta2): (f64, f64),
    slots: &mut Slots,
) -> Result<(ValueId, ValueId)> {
    let m = slots.get(b, param, "exp_avg", 0.0)?;
    let v = slots.get(b, param, "exp_avg_sq", 0.0)?;
    let new_m = blend(b, beta1, m, 1.0 - beta1, grad)?;
    let square = b.mul(grad, grad)?;
    let new_v = blend(b, beta2, v, 1.0 - beta2, square)?;
    b.assign(m, new_m)?;
    b.assign(v, new_v)?;
    Ok((new_m, new_v))
}

/// Fails unless the hyper-parameters that Adam's relatives share are in their ranges.
fn adaptive_in_range((beta1, beta2): (f64, f64), eps: f64, weight_decay: f64) -> Result<()> {
    in_range("beta1", beta1, 0.0, 1.0)?;
    in_range("beta2", beta2, 0.0, 1.0)?;
    in_range("eps", eps, 0.0, f64::INFINITY)?;
    in_range("weight decay", weight_decay, 0.0, f64::INFINITY)
}

/// Fails unless a hyper-parameter is finite and in `[low, high)`.
fn in_range(name: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if value.is_finite() && value >= low && value < high {
        return Ok(());
    }
    Err(opt_core::Error::invalid(format!(
        "{name} is {value}, not in [{low}, {high})"
    )))
}
