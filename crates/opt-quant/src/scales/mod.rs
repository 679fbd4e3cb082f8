//! Factors that a graph can move from one layer to another without another result.
//!
//! Multiplying a channel of a value by a positive factor, in what makes it, and dividing it by the
//! same in what reads it, changes nothing where all between passes factors on: ReLU, pooling,
//! reshaping, additions whose other side has the factor too. [`Scales::of`] finds which channels
//! of which weights share a factor, by walking the graph once: every value gets a [`Field`] of
//! numbers, and whatever has to be equal is joined. What an op does not pass on is fixed to 1.

pub(crate) mod field;
mod flow;

use std::collections::BTreeMap;

use opt_core::{Error, ErrorKind, Graph, Result, Tensor, ValueId};

pub(crate) use field::{FIXED, Field, Labels};

use field::for_each_index;

/// What a stored tensor has to do with factors.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// The factors that its entries are multiplied by.
    pub(crate) times: Option<Field>,
    /// The factors that its entries are divided by.
    pub(crate) over: Option<Field>,
    /// Whether it is the weight of a convolution or matrix product.
    pub(crate) weight: bool,
}

/// The factors of a graph.
#[derive(Debug)]
pub(crate) struct Scales {
    labels: Labels,
    /// Stored tensors that factors touch.
    pub(crate) stored: BTreeMap<ValueId, Stored>,
    /// The factors of every value.
    fields: BTreeMap<ValueId, Field>,
    /// Weights that divide by factors, in the graph's order, with the value whose factors those
    /// are.
    pub(crate) readers: Vec<(ValueId, ValueId)>,
}

impl Scales {
    /// The factors of a graph.
    pub(crate) fn of(graph: &Graph) -> Scales {
        flow::walk(graph)
    }

    /// The number that stands for a factor; [`FIXED`] for one that has to stay 1.
    pub(crate) fn root(&self, label: u32) -> u32 {
        self.labels.root(label)
    }

    /// How many factors there may be: numbers are below.
    pub(crate) fn bound(&self) -> usize {
        self.labels.len()
    }

    /// The factors of a value along an axis, one an entry of it; `None` if they differ along
    /// another axis.
    pub(crate) fn along(&self, value: ValueId, axis: usize, size: usize) -> Option<Vec<u32>> {
        let field = self.fields.get(&value)?;
        let others = field.shape.iter().enumerate();
        if others.into_iter().any(|(a, &n)| a != axis && n != 1) {
            return None;
        }
        let label = |i: usize| field.labels[if field.labels.len() == 1 { 0 } else { i }];
        Some((0..size).map(|i| self.root(label(i))).collect())
    }

    /// For each entry of a stored tensor of a shape, the numbers that it is multiplied and divided
    /// by; [`FIXED`] for neither.
    pub(crate) fn entries(&self, stored: &Stored, shape: &[usize]) -> Vec<(u32, u32)> {
        let mut out = Vec::with_capacity(shape.iter().product());
        let root = |field: &Option<Field>, index: &[usize]| match field {
            Some(field) => self.root(field.at(index)),
            None => FIXED,
        };
        for_each_index(shape, |index| {
            out.push((root(&stored.times, index), root(&stored.over, index)));
        });
        out
    }

    /// The graph with factors, by number, moved into its stored tensors. They have to be positive;
    /// that of [`FIXED`] is taken as 1.
    pub(crate) fn apply(&self, mut graph: Graph, factors: &[f64]) -> Result<Graph> {
        let of = |n: u32| if n == FIXED { 1.0 } else { factors[n as usize] };
        for (&id, stored) in &self.stored {
            let value = graph.value(id);
            let Some(content) = value.tensor() else {
                continue;
            };
            let entries = self.entries(stored, content.shape());
            if entries.iter().all(|&(a, b)| of(a) == of(b)) {
                continue;
            }
            let scaled = content.to_f64s().into_iter().zip(&entries);
            let scaled: Vec<f64> = scaled.map(|(v, &(a, b))| v * of(a) / of(b)).collect();
            let new = Tensor::from_f64s(content.dtype(), content.shape(), &scaled)?;
            if !new.is_finite() {
                let what = "a factor takes an entry of this tensor out of the range of its type";
                return Err(Error::new(ErrorKind::Data, what).at(value.name().to_string()));
            }
            graph.set_content(id, new)?;
        }
        Ok(graph)
    }
}
