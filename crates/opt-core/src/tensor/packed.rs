//! Elements narrower than a byte, and codes of narrow types.
//!
//! Elements of 2, 4 or 6 bits lie one after another without gaps, the first in the lowest bits of
//! the first byte (ONNX's layout).

use super::{Buffer, DType, Element, MiniFloat, Tensor, checked_len};
use crate::{Error, Result};

/// Writes codes of `bits` bits, 1 to 8, one after another, and zeros behind them. There have to be
/// as many bytes as the codes take.
pub fn write_codes(codes: impl Iterator<Item = u8>, bits: usize, bytes: &mut [u8]) {
    bytes.fill(0);
    let mask = (1u16 << bits) - 1;
    for (i, code) in codes.enumerate() {
        let (at, shift) = (i * bits / 8, i * bits % 8);
        let wide = (u16::from(code) & mask) << shift;
        bytes[at] |= wide as u8;
        if shift + bits > 8 {
            bytes[at + 1] |= (wide >> 8) as u8;
        }
    }
}

/// The code of `bits` bits, 1 to 8, at a place of what [`write_codes`] wrote.
#[inline]
pub fn read_code(bytes: &[u8], bits: usize, i: usize) -> u8 {
    let (at, shift) = (i * bits / 8, i * bits % 8);
    let low = u16::from(bytes[at]);
    let high = match shift + bits > 8 {
        true => u16::from(bytes[at + 1]),
        false => 0,
    };
    ((low | high << 8) >> shift & ((1 << bits) - 1)) as u8
}

fn narrow(dtype: DType) -> Result<()> {
    if dtype.bits() <= 8 {
        return Ok(());
    }
    Err(Error::dtype(format!("{dtype} is wider than 8 bits")))
}

