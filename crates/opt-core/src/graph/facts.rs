//! What passes have established about values, and later passes must keep.

use std::collections::BTreeMap;

use super::{Graph, ValueId};
use crate::{DType, Error, ErrorKind, Result, Tensor};

/// The kinds of [`Fact`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FactKind {
    /// [`Fact::Mask`].
    Mask,
    /// [`Fact::NmPattern`].
    NmPattern,
    /// [`Fact::Codebook`].
    Codebook,
    /// [`Fact::Grid`].
    Grid,
}

/// A property of a variable or constant that a pass has established; fine-tuning re-applies it
/// and [`Graph::verify`] tests it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fact {
    /// Pruning: the value is zero wherever this boolean tensor of its shape is false.
    Mask(Tensor),
    /// At most `n` non-zeros in each run of `m` consecutive entries along an axis.
    NmPattern {
        /// Non-zeros allowed in a run.
        n: usize,
        /// Length of a run.
        m: usize,
        /// The axis of the runs.
        axis: usize,
    },
    /// Weight sharing: every entry is one of these values.
    Codebook(Tensor),
    /// Quantization: every entry is `(q - zero_point) * scale` for an integer `q` of `dtype`.
    Grid {
        /// The integer type.
        dtype: DType,
        /// Scales: a scalar, or one an entry of `axis`.
        scale: Tensor,
        /// Zero points, shaped as the scales.
        zero_point: Tensor,
        /// The channel axis of per-channel grids.
        axis: Option<usize>,
    },
}

impl Fact {
    /// Its kind.
    pub fn kind(&self) -> FactKind {
        match self {
            Fact::Mask(_) => FactKind::Mask,
            Fact::NmPattern { .. } => FactKind::NmPattern,
            Fact::Codebook(_) => FactKind::Codebook,
            Fact::Grid { .. } => FactKind::Grid,
        }
    }

    /// Tests the fact against a content.
    ///
    /// # Errors
    /// [`ErrorKind::FactViolated`], with the first offending entry.
    pub fn check(&self, content: &Tensor) -> Result<()> {
        let violated = |m: String| Err(Error::new(ErrorKind::FactViolated, m));
        let data = content.to_f64s();
        match self {
            Fact::Mask(mask) => {
                if mask.shape() != content.shape() {
                    return violated(format!(
                        "mask of shape {:?} on a value of shape {:?}",
                        mask.shape(),
                        content.shape()
                    ));
                }
                let keep = mask.to_vec_bool()?;
                match keep.iter().zip(&data).position(|(&k, &v)| !k && v != 0.0) {
                    Some(i) => violated(format!("entry {i} is {} where the mask has 0", data[i])),
                    None => Ok(()),
                }
            }
            Fact::NmPattern { n, m, axis } => {
                let shape = content.shape();
                if *axis >= shape.len() || *m == 0 || !shape[*axis].is_multiple_of(*m) {
                    return violated(format!("{n}:{m} along axis {axis} of shape {shape:?}"));
                }
                let inner: usize = shape[axis + 1..].iter().product();
                let size = shape[*axis];
                for start in
                    (0..data.len()).filter(|i| ((i / inner.max(1)) % size).is_multiple_of(*m))
                {
                    let nz = (0..*m).filter(|k| data[start + k * inner] != 0.0).count();
                    if nz > *n {
                        return violated(format!("{nz} non-zeros in the run of {m} at {start}"));
                    }
                }
                Ok(())
            }
            Fact::Codebook(book) => {
                let book = book.to_f64s();
                match data.iter().position(|v| !book.contains(v)) {
                    Some(i) => violated(format!("entry {i} is {}, not in the codebook", data[i])),
                    None => Ok(()),
                }
            }
            Fact::Grid {
                dtype,
                scale,
                zero_point,
                axis,
            } => {
                let (lo, hi) = dtype.int_range()?;
                let (scale, zero) = (scale.to_f64s(), zero_point.to_f64s());
                let shape = content.shape();
                let (inner, size) = match axis {
                    Some(a) => (shape[a + 1..].iter().product(), shape[*a]),
                    None => (data.len().max(1), 1),
                };
                for (i, &v) in data.iter().enumerate() {
                    let c = (i / inner) % size;
                    let (s, z) = (scale[c.min(scale.len() - 1)], zero[c.min(zero.len() - 1)]);
                    let q = v / s + z;
                    let off = (q - q.round()).abs();
                    if off > 1e-3 || q.round() < f64::from(lo) || q.round() > f64::from(hi) {
                        return violated(format!("entry {i} is {v}, not on the {dtype} grid"));
                    }
                }
                Ok(())
            }
        }
    }
}

/// The facts of a graph, by value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts(BTreeMap<(ValueId, FactKind), Fact>);

impl Facts {
    /// Records a fact; replaces one of the same kind on the same value.
    pub fn insert(&mut self, value: ValueId, fact: Fact) -> Option<Fact> {
        self.0.insert((value, fact.kind()), fact)
    }

    /// Removes a fact.
    pub fn remove(&mut self, value: ValueId, kind: FactKind) -> Option<Fact> {
        self.0.remove(&(value, kind))
    }

    pub(crate) fn remove_value(&mut self, value: ValueId) {
        self.0.retain(|(v, _), _| *v != value);
    }

    /// The fact of a kind on a value.
    pub fn get(&self, value: ValueId, kind: FactKind) -> Option<&Fact> {
        self.0.get(&(value, kind))
    }

    /// The pruning mask of a value.
    pub fn mask(&self, value: ValueId) -> Option<&Tensor> {
        match self.get(value, FactKind::Mask) {
            Some(Fact::Mask(mask)) => Some(mask),
            _ => None,
        }
    }

    /// All facts, ordered by value.
    pub fn iter(&self) -> impl Iterator<Item = (ValueId, &Fact)> + '_ {
        self.0.iter().map(|((v, _), f)| (*v, f))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tests every fact against the graph's content.
    ///
    /// # Errors
    /// The first violation, at the value's name.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        for (id, fact) in self.iter() {
            let Some(value) = graph.get(id) else { continue };
            if let Some(tensor) = value.tensor() {
                fact.check(tensor)
                    .map_err(|e| e.at(value.name().to_string()))?;
            }
        }
        Ok(())
    }
}
