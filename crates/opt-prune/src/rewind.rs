//! Other values for the weights that a mask leaves: those of an earlier graph, or random ones.

use std::collections::BTreeMap;

use opt_core::nn::Init;
use opt_core::pass::Preserves;
use opt_core::random::Philox;
use opt_core::{
    Context, Error, ErrorKind, FactKind, Graph, Pass, Report, Result, ResultExt, Tensor, ValueId,
};

use crate::masks::{masked_entries, set_mask, set_masked};

/// Puts every variable back to the value it has in an earlier graph, with the masks kept: the
/// rewinding of the lottery-ticket hypothesis (Frankle & Carbin 2019), to the initial values or,
/// where the earlier graph was trained for a few steps, to early ones (Frankle et al. 2020).
///
/// Variables are matched by name, so that the earlier graph may have been made by another call of
/// the same builder: with another seed it is the random re-initialisation that tickets are
/// compared with. See also [`Reinitialize`].
///
/// ```
/// use opt_core::nn::zoo;
/// use opt_core::{Context, Pass};
/// use opt_prune::{Rewind, UnstructuredPrune};
///
/// # fn main() -> opt_core::Result<()> {
/// let initial = zoo::lenet_300_100(64, 10, 0)?;
/// let mut cx = Context::new();
/// # let trained = zoo::lenet_300_100(64, 10, 5)?;
/// // .. train `initial`, giving `trained`, then:
/// let (pruned, _) = UnstructuredPrune::new(0.98).apply(trained, &mut cx)?;
/// let (ticket, _) = Rewind::to(&initial).apply(pruned.clone(), &mut cx)?;
/// let (control, _) = Rewind::to(&zoo::lenet_300_100(64, 10, 1)?).apply(pruned, &mut cx)?;
/// // .. and train both; the masks hold.
/// # let w = ticket.find("fc1.weight")?;
/// # assert_eq!(ticket.facts().mask(w), control.facts().mask(w));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Rewind {
    graph: Graph,
}

impl Rewind {
    /// Rewinds to the values in a graph (which is kept; tensors are shared).
    pub fn to(graph: &Graph) -> Rewind {
        Rewind {
            graph: graph.clone(),
        }
    }
}

impl Pass for Rewind {
    fn name(&self) -> &str {
        "rewind"
    }

    fn preserves(&self) -> Preserves {
        keeps_masks_only()
    }

    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the earlier graph lacks a variable, at its name;
    /// [`ErrorKind::Shape`] if it has another shape or dtype there (a graph that lost channels:
    /// shrink the earlier one by the same [`AxisMap`](opt_core::pass::AxisMap) first);
    /// [`ErrorKind::FactViolated`] if a value would leave a codebook or grid.
    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let values = same_variables(&graph, &self.graph)?;
        replace(graph, values)
    }
}

/// Draws new initial values, with the masks kept: the control of lottery-ticket experiments.
///
/// By [`Reinitialize::like`] each variable gets the values that it has in the initial graph, in
/// random order: draws from the distribution that the initial values came from, whatever that
/// was; what is constant, such as biases of 0 and batch-norm scales of 1, stays. With
/// [`Reinitialize::init`] variables of rank 2 and more are drawn anew instead.
///
/// Random numbers are a function of the context's seed and the variable's name.
///
/// ```
/// use opt_core::nn::{Init, zoo};
/// use opt_core::{Context, Pass};
/// use opt_prune::{Reinitialize, UnstructuredPrune};
///
/// # fn main() -> opt_core::Result<()> {
/// let initial = zoo::lenet_300_100(64, 10, 0)?;
/// let mut cx = Context::new().with_seed(1);
/// let (pruned, _) = UnstructuredPrune::new(0.9).apply(initial.clone(), &mut cx)?;
/// let control = Reinitialize::like(&initial).init(Init::RELU);
/// let (control, _) = control.apply(pruned, &mut cx)?;
/// # control.verify()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Reinitialize {
    graph: Graph,
    init: Option<Init>,
}

impl Reinitialize {
    /// Draws each variable's values from those that it has in the initial graph, without
    /// replacement.
    pub fn like(initial: &Graph) -> Reinitialize {
        Reinitialize {
            graph: initial.clone(),
            init: None,
        }
    }

    /// Draws floating-point variables of rank 2 at least from a distribution instead.
    #[must_use]
    pub fn init(mut self, init: Init) -> Reinitialize {
        self.init = Some(init);
        self
    }
}

impl Pass for Reinitialize {
    fn name(&self) -> &str {
        "reinitialize"
    }

    fn preserves(&self) -> Preserves {
        keeps_masks_only()
    }