impl Tensor {
    /// Packs integers of 2 or 4 bits given one a byte.
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
    /// If `dtype` is no packed integer type, a value is out of its range, or the lengths differ.
    pub fn pack(dtype: DType, shape: impl AsRef<[usize]>, values: &[i8]) -> Result<Tensor> {
        if !(dtype.is_packed() && dtype.is_int()) {
            return Err(Error::dtype(format!(
                "{dtype} is not a packed integer type"
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
        let codes: Vec<u8> = values.iter().map(|&v| v as u8).collect();
        Tensor::from_codes(dtype, shape, &codes)
    }

    /// The elements of a packed integer type as `I8` (values of `U4` are 0 to 15).
    ///
    /// # Errors
    /// If the dtype is no packed integer type.
    pub fn unpack(&self) -> Result<Tensor> {
        if !(self.dtype.is_packed() && self.dtype.is_int()) {
            return Err(Error::dtype(format!(
                "{} is not a packed integer type",
                self.dtype
            )));
        }
        Tensor::new(self.shape(), self.unpacked())
    }

    pub(super) fn unpacked(&self) -> Vec<i8> {
        let bits = self.dtype.bits();
        let signed = matches!(self.dtype, DType::I4 | DType::I2);
        let code = |i| {
            let code = read_code(self.storage.bytes(), bits, i);
            match signed {
                true => (code << (8 - bits)) as i8 >> (8 - bits),
                false => code as i8,
            }
        };
        (0..self.len()).map(code).collect()
    }

    /// A tensor of a type of 8 bits or fewer from its codes, one a byte: the elements' bits, of
    /// which those beyond the type's width are ignored.
    ///
    /// ```
    /// use opt_core::{DType, Tensor};
    ///
    /// let x = Tensor::from_codes(DType::F6E3M2, [4], &[0b0_011_00, 0b1_100_10, 0, 1])?;
    /// assert_eq!(x.to_f64s(), [1.0, -3.0, 0.0, 0.0625]);
    /// assert_eq!(x.size_in_bytes(), 3);
    /// assert_eq!(x.codes()?, [0b0_011_00, 0b1_100_10, 0, 1]);
    /// # Ok::<(), opt_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the type is wider, the lengths differ, or a code is no `Bool`.
    pub fn from_codes(dtype: DType, shape: impl AsRef<[usize]>, codes: &[u8]) -> Result<Tensor> {
        let shape = shape.as_ref();
        narrow(dtype)?;
        if checked_len(shape)? != codes.len() {
            return Err(Error::shape(format!(
                "shape {shape:?} has not {} elements",
                codes.len()
            )));
        }
        if !dtype.is_packed() {
            return Tensor::from_buffer(dtype, shape, Buffer::from_slice(codes));
        }
        let mut buffer = Buffer::zeroed(dtype.bytes(codes.len()));
        write_codes(codes.iter().copied(), dtype.bits(), buffer.bytes_mut());
        Tensor::from_buffer(dtype, shape, buffer)
    }

    /// The codes of a type of 8 bits or fewer in row-major order, as [`Tensor::from_codes`] takes
    /// them.
    ///
    /// # Errors
    /// If the type is wider.
    pub fn codes(&self) -> Result<Vec<u8>> {
        narrow(self.dtype)?;
        if !self.dtype.is_packed() {
            return Ok(self.raw_codes());
        }
        let bits = self.dtype.bits();
        let bytes = self.storage.bytes();
        Ok((0..self.len()).map(|i| read_code(bytes, bits, i)).collect())
    }

    /// The bytes of a type of 8 bits.
    fn raw_codes(&self) -> Vec<u8> {
        let data = self.storage.bytes();
        self.offsets().map(|at| data[at]).collect()
    }

    /// The values of a narrow floating-point type.
    pub(super) fn minifloats(&self, format: MiniFloat) -> Vec<f64> {
        let table = format.table();
        let codes = self.codes().unwrap_or_default();
        codes
            .into_iter()
            .map(|code| table[usize::from(code)].to_f64())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_every_width_come_back_at_every_length() {
        for dtype in DType::ALL {
            if dtype.bits() > 8 || dtype == DType::Bool {
                continue;
            }
            for len in 0..19usize {
                let mask = (1u16 << dtype.bits()) - 1;
                let codes: Vec<u8> = (0..len)
                    .map(|i| ((i as u16 * 37 + 11) & mask) as u8)
                    .collect();
                let x = Tensor::from_codes(dtype, [len], &codes).unwrap();
                assert_eq!(x.size_in_bytes(), (len * dtype.bits()).div_ceil(8));
                assert_eq!(x.codes().unwrap(), codes, "{dtype} {len}");
                let values = x.to_f64s();
                if values.iter().all(|v| v.is_finite()) {
                    let back = Tensor::from_f64s(dtype, [len], &values).unwrap();
                    assert_eq!(back.codes().unwrap(), codes, "{dtype} {len}");
                }
            }
        }
        assert!(Tensor::from_codes(DType::F16, [1], &[0]).is_err());
        assert!(Tensor::from_codes(DType::U2, [2], &[0]).is_err());
        assert!(Tensor::pack(DType::F4E2M1, [1], &[0]).is_err());
        assert!(Tensor::pack(DType::I2, [1], &[2]).is_err());
    }

    /// The layout that ONNX's `raw_data` states for types of 2 and 6 bits.
    #[test]
    fn bits_lie_where_onnx_has_them() {
        let x = Tensor::pack(DType::I2, [5], &[-2, -1, 0, 1, -1]).unwrap();
        assert_eq!(x.bytes().unwrap(), [0b01_00_11_10, 0b11]);
        assert_eq!(x.unpack().unwrap().to_f64s(), [-2.0, -1.0, 0.0, 1.0, -1.0]);
        let [a, b, c, d] = [0x2Au8, 0x15, 0x3F, 0x01];
        let x = Tensor::from_codes(DType::F6E2M3, [4], &[a, b, c, d]).unwrap();
        let expected = [a | (b & 3) << 6, b >> 2 | (c & 15) << 4, c >> 4 | d << 2];
        assert_eq!(x.bytes().unwrap(), expected);
    }

    #[test]
    fn packed_entries_are_selected() {
        let x = Tensor::from_codes(DType::F6E2M3, [2, 3], &[0, 8, 16, 24, 31, 1]).unwrap();
        let y = x.select(1, &[2, 0]).unwrap();
        assert_eq!(y.to_f64s(), [2.0, 0.0, 0.125, 4.0]);
    }
}
