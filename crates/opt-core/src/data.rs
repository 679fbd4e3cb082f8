//! Where passes get their examples from; `opt-data` holds data sets, batches and transforms.

use crate::{Error, ErrorKind, Result, Tensor};

/// A finite list of examples. An example is a list of tensors: the graph's inputs in their
/// order, then the targets (a class index as an `i64` scalar, or a tensor).
pub trait Dataset: Send + Sync {
    /// The number of examples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The example of an index.
    ///
    /// # Errors
    /// If the index is out of range or the example cannot be read.
    fn get(&self, index: usize) -> Result<Vec<Tensor>>;

    /// Examples side by side along a new first axis, one tensor a field.
    ///
    /// # Errors
    /// If there are no indices, or the examples differ in shape or dtype.
    fn batch(&self, indices: &[usize]) -> Result<Vec<Tensor>> {
        let mut fields: Vec<Vec<Tensor>> = Vec::new();
        for &i in indices {
            for (f, tensor) in self.get(i)?.into_iter().enumerate() {
                let mut shape = vec![1];
                shape.extend(tensor.shape());
                let row = tensor.reshape(shape)?;
                match fields.get_mut(f) {
                    Some(rows) => rows.push(row),
                    None => fields.push(vec![row]),
                }
            }
        }
        if fields.is_empty() {
            return Err(Error::new(ErrorKind::Data, "a batch of no examples"));
        }
        fields.iter().map(|rows| Tensor::concat(rows, 0)).collect()
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<D: Dataset + ?Sized> Dataset for $pointer {
            fn len(&self) -> usize {
                (**self).len()
            }

            fn get(&self, index: usize) -> Result<Vec<Tensor>> {
                (**self).get(index)
            }

            fn batch(&self, indices: &[usize]) -> Result<Vec<Tensor>> {
                (**self).batch(indices)
            }
        }
    )*};
}

forward!(&D, Box<D>, std::sync::Arc<D>);
