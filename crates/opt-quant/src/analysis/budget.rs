//! One of several schemes for each weight, under a number of bytes.

use std::collections::BTreeMap;

use opt_core::pass::Needs;
use opt_core::{
    Context, Error, ErrorKind, Graph, Pass, Report, Result, ResultExt, Tensor, ValueId,
};

use super::compare::{indices, outputs, run};
use super::moved::Moved;
use crate::rules::{Rules, Select};
use crate::scheme::Scheme;
use crate::stored::{Kinds, Stored, find};
use crate::weights_pass::{QuantizeWeights, quantized};

/// Into how many parts the budget is cut: the sizes of choices are rounded up to them.
const PARTS: usize = 8192;

/// Quantizes weights, each in one of several schemes or not at all, so that the graph's stored
/// tensors keep within a number of bytes and its outputs move least.
///
/// Each weight is quantized alone in each scheme, and the squared error of the outputs over the
/// calibration examples measured, relative to their squares. The choice is the one of the least
/// sum (a knapsack with several choices an item, solved exactly but for sizes rounded up to an
/// 8192th of the budget). That errors add up is an assumption; [`compare`](super::compare) tells
/// what came of it.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass, Tensor};
/// use opt_data::TensorDataset;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::Scheme;
/// use opt_quant::analysis::QuantizeBudget;
///
/// let mut m = ModelBuilder::new("model", 0);
/// let x = m.batch("x", [64])?;
/// let h = m.layer("fc1", Linear::new(64), x)?;
/// let h = m.relu(h)?;
/// let y = m.layer("fc2", Linear::new(3), h)?;
/// m.output("y", y)?;
///
/// let x: Vec<f32> = (0..640).map(|i| (i as f32).sin()).collect();
/// let data = TensorDataset::new(vec![Tensor::new([10, 64], x)?])?;
/// let backend = NdarrayBackend::new();
/// let mut cx = Context::new().with_backend(&backend).with_calibration(&data);
/// let pass = QuantizeBudget::new([Scheme::int8(), Scheme::int4()], 4_000);
/// let (graph, report) = pass.apply(m.finish()?, &mut cx)?;
/// println!("{report:?}");
/// assert!(report.figures["bytes"] <= 4_000.0);
/// # Ok::<(), opt_quant::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeBudget {
    schemes: Vec<Scheme>,
    bytes: u64,
    rules: Rules,
}

/// A scheme for a weight, or none, and what comes of it.
#[derive(Debug, Clone, Copy)]
struct Choice {
    scheme: Option<Scheme>,
    bytes: u64,
    error: f64,
}

impl QuantizeBudget {
    /// These schemes, and this many bytes for all that the graph stores, scales and what is not
    /// quantized included.
    pub fn new(schemes: impl IntoIterator<Item = Scheme>, bytes: u64) -> QuantizeBudget {
        QuantizeBudget {
            schemes: schemes.into_iter().collect(),
            bytes,
            rules: Rules::new(),
        }
    }

    /// Rules for weights that are not to be decided about: those that a rule keeps stay in float,
    /// those that it gives a scheme get that one.
    #[must_use]
    pub fn rules(mut self, rules: Rules) -> QuantizeBudget {
        self.rules = rules;
        self
    }

    /// The choices that there are for each weight, by its name.
    fn choices(
        &self,
        graph: &Graph,
        weights: &BTreeMap<ValueId, Stored>,
        cx: &mut Context<'_>,
    ) -> Result<Vec<(String, Vec<Choice>)>> {
        let (data, backend) = (cx.calibration()?, cx.backend()?);
        let examples = indices(data)?;
        let mut out = Vec::new();
        for (&weight, stored) in weights {
            let value = graph.value(weight);
            let content = value.tensor().expect("found as stored");
            let mut choices = Vec::new();
            // A rule has decided about it if it has none of the usual schemes' placeholder.
            let decided = stored.scheme != self.schemes[0];
            if !decided {
                choices.push(Choice {
                    scheme: None,
                    bytes: content.size_in_bytes() as u64,
                    error: 0.0,
                });
            }
            let schemes = match decided {
                true => std::slice::from_ref(&stored.scheme),
                false => &self.schemes,
            };
            for &scheme in schemes {
                let stored = Stored {
                    scheme,
                    ..stored.clone()
                };
                let measure = || -> Result<Choice> {
                    let q = quantized(&stored, content)?;
                    let mut moved = graph.clone();
                    moved.set_content(weight, q.dequantize()?.reshape(content.shape())?)?;
                    let pairs = outputs(graph, &moved)?;
                    let sums = run(graph, &moved, &pairs, &examples, data, backend)?;
                    Ok(Choice {
                        scheme: Some(scheme),
                        bytes: q.storage_bytes() as u64,
                        error: sums
                            .into_iter()
                            .reduce(Moved::plus)
                            .unwrap_or_default()
                            .relative(),
                    })
                };
                choices.push(measure().at(|| value.name().to_string())?);
            }
            out.push((value.name().to_string(), choices));
        }
        Ok(out)
    }
}

