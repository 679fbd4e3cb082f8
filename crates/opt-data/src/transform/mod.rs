//! Transforms of one field: fixed, or fitted on the training part.
//!
//! Every fitted transform is made by a function `fit` that sees the training part alone, and
//! applied to any part: [`TensorDataset::map`](crate::TensorDataset::map) or [`Mapped`].
//! [`TransformPipeline`] puts several one after the other.

mod eigen;
mod encode;
mod impute;
mod outlier;
mod pca;
mod pipeline;
mod scale;
mod score;
mod select;
mod statistics;

pub use encode::{LabelEncoder, OneHot, Ordinal};
pub use impute::{Fill, Imputer};
pub use outlier::Outliers;
pub use pca::{Keep, Pca};
pub use pipeline::{FittedPipeline, TransformPipeline};
pub use scale::{MinMax, Robust, Scale, Standardize};
pub use score::Score;
pub use select::SelectKBest;

use crate::{Dataset, Error, Result, ResultExt, Tensor};

/// A fixed function of a field; the first axis runs over the examples.
pub trait Transform: Send + Sync + std::fmt::Debug {
    /// The field transformed.
    ///
    /// # Errors
    /// If the tensor has a shape or dtype that the transform does not take.
    fn apply(&self, field: &Tensor) -> Result<Tensor>;
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<T: Transform + ?Sized> Transform for $pointer {
            fn apply(&self, field: &Tensor) -> Result<Tensor> {
                (**self).apply(field)
            }
        }
    )*};
}

forward!(&T, Box<T>, std::sync::Arc<T>);

/// A data set with a transform applied to one field as examples are read.
///
/// [`TensorDataset::map`](crate::TensorDataset::map) does the same once, in memory.
#[derive(Debug, Clone)]
pub struct Mapped<D, T> {
    source: D,
    field: usize,
    transform: T,
}

impl<D: Dataset, T: Transform> Mapped<D, T> {
    /// `source` with `transform` applied to the field of an index.
    pub fn new(source: D, field: usize, transform: T) -> Mapped<D, T> {
        Mapped {
            source,
            field,
            transform,
        }
    }
}

impl<D: Dataset, T: Transform> Dataset for Mapped<D, T> {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn get(&self, index: usize) -> Result<Vec<Tensor>> {
        let batch = self.batch(&[index])?;
        let one = |field: Tensor| field.reshape(&field.shape()[1..]);
        batch.into_iter().map(one).collect()
    }

    fn batch(&self, indices: &[usize]) -> Result<Vec<Tensor>> {
        let mut batch = self.source.batch(indices)?;
        let fields = batch.len();
        let field = batch.get_mut(self.field).ok_or_else(|| {
            Error::invalid(format!("no field {}: there are {fields}", self.field))
        })?;
        *field = self
            .transform
            .apply(field)
            .at(|| format!("field {}", self.field))?;
        Ok(batch)
    }
}

/// Which elements of an example share a parameter of a fitted transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Per {
    /// None: each element of an example has its own (a column of a table).
    Feature,
    /// Those of a channel: axis 1 of `[N, C, ..]`.
    Channel,
    /// All.
    Dataset,
}

/// How many neighbouring elements of an example share a parameter.
fn run_length(shape: &[usize], per: Per) -> usize {
    let run: usize = match per {
        Per::Feature => 1,
        Per::Channel => shape[1..].iter().product(),
        Per::Dataset => shape.iter().product(),
    };
    run.max(1)
}

/// Fails unless a field has examples of a shape, those that a transform was fitted on.
fn check_examples(field: &Tensor, example: &[usize]) -> Result<()> {
    if field.rank() == 0 || field.shape()[1..] != *example {
        return Err(Error::shape(format!(
            "fitted on examples of shape {example:?}, found a field of shape {:?}",
            field.shape()
        )));
    }
    Ok(())
}
