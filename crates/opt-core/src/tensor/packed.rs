//! 4-bit integers, two a byte, the first in the low half (ONNX's layout).

use super::{Buffer, DType, Tensor, checked_len};
use crate::{Error, Result};

impl Tensor {
    /// Packs 4-bit integers given one a byte.
    ///
    /// ```
    /// use opt_core::{DType, Tensor};
    ///
    /// let x = Tensor::pack(DType::I4, [3], &[-8, 7, 1])?;
    /// assert_eq!(x.size_in_bytes(), 2);
    /// assert_eq!(x.unpack()?.to_vec::<i8>()?, [-8, 7, 1]);
    /// # Ok::<(), opt_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// If `dtype` is not `I4` or `U4`, a value is out of its range, or the lengths differ.
    pub fn pack(dtype: DType, shape: impl AsRef<[usize]>, values: &[i8]) -> Result<Tensor> {
        let shape = shape.as_ref();
        if !dtype.is_packed() {
            return Err(Error::dtype(format!("{dtype} is not a packed 4-bit type")));
        }
        if checked_len(shape)? != values.len() {
            return Err(Error::shape(format!(
                "shape {shape:?} has not {} elements",
                values.len()
            )));
        }
        let (lo, hi) = dtype.int_range()?;
        if let Some(bad) = values
            .iter()
            .find(|&&v| i32::from(v) < lo || i32::from(v) > hi)
        {
            return Err(Error::invalid(format!(
                "{bad} is out of the range {lo}..={hi} of {dtype}"
            )));
        }
        let mut buffer = Buffer::zeroed(values.len().div_ceil(2));
        let bytes = buffer.bytes_mut();
        for (i, &v) in values.iter().enumerate() {
            bytes[i / 2] |= (v as u8 & 0xF) << (4 * (i % 2));
        }
        Tensor::from_buffer(dtype, shape, buffer)
    }

    /// The 4-bit elements as `I8` (values of `U4` are 0 to 15).
    ///
    /// # Errors
    /// If the dtype is not `I4` or `U4`.
    pub fn unpack(&self) -> Result<Tensor> {
        if !self.dtype.is_packed() {
            return Err(Error::dtype(format!(
                "{} is not a packed 4-bit type",
                self.dtype
            )));
        }
        Tensor::new(self.shape(), self.unpacked())
    }

    pub(super) fn unpacked(&self) -> Vec<i8> {
        let bytes = self.storage.bytes();
        (0..self.len())
            .map(|i| {
                let nibble = (bytes[i / 2] >> (4 * (i % 2))) & 0xF;
                if self.dtype == DType::I4 {
                    ((nibble << 4) as i8) >> 4
                } else {
                    nibble as i8
                }
            })
            .collect()
    }
}