/// For each item the index of a choice, so that bytes keep within a budget and the sum of errors is
/// least.
fn choose(items: &[(String, Vec<Choice>)], budget: u64) -> Result<Vec<usize>> {
    let least = |choices: &Vec<Choice>| choices.iter().map(|c| c.bytes).min().unwrap_or(0);
    let needed: u64 = items.iter().map(|(_, choices)| least(choices)).sum();
    if needed > budget {
        return Err(Error::invalid(format!(
            "the smallest schemes take {needed} bytes of the {budget} that are left for the \
             weights; raise the budget, or offer smaller schemes"
        )));
    }
    // What is beyond the least can be spent; a choice costs what it takes beyond the item's least.
    let spare = budget - needed;
    let unit = spare.div_ceil(PARTS as u64).max(1);
    let parts = (spare / unit) as usize;
    // The least error of the items so far for each amount, and the choices that led there.
    let mut best = vec![0.0; parts + 1];
    let mut taken: Vec<Vec<u16>> = Vec::new();
    for (_, choices) in items {
        let least = least(choices);
        let mut next = vec![f64::INFINITY; parts + 1];
        let mut by = vec![0u16; parts + 1];
        for (i, choice) in choices.iter().enumerate() {
            let cost = (choice.bytes - least).div_ceil(unit) as usize;
            for amount in cost..=parts {
                let error = best[amount - cost] + choice.error;
                if error < next[amount] {
                    (next[amount], by[amount]) = (error, i as u16);
                }
            }
        }
        best = next;
        taken.push(by);
    }
    let mut amount = parts;
    let mut out = vec![0; items.len()];
    for (item, by) in taken.iter().enumerate().rev() {
        let choice = usize::from(by[amount]);
        out[item] = choice;
        let choices = &items[item].1;
        amount -= (choices[choice].bytes - least(choices)).div_ceil(unit) as usize;
    }
    Ok(out)
}

impl Pass for QuantizeBudget {
    fn name(&self) -> &str {
        "quantize_budget"
    }

    fn config(&self) -> String {
        let schemes: Vec<String> = self.schemes.iter().map(|s| format!("\"{s}\"")).collect();
        format!(
            "schemes = [{}]\nbytes = {}\nrules = {}\n",
            schemes.join(", "),
            self.bytes,
            self.rules
        )
    }

    fn needs(&self) -> Needs {
        Needs::CALIBRATION
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let Some(&usual) = self.schemes.first() else {
            return Err(Error::invalid("a budget needs at least one scheme"));
        };
        let (layers, _) = find(&graph, &self.rules, &usual, Kinds::All)?;
        let mut weights: BTreeMap<ValueId, Stored> = BTreeMap::new();
        for layer in layers {
            weights.entry(layer.weight).or_insert(layer);
        }
        let stored = |v: &Tensor| v.size_in_bytes() as u64;
        let others: u64 = graph
            .values()
            .filter(|(id, _)| !weights.contains_key(id))
            .filter_map(|(_, value)| value.tensor().map(stored))
            .sum();
        let left = self.bytes.checked_sub(others).ok_or_else(|| {
            Error::invalid(format!(
                "what is not quantized takes {others} bytes, more than the budget of {}",
                self.bytes
            ))
        })?;
        let items = self.choices(&graph, &weights, cx)?;
        let chosen = choose(&items, left)?;
        let mut rules = Rules::new();
        let mut report = Report::default();
        let (mut bytes, mut error) = (others, 0.0);
        for ((name, choices), chosen) in items.iter().zip(chosen) {
            let choice = choices[chosen];
            bytes += choice.bytes;
            error += choice.error;
            let select = Select::name(name);
            rules = match choice.scheme {
                None => rules.keep(select),
                Some(scheme) => rules.apply(select, scheme),
            };
            let format = choice.scheme.map_or("float".into(), |s| s.to_string());
            report = report.note(format!("{name}: {format}"));
        }
        if items.is_empty() {
            return Err(Error::new(
                ErrorKind::NoEffect,
                "there is no weight to decide about",
            ));
        }
        // All weights stay within the budget in float.
        let graph = match report.notes.iter().all(|note| note.ends_with(": float")) {
            true => graph,
            false => {
                let pass = QuantizeWeights::new(usual).rules(self.rules.clone().then(rules));
                let (graph, done) = pass.apply(graph, cx)?;
                report.changed = done.changed;
                graph
            }
        };
        Ok((
            graph,
            report
                .figure("bytes", bytes as f64)
                .figure("sum of relative squared errors", error),
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All choices tried.
    fn brute(items: &[(String, Vec<Choice>)], budget: u64) -> Option<f64> {
        let mut best = vec![(0u64, 0.0)];
        for (_, choices) in items {
            let step = |&(bytes, error): &(u64, f64)| {
                let next = move |c: &Choice| (bytes + c.bytes, error + c.error);
                choices.iter().map(next).collect::<Vec<_>>()
            };
            best = best.iter().flat_map(step).collect();
        }
        let fits = best.into_iter().filter(|b| b.0 <= budget);
        fits.map(|b| b.1).min_by(f64::total_cmp)
    }

    proptest! {
        #[test]
        fn the_choice_is_the_best(
            sizes in prop::collection::vec(prop::collection::vec((1u64..200, 0.0f64..1.0), 1..4), 1..6),
            budget in 1u64..800,
        ) {
            let item = |choices: Vec<(u64, f64)>| {
                let choice = |(bytes, error)| Choice { scheme: None, bytes, error };
                (String::new(), choices.into_iter().map(choice).collect::<Vec<_>>())
            };
            let items: Vec<_> = sizes.into_iter().map(item).collect();
            match (choose(&items, budget), brute(&items, budget)) {
                (Ok(chosen), Some(best)) => {
                    let picked = || items.iter().zip(&chosen).map(|((_, c), &i)| c[i]);
                    prop_assert!(picked().map(|c| c.bytes).sum::<u64>() <= budget);
                    let error: f64 = picked().map(|c| c.error).sum();
                    prop_assert!((error - best).abs() < 1e-12);
                }
                (Err(_), None) => {}
                (found, best) => prop_assert!(false, "{found:?} {best:?}"),
            }
        }
    }
}
