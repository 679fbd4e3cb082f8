//! Ranges of activations that training learns.

use std::collections::BTreeMap;

use opt_core::ops::FakeQuantize;
use opt_core::{DType, Error, Graph, GraphPatch, Node, Result, Tensor, ValueId, ValueKind};

use super::weights::{LEAST_SCALE, positive_part, with_part_of_gradient};
use crate::params::QParams;
use crate::static_pass::Config;

impl Config {
    /// Learns the ranges of activations in quantization-aware training: scales as LSQ has them
    /// (Esser et al., ICLR 2020), and the zero points of asymmetric ones as LSQ+ does (Bhalgat et
    /// al., 2020). They start at what calibration gives (at few bits the range of
    /// [`ObserverKind::Mse`](crate::ObserverKind::Mse) is a better start than the full one), and are
    /// variables named after the value: `.scale` and `.zero`. Their gradients are divided by
    /// `sqrt(n * q)` for n entries of the value in an example and the highest integer q.
    ///
    /// ```
    /// use opt_quant::{Config, ObserverKind, Scheme};
    ///
    /// let four_bits = Config::default()
    ///     .weights(Scheme::weights().bits(4))
    ///     .activations(Scheme::activations().bits(4))
    ///     .observer(ObserverKind::Mse)
    ///     .learn_scales()
    ///     .learn_ranges();
    /// # let _ = four_bits;
    /// ```
    #[must_use]
    pub fn learn_ranges(mut self) -> Config {
        self.learn_ranges = true;
        self
    }
}

/// The names of the variables of a value's scale and zero point.
fn names(value: &str) -> (String, String) {
    (format!("{value}.scale"), format!("{value}.zero"))
}

/// Rounds activations to grids that training moves.
pub(super) fn learned(patch: &mut GraphPatch, ranges: &BTreeMap<ValueId, QParams>) -> Result<()> {
    for (&origin, params) in ranges {
        let (low, high) = params.grid;
        let value = patch.graph().value(origin);
        let (scale_name, zero_name) = names(value.name());
        let sizes = value.ty().shape.dims().iter().skip(1);
        let entries: usize = sizes.filter_map(opt_core::Dim::as_fixed).product();
        let part = 1.0 / (entries.max(1) as f64 * f64::from(high.max(1))).sqrt();
        let scale = patch.variable(&scale_name, params.scale.clone())?;
        let scale = positive_part(patch, scale, part)?;
        let start = params.zero_point.cast(DType::F32);
        // Values that are never negative have nothing below a zero point at the grid's end.
        let zero = match start.item()? <= f64::from(low.max(0)) && low >= 0 {
            true => patch.constant(start),
            false => {
                let zero = patch.variable(&zero_name, start)?;
                let zero = with_part_of_gradient(patch, zero, part)?;
                let (least, most) = (
                    patch.scalar_like(zero, f64::from(low))?,
                    patch.scalar_like(zero, f64::from(high))?,
                );
                let zero = patch.maximum(zero, least)?;
                let zero = patch.minimum(zero, most)?;
                let rounded = patch.round(zero)?;
                let apart = patch.sub(rounded, zero)?;
                let apart = patch.stop_gradient(apart)?;
                patch.add(zero, apart)?
            }
        };
        let axis = None;
        let op = FakeQuantize { low, high, axis };
        let fake = patch.named_node("qat", op, &[origin, scale, zero])?[0];
        patch.replace(origin, fake)?;
    }
    Ok(())
}

/// The parameters of a fake quantization of an activation: constants, or the variables that were
/// learned. `None` for that of a weight that is computed.
pub(super) fn parameters(graph: &Graph, node: &Node, config: &Config) -> Result<Option<QParams>> {
    let content = |v: ValueId| match graph.value(v).kind() {
        ValueKind::Constant(t) | ValueKind::Variable(t) => Some(t.clone()),
        _ => None,
    };
    let named = |name: &str| graph.find(name).ok().and_then(content);
    let (scale_name, zero_name) = names(graph.value(node.inputs()[0]).name());
    let Some(scale) = content(node.inputs()[1]).or_else(|| named(&scale_name)) else {
        return Ok(None);
    };
    let zero = content(node.inputs()[2]).or_else(|| named(&zero_name));
    let zero = zero.ok_or_else(|| {
        let what = "this value has a learned scale and no zero point";
        Error::invalid(what).at(zero_name.clone())
    })?;
    if scale.len() != 1 || zero.len() != 1 {
        return Ok(None);
    }
    let (low, high) = config.activations.grid()?;
    let zero = zero.item()?.round_ties_even();
    let zero = zero.clamp(f64::from(low), f64::from(high));
    let scale = scale.item()?.max(LEAST_SCALE);
    Ok(Some(QParams {
        scale: Tensor::full(DType::F32, [], scale)?,
        zero_point: Tensor::full(config.activations.dtype(), [], zero)?,
        axis: None,
        block: None,
        grid: (low, high),
    }))
}
