//! Conversions from and to `ndarray` arrays.

use ndarray::{Array, ArrayViewD, Dimension, IxDyn, ShapeBuilder};

use super::{Element, Tensor};
use crate::{Error, Result};

impl<T: Element, D: Dimension> From<Array<T, D>> for Tensor {
    fn from(array: Array<T, D>) -> Tensor {
        let shape = array.shape().to_vec();
        let data: Vec<T> = array.iter().copied().collect();
        Tensor::new(shape, data).expect("an array has as many elements as its shape")
    }
}

impl Tensor {
    /// A zero-copy `ndarray` view of the elements.
    ///
    /// ```
    /// use opt_core::Tensor;
    ///
    /// let x = Tensor::new([2, 2], [1f32, 2., 3., 4.])?;
    /// assert_eq!(x.transpose(&[1, 0])?.view::<f32>()?[[0, 1]], 3.0);
    /// # Ok::<(), opt_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// If `T` is not the dtype.
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'_, T>> {
        self.expect_dtype(T::DTYPE)?;
        let strides: Vec<usize> = self.strides.iter().map(|&s| s as usize).collect();
        let shape = IxDyn(&self.shape).strides(IxDyn(&strides));
        ArrayViewD::from_shape(shape, &self.storage.typed::<T>()[self.offset..])
            .map_err(|e| Error::shape(e.to_string()))
    }
}