    /// # Errors
    /// As [`Rewind`]; and if the distribution is not defined for a variable, at its name.
    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let mut values = same_variables(&graph, &self.graph)?;
        for (id, tensor) in &mut values {
            if !tensor.dtype().is_float() {
                continue;
            }
            let name = graph.value(*id).name();
            *tensor = match self.init {
                Some(init) if tensor.rank() >= 2 => init
                    .tensor(tensor.dtype(), tensor.shape(), cx.seed(), stream(name))
                    .at(|| name.to_string())?,
                _ => {
                    let order = Philox::new(cx.seed()).permutation(stream(name), tensor.len());
                    let data = tensor.to_f64s();
                    let data: Vec<f64> = order.into_iter().map(|i| data[i]).collect();
                    Tensor::from_f64s(tensor.dtype(), tensor.shape(), &data)?
                }
            };
        }
        replace(graph, values)
    }
}

/// Moves the masks' entries to random places, each tensor's sparsity kept: the control that tells
/// what the places are worth (Frankle et al. 2021). Entries that come back are zero until a
/// [`Rewind`] or [`Reinitialize`] after it gives them values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShuffleMasks;

impl Pass for ShuffleMasks {
    fn name(&self) -> &str {
        "shuffle_masks"
    }

    fn preserves(&self) -> Preserves {
        Preserves::AllBut(vec![
            FactKind::NmPattern,
            FactKind::Codebook,
            FactKind::Grid,
        ])
    }

    /// # Errors
    /// [`ErrorKind::NoEffect`] if the graph has no mask; [`ErrorKind::FactViolated`] if a
    /// variable would leave its codebook or grid, or is bound to an N:M pattern.
    fn apply(&self, mut graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let mut changed = 0;
        for id in masked_variables(&graph)? {
            let name = graph.value(id).name().to_string();
            if graph.facts().get(id, FactKind::NmPattern).is_some() {
                let message = "a mask of an N:M pattern cannot be shuffled";
                return Err(Error::new(ErrorKind::FactViolated, message).at(name));
            }
            let keep = graph.facts().mask(id).expect("masked").to_vec_bool()?;
            let order = Philox::new(cx.seed()).permutation(stream(&name), keep.len());
            let moved: Vec<bool> = order.into_iter().map(|i| keep[i]).collect();
            changed += moved.iter().zip(&keep).filter(|(a, b)| a != b).count();
            set_mask(&mut graph, id, &moved)?;
        }
        graph.facts().check(&graph)?;
        Ok((graph, Report::new(changed)))
    }
}

fn keeps_masks_only() -> Preserves {
    Preserves::AllBut(vec![FactKind::Codebook, FactKind::Grid])
}

fn masked_variables(graph: &Graph) -> Result<Vec<ValueId>> {
    let masked: Vec<ValueId> = graph
        .variables()
        .map(|(id, _, _)| id)
        .filter(|&id| graph.facts().mask(id).is_some())
        .collect();
    match masked.is_empty() {
        true => Err(Error::new(
            ErrorKind::NoEffect,
            "the graph has no masks; prune its weights first",
        )),
        false => Ok(masked),
    }
}

/// The variables of a graph with the content that another has under their names.
fn same_variables(graph: &Graph, from: &Graph) -> Result<Vec<(ValueId, Tensor)>> {
    let contents: BTreeMap<&str, &Tensor> =
        from.variables().map(|(_, v, t)| (v.name(), t)).collect();
    let mut out = Vec::new();
    for (id, value, now) in graph.variables() {
        let name = value.name();
        let Some(&then) = contents.get(name) else {
            return Err(Error::invalid(format!(
                "the graph `{}` that weights are taken from has no such variable",
                from.name()
            ))
            .at(name));
        };
        if (then.dtype(), then.shape()) != (now.dtype(), now.shape()) {
            return Err(Error::shape(format!(
                "the graph `{}` that weights are taken from has {}{:?} here, expected {}{:?}; \
                 where channels were removed, remove them from that graph too",
                from.name(),
                then.dtype(),
                then.shape(),
                now.dtype(),
                now.shape()
            ))
            .at(name));
        }
        out.push((id, then.clone()));
    }
    Ok(out)
}

fn replace(mut graph: Graph, values: Vec<(ValueId, Tensor)>) -> Result<(Graph, Report)> {
    let mut changed = 0;
    for (id, tensor) in values {
        let before = graph.value(id).tensor().expect("a variable").clone();
        set_masked(&mut graph, id, &tensor)?;
        changed += usize::from(graph.value(id).tensor() != Some(&before));
    }
    graph.facts().check(&graph)?;
    let (gone, total) = masked_entries(&graph)?;
    let sparsity = gone as f64 / total.max(1) as f64;
    Ok((graph, Report::new(changed).figure("sparsity", sparsity)))
}

/// A number for a name (64-bit FNV-1a), to tell the random numbers of variables apart. Not the one
/// that a model's builder has for the name: by its seed that would draw the initial values again.
fn stream(name: &str) -> u64 {
    let salted = b"again/".iter().copied().chain(name.bytes());
    salted.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
