//! Exponential moving averages of parameters.

use opt_core::{Error, Fact, Graph, GraphBuilder, Result, ValueId};

use crate::optimizer::Slots;

/// Before a parameter's name in that of its average.
const PREFIX: &str = "ema.";

/// Adds the average of a parameter whose new value is given, as PyTorch's `AveragedModel` with
/// `get_ema_multi_avg_fn` has it: that value after the first step, then
/// `decay * average + (1 - decay) * value`.
pub(crate) fn average(
    b: &mut GraphBuilder,
    param: ValueId,
    new: ValueId,
    decay: f64,
    slots: &mut Slots,
) -> Result<()> {
    if !(0.0..1.0).contains(&decay) {
        return Err(Error::invalid(format!(
            "the decay of the moving average is {decay}, not in [0, 1)"
        )));
    }
    let value = b.graph().value(param);
    let (name, dtype) = (format!("{PREFIX}{}", value.name()), value.ty().dtype);
    let start = value.tensor().cloned();
    let start = start.ok_or_else(|| Error::invalid("only variables have averages"))?;
    let average = b.variable(&name, start)?;
    let first = slots.of_step(b, dtype, |b, step| {
        let one = b.scalar_like(step, 1.0)?;
        let first = b.equal(step, one)?;
        b.cast(first, dtype)
    })?;
    // 1 at the first step.
    let kept = b.neg(first)?;
    let kept = b.add_scalar(kept, 1.0)?;
    let kept = b.mul_scalar(kept, decay)?;
    let rest = b.neg(kept)?;
    let rest = b.add_scalar(rest, 1.0)?;
    let old = b.mul(average, kept)?;
    let part = b.mul(new, rest)?;
    let next = b.add(old, part)?;
    b.assign(average, next)?;
    Ok(())
}

/// Gives averages the masks of their parameters.
pub(crate) fn copy_masks(graph: &mut Graph) {
    let masks: Vec<_> = graph
        .variables()
        .filter_map(|(id, value, _)| {
            let mask = graph.facts().mask(id)?.clone();
            let average = graph.find(&format!("{PREFIX}{}", value.name())).ok()?;
            Some((average, mask))
        })
        .collect();
    for (average, mask) in masks {
        graph.facts_mut().insert(average, Fact::Mask(mask));
    }
}

/// The graph with every parameter that has an average replaced by it.
pub(crate) fn averaged(graph: &Graph) -> Result<Graph> {
    let mut out = graph.clone();
    for (_, value, content) in graph.variables() {
        let of = value.name().strip_prefix(PREFIX);
        if let Some(param) = of.and_then(|name| graph.find(name).ok()) {
            out.set_variable(param, content.clone())?;
        }
    }
    Ok(out)
}
