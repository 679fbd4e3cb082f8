//! Host tensors: a dtype, a shape, strides and shared bytes.

mod dtype;
mod minifloat;
mod packed;
mod storage;
#[cfg(feature = "ndarray")]
mod with_ndarray;

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

pub use dtype::{DType, Element};
pub use minifloat::MiniFloat;
pub use packed::{read_code, write_codes};
pub use storage::Buffer;

use crate::{Error, Result};

/// A list of dimension sizes that fits tensors of up to rank 4 without allocating.
pub type Dims = SmallVec<[usize; 4]>;

/// An n-dimensional array on the host.
///
/// A tensor is a view into shared bytes: cloning, slicing and transposing copy nothing. Writing
/// ([`Tensor::as_slice_mut`]) copies first when the bytes are shared.
///
/// ```
/// use opt_core::{DType, Tensor};
///
/// let x = Tensor::new([2, 3], vec![1f32, 2., 3., 4., 5., 6.])?;
/// assert_eq!(x.dtype(), DType::F32);
/// let t = x.transpose(&[1, 0])?;
/// assert_eq!(t.shape(), [3, 2]);
/// assert_eq!(t.to_vec::<f32>()?, [1., 4., 2., 5., 3., 6.]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Dims,
    /// Strides in elements; always the contiguous ones for packed dtypes.
    strides: SmallVec<[isize; 4]>,
    /// Offset of the first element, in elements.
    offset: usize,
    storage: Arc<Buffer>,
}

/// The number of elements of a shape, or an error where it overflows.
pub(crate) fn checked_len(shape: &[usize]) -> Result<usize> {
    // Strides are products too, so that an axis of size 0 must not hide others that overflow.
    let mut bound = 1usize;
    for &d in shape {
        bound = bound
            .checked_mul(d.max(1))
            .filter(|&l| l <= isize::MAX as usize / 8)
            .ok_or_else(|| Error::shape(format!("shape {shape:?} has too many elements")))?;
    }
    Ok(shape.iter().product())
}

/// The row-major strides of a shape, in elements.
pub fn contiguous_strides(shape: &[usize]) -> SmallVec<[isize; 4]> {
    let mut strides: SmallVec<[isize; 4]> = smallvec::smallvec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * shape[i + 1].max(1) as isize;
    }
    strides
}

impl Tensor {
    /// A tensor from its elements in row-major order.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if `data` has not as many elements as `shape`.
    pub fn new<T: Element>(shape: impl AsRef<[usize]>, data: impl AsRef<[T]>) -> Result<Tensor> {
        let (shape, data) = (shape.as_ref(), data.as_ref());
        let len = checked_len(shape)?;
        if len != data.len() {
            return Err(Error::shape(format!(
                "shape {shape:?} has {len} elements, but {} were given",
                data.len()
            )));
        }
        Tensor::from_buffer(T::DTYPE, shape, Buffer::from_slice(data))
    }

    /// A boolean tensor from its elements in row-major order.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_bools(shape: impl AsRef<[usize]>, data: impl AsRef<[bool]>) -> Result<Tensor> {
        let bytes: Vec<u8> = data.as_ref().iter().map(|&b| u8::from(b)).collect();
        let mut tensor = Tensor::new(shape, bytes)?;
        tensor.dtype = DType::Bool;
        Ok(tensor)
    }

    /// A tensor over row-major bytes, without a copy but where a buffer over
    /// [somebody else's bytes](Buffer::from_owner) is not aligned for the dtype.
    ///
    /// # Errors
    /// If the buffer is shorter than the shape and dtype need, or a `Bool` byte is neither 0 nor 1.
    pub fn from_buffer(dtype: DType, shape: impl AsRef<[usize]>, buffer: Buffer) -> Result<Tensor> {
        Tensor::from_shared(dtype, shape, Arc::new(buffer))
    }

    /// A tensor over shared row-major bytes, without a copy but where they are not aligned for the
    /// dtype, as in [`Tensor::from_buffer`]; backends use it to hand out results.
    ///
    /// # Errors
    /// As [`Tensor::from_buffer`].
    pub fn from_shared(
        dtype: DType,
        shape: impl AsRef<[usize]>,
        storage: Arc<Buffer>,
    ) -> Result<Tensor> {
        let shape = shape.as_ref();
        let len = checked_len(shape)?;
        let need = dtype.bytes(len);
        // Backends read `Tensor::bytes` as elements.
        let storage = match storage.is_aligned_to(dtype.bits().div_ceil(8)) {
            true => storage,
            false => Arc::new(Buffer::from_slice(storage.bytes())),
        };
        if storage.len() < need {
            return Err(Error::shape(format!(
                "{dtype}{shape:?} needs {need} bytes, the buffer has {}",
                storage.len()
            )));
        }
        if dtype == DType::Bool && storage.bytes()[..need].iter().any(|&b| b > 1) {
            return Err(Error::dtype(
                "a bool tensor holds a byte other than 0 and 1",
            ));
        }
        Ok(Tensor {
            dtype,
            strides: contiguous_strides(shape),
            shape: shape.into(),
            offset: 0,
            storage,
        })
    }

    /// A tensor of rank 0.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::new([], [value]).expect("one element fits rank 0")
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// If the shape has too many elements to address.
    pub fn zeros(dtype: DType, shape: impl AsRef<[usize]>) -> Result<Tensor> {
        let len = checked_len(shape.as_ref())?;
        Tensor::from_buffer(dtype, shape, Buffer::zeroed(dtype.bytes(len)))
    }

    /// A tensor with one value everywhere, converted to `dtype` as [`Tensor::cast`] does.
    ///
    /// # Errors
    /// If the shape has too many elements to address.
    pub fn full(dtype: DType, shape: impl AsRef<[usize]>, value: f64) -> Result<Tensor> {
        let shape = shape.as_ref();
        let len = checked_len(shape)?;
        Tensor::from_f64s(dtype, shape, &vec![value; len])
    }

    /// A tensor of any dtype from `f64` values in row-major order, converted as
    /// [`Tensor::cast`] does; non-zero is true.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_f64s(dtype: DType, shape: impl AsRef<[usize]>, data: &[f64]) -> Result<Tensor> {
        fn all<T: Element>(shape: &[usize], data: &[f64]) -> Result<Tensor> {
            Tensor::new(
                shape,
                data.iter().map(|&v| T::from_f64(v)).collect::<Vec<T>>(),
            )
        }
        let shape = shape.as_ref();
        match dtype {
            DType::F32 => all::<f32>(shape, data),
            DType::F64 => all::<f64>(shape, data),
            DType::F16 => all::<half::f16>(shape, data),
            DType::BF16 => all::<half::bf16>(shape, data),
            DType::I64 => all::<i64>(shape, data),
            DType::I32 => all::<i32>(shape, data),
            DType::I8 => all::<i8>(shape, data),
            DType::U8 => all::<u8>(shape, data),
            DType::Bool => {
                Tensor::from_bools(shape, data.iter().map(|&v| v != 0.0).collect::<Vec<_>>())
            }
            DType::I4 | DType::U4 | DType::I2 | DType::U2 => {
                let (lo, hi) = dtype.int_range()?;
                let ints: Vec<i8> = data
                    .iter()
                    .map(|&v| (v as i32).clamp(lo, hi) as i8)
                    .collect();
                Tensor::pack(dtype, shape, &ints)
            }
            DType::F8E4M3
            | DType::F8E5M2
            | DType::F8E8M0
            | DType::F6E2M3
            | DType::F6E3M2
            | DType::F4E2M1 => {
                let format = MiniFloat::of(dtype).expect("a narrow float");
                let codes: Vec<u8> = data.iter().map(|&v| format.encode(v)).collect();
                Tensor::from_codes(dtype, shape, &codes)
            }
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The size of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The strides, in elements.
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// Bytes its elements take when stored contiguously.
    pub fn size_in_bytes(&self) -> usize {
        self.dtype.bytes(self.len())
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expect = 1isize;
        for (&d, &s) in self.shape.iter().zip(&self.strides).rev() {
            if d != 1 && s != expect {
                return self.is_empty();
            }
            expect *= d as isize;
        }
        true
    }

    /// The same elements in row-major order without gaps; copies only where they are not.
    pub fn contiguous(&self) -> Tensor {
        if self.is_contiguous() {
            return self.clone();
        }
        let size = self.dtype.bits() / 8;
        let mut out = Buffer::zeroed(self.size_in_bytes());
        let source = self.storage.bytes();
        let target = out.bytes_mut();
        for (i, at) in self.offsets().enumerate() {
            target[i * size..][..size].copy_from_slice(&source[at * size..][..size]);
        }
        Tensor {
            dtype: self.dtype,
            shape: self.shape.clone(),
            strides: contiguous_strides(&self.shape),
            offset: 0,
            storage: Arc::new(out),
        }
    }

    /// Storage offsets of the elements in row-major order.
    fn offsets(&self) -> impl Iterator<Item = usize> + '_ {
        let mut index: Dims = smallvec::smallvec![0; self.rank()];
        let mut at = self.offset as isize;
        (0..self.len()).map(move |_| {
            let now = at as usize;
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] * self.shape[axis] as isize;
                index[axis] = 0;
            }
            now
        })
    }

    fn expect_dtype(&self, dtype: DType) -> Result<()> {
        let bool_as_u8 = self.dtype == DType::Bool && dtype == DType::U8;
        if self.dtype != dtype && !bool_as_u8 {
            return Err(Error::dtype(format!(
                "expected a tensor of {dtype}, found {}; use `cast`",
                self.dtype
            )));
        }
        Ok(())
    }

    /// The elements of a contiguous tensor.
    ///
    /// # Errors
    /// If `T` is not its dtype (`u8` reads `Bool` too), or it is not contiguous: call
    /// [`Tensor::contiguous`] first.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.expect_dtype(T::DTYPE)?;
        if !self.is_contiguous() {
            return Err(Error::shape(
                "the tensor is a strided view; call `contiguous` first",
            ));
        }
        Ok(&self.storage.typed::<T>()[self.offset..][..self.len()])
    }

    /// The elements in row-major order, to write; copies first if the bytes are shared or strided.
    ///
    /// # Errors
    /// If `T` is not its dtype.
    pub fn as_slice_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.expect_dtype(T::DTYPE)?;
        if !self.is_contiguous() {
            *self = self.contiguous();
        }
        let (offset, len) = (self.offset, self.len());
        let buffer = Arc::make_mut(&mut self.storage);
        Ok(&mut buffer.typed_mut::<T>()[offset..][..len])
    }

    /// The bytes of a contiguous tensor in row-major order (little-endian on every supported
    /// machine; packed dtypes as stored). They are aligned for the dtype.
    ///
    /// # Errors
    /// If it is not contiguous.
    pub fn bytes(&self) -> Result<&[u8]> {
        if !self.is_contiguous() {
            return Err(Error::shape(
                "the tensor is a strided view; call `contiguous` first",
            ));
        }
        let start = self.dtype.bytes(self.offset);
        Ok(&self.storage.bytes()[start..][..self.size_in_bytes()])
    }

    /// The bytes in row-major order, to write, if they are contiguous and nobody else holds them.
    pub(crate) fn own_bytes_mut(&mut self) -> Option<&mut [u8]> {
        if !self.is_contiguous() {
            return None;
        }
        let (start, len) = (self.dtype.bytes(self.offset), self.size_in_bytes());
        let buffer = Arc::get_mut(&mut self.storage).filter(|buffer| buffer.is_owned())?;
        Some(&mut buffer.bytes_mut()[start..][..len])
    }

    /// The memory, if it holds this tensor's elements in row-major order and nothing else, and
    /// nobody else holds it.
    pub(crate) fn own_buffer_mut(&mut self) -> Option<&mut Buffer> {
        let whole = self.is_contiguous() && self.offset == 0;
        let len = self.size_in_bytes();
        let fits = |buffer: &&mut Buffer| whole && buffer.is_owned() && buffer.len() == len;
        Arc::get_mut(&mut self.storage).filter(fits)
    }

    /// A copy of the elements in row-major order.
    ///
    /// # Errors
    /// If `T` is not its dtype.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.expect_dtype(T::DTYPE)?;
        if let Ok(slice) = self.as_slice::<T>() {
            return Ok(slice.to_vec());
        }
        let data = self.storage.typed::<T>();
        Ok(self.offsets().map(|at| data[at]).collect())
    }

    /// A copy of the elements of a boolean tensor.
    ///
    /// # Errors
    /// If the dtype is not `Bool`.
    pub fn to_vec_bool(&self) -> Result<Vec<bool>> {
        self.expect_dtype(DType::Bool)?;
        Ok(self.to_vec::<u8>()?.into_iter().map(|b| b != 0).collect())
    }

    /// A copy of the elements as `f64`, whatever the dtype.
    pub fn to_f64s(&self) -> Vec<f64> {
        fn all<T: Element>(t: &Tensor) -> Vec<f64> {
            let data = t.storage.typed::<T>();
            t.offsets().map(|at| data[at].to_f64()).collect()
        }
        match self.dtype {
            DType::F32 => all::<f32>(self),
            DType::F64 => all::<f64>(self),
            DType::F16 => all::<half::f16>(self),
            DType::BF16 => all::<half::bf16>(self),
            DType::I64 => all::<i64>(self),
            DType::I32 => all::<i32>(self),
            DType::I8 => all::<i8>(self),
            DType::U8 | DType::Bool => all::<u8>(self),
            DType::I4 | DType::U4 | DType::I2 | DType::U2 => {
                self.unpacked().into_iter().map(f64::from).collect()
            }
            DType::F8E4M3
            | DType::F8E5M2
            | DType::F8E8M0
            | DType::F6E2M3
            | DType::F6E3M2
            | DType::F4E2M1 => self.minifloats(MiniFloat::of(self.dtype).expect("a narrow float")),
        }
    }

    /// The one element of a tensor that has exactly one.
    ///
    /// # Errors
    /// If it has another number of elements.
    pub fn item(&self) -> Result<f64> {
        match self.to_f64s()[..] {
            [value] => Ok(value),
            _ => Err(Error::shape(format!(
                "expected one element, found shape {:?}",
                self.shape()
            ))),
        }
    }

    /// Converts the elements: floats round to nearest, floats to integers truncate toward zero
    /// and saturate (NaN gives 0), non-zero is true; to floats of 8 bits and fewer as
    /// [`MiniFloat::encode`] does it.
    pub fn cast(&self, dtype: DType) -> Tensor {
        if dtype == self.dtype {
            return self.clone();
        }
        if self.dtype == DType::I64 && dtype == DType::I32 {
            let data: Vec<i32> = self
                .to_vec::<i64>()
                .expect("checked dtype")
                .into_iter()
                .map(|v| v.clamp(i32::MIN.into(), i32::MAX.into()) as i32)
                .collect();
            return Tensor::new(self.shape(), data).expect("same shape");
        }
        Tensor::from_f64s(dtype, self.shape(), &self.to_f64s()).expect("same shape")
    }

    /// The same elements in another shape; copies only a strided view.
    ///
    /// # Errors
    /// If the new shape has another number of elements.
    pub fn reshape(&self, shape: impl AsRef<[usize]>) -> Result<Tensor> {
        let shape = shape.as_ref();
        if checked_len(shape)? != self.len() {
            return Err(Error::shape(format!(
                "cannot reshape {:?} to {shape:?}: {} elements against {}",
                self.shape(),
                self.len(),
                checked_len(shape)?
            )));
        }
        let mut out = self.contiguous();
        out.strides = contiguous_strides(shape);
        out.shape = shape.into();
        Ok(out)
    }

    /// A view with its axes in another order: axis `i` of the result is axis `perm[i]` of this.
    ///
    /// # Errors
    /// If `perm` is no permutation of the axes, or the dtype is packed.
    pub fn transpose(&self, perm: &[usize]) -> Result<Tensor> {
        let mut seen: Dims = perm.into();
        seen.sort_unstable();
        if !seen.iter().copied().eq(0..self.rank()) {
            return Err(Error::invalid(format!(
                "{perm:?} is no permutation of {} axes",
                self.rank()
            )));
        }
        self.refuse_packed("transpose")?;
        let mut out = self.clone();
        for (i, &p) in perm.iter().enumerate() {
            out.shape[i] = self.shape[p];
            out.strides[i] = self.strides[p];
        }
        Ok(out)
    }

    /// A view of `start..end` along an axis.
    ///
    /// # Errors
    /// If the range or axis is out of bounds, or the dtype is packed.
    pub fn slice(&self, axis: usize, start: usize, end: usize) -> Result<Tensor> {
        if axis >= self.rank() || start > end || end > self.shape[axis] {
            return Err(Error::invalid(format!(
                "cannot slice {start}..{end} of axis {axis} of shape {:?}",
                self.shape()
            )));
        }
        self.refuse_packed("slice")?;
        let mut out = self.clone();
        out.shape[axis] = end - start;
        // A view of nothing has no first element to point at.
        if !out.is_empty() {
            out.offset = (self.offset as isize + self.strides[axis] * start as isize) as usize;
        }
        Ok(out)
    }

    /// A copy of the entries `indices` along an axis, in that order.
    ///
    /// # Errors
    /// If an index or the axis is out of bounds.
    pub fn select(&self, axis: usize, indices: &[usize]) -> Result<Tensor> {
        if axis >= self.rank() {
            return Err(Error::invalid(format!(
                "axis {axis} of a tensor of rank {}",
                self.rank()
            )));
        }
        if let Some(bad) = indices.iter().find(|&&i| i >= self.shape[axis]) {
            return Err(Error::invalid(format!(
                "index {bad} along axis {axis} of shape {:?}",
                self.shape()
            )));
        }
        if self.dtype.is_packed() {
            let wide = Tensor::new(self.shape(), self.codes()?)?.select(axis, indices)?;
            return Tensor::from_codes(self.dtype, wide.shape(), wide.as_slice::<u8>()?);
        }
        let source = self.contiguous();
        let bytes = source.bytes()?;
        let outer: usize = self.shape[..axis].iter().product();
        let row = self.shape[axis + 1..].iter().product::<usize>() * (self.dtype.bits() / 8);
        let mut shape = self.shape.clone();
        shape[axis] = indices.len();
        let mut out = Buffer::zeroed(outer * indices.len() * row);
        let target = out.bytes_mut();
        for o in 0..outer {
            for (j, &i) in indices.iter().enumerate() {
                target[(o * indices.len() + j) * row..][..row]
                    .copy_from_slice(&bytes[(o * self.shape[axis] + i) * row..][..row]);
            }
        }
        Tensor::from_buffer(self.dtype, shape, out)
    }

    /// A view repeated to a larger shape by numpy's broadcasting rules.
    ///
    /// # Errors
    /// If the shapes do not broadcast, or the dtype is packed.
    pub fn broadcast_to(&self, shape: impl AsRef<[usize]>) -> Result<Tensor> {
        let shape = shape.as_ref();
        self.refuse_packed("broadcast")?;
        let fail = || Error::shape(format!("cannot broadcast {:?} to {shape:?}", self.shape()));
        let lead = shape.len().checked_sub(self.rank()).ok_or_else(fail)?;
        let mut out = self.clone();
        out.shape = shape.into();
        out.strides = smallvec::smallvec![0; shape.len()];
        for (i, &d) in self.shape.iter().enumerate() {
            if d == shape[lead + i] {
                out.strides[lead + i] = self.strides[i];
            } else if d != 1 {
                return Err(fail());
            }
        }
        Ok(out)
    }

    /// Concatenates tensors along an axis.
    ///
    /// # Errors
    /// If there are none, or their dtypes or other dimensions differ.
    pub fn concat(parts: &[Tensor], axis: usize) -> Result<Tensor> {
        let first = parts
            .first()
            .ok_or_else(|| Error::invalid("no tensors to concatenate"))?;
        if axis >= first.rank() {
            return Err(Error::invalid(format!(
                "axis {axis} of rank {}",
                first.rank()
            )));
        }
        first.refuse_packed("concat")?;
        let mut shape = first.shape.clone();
        shape[axis] = 0;
        for part in parts {
            let same = part.dtype == first.dtype
                && part.rank() == first.rank()
                && (0..first.rank()).all(|a| a == axis || part.shape[a] == first.shape[a]);
            if !same {
                return Err(Error::shape(format!(
                    "cannot concatenate {first:?} and {part:?} along axis {axis}"
                )));
            }
            shape[axis] += part.shape[axis];
        }
        let outer: usize = shape[..axis].iter().product();
        let size = first.dtype.bits() / 8;
        let inner = shape[axis + 1..].iter().product::<usize>() * size;
        let mut out = Buffer::zeroed(checked_len(&shape)? * size);
        let mut at = 0;
        for part in parts {
            let part = part.contiguous();
            let bytes = part.bytes()?;
            let row = part.shape[axis] * inner;
            for o in 0..outer {
                out.bytes_mut()[o * shape[axis] * inner + at..][..row]
                    .copy_from_slice(&bytes[o * row..][..row]);
            }
            at += row;
        }
        Tensor::from_buffer(first.dtype, shape, out)
    }

    /// Whether every element is finite; integer tensors always are.
    pub fn is_finite(&self) -> bool {
        self.dtype.is_int()
            || self.dtype == DType::Bool
            || self.to_f64s().iter().all(|v| v.is_finite())
    }

    /// Takes the bytes out if this tensor is their only owner and covers them from the start;
    /// backends reuse result buffers through it.
    pub fn into_buffer(self) -> Option<Buffer> {
        if self.offset != 0 || !self.is_contiguous() {
            return None;
        }
        Arc::try_unwrap(self.storage).ok()
    }

    fn refuse_packed(&self, what: &str) -> Result<()> {
        if self.dtype.is_packed() {
            return Err(Error::unsupported(format!(
                "cannot {what} packed {}; take its `codes`",
                self.dtype
            )));
        }
        Ok(())
    }
}

impl PartialEq for Tensor {
    /// Same dtype, shape and elements (as numbers: -0 equals 0, NaN equals nothing).
    fn eq(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && {
            if self.dtype == DType::I64 {
                self.to_vec::<i64>().ok() == other.to_vec::<i64>().ok()
            } else {
                self.to_f64s() == other.to_f64s()
            }
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, &self.shape[..])?;
        if self.len() <= 16 {
            write!(f, " {:?}", self.to_f64s())?;
        }
        Ok(())
    }
}

impl<T: Element> From<T> for Tensor {
    fn from(value: T) -> Tensor {
        Tensor::scalar(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_share_bytes_and_writes_copy() {
        let x = Tensor::new([2, 3], vec![0f32, 1., 2., 3., 4., 5.]).unwrap();
        let mut row = x.slice(0, 1, 2).unwrap();
        assert!(Arc::ptr_eq(&x.storage, &row.storage));
        row.as_slice_mut::<f32>().unwrap()[0] = 9.0;
        assert_eq!(row.to_vec::<f32>().unwrap(), [9., 4., 5.]);
        assert_eq!(x.to_vec::<f32>().unwrap(), [0., 1., 2., 3., 4., 5.]);
    }

    #[test]
    fn strided_views_materialise_in_row_major_order() {
        let x = Tensor::new([2, 3, 2], (0..12).collect::<Vec<i32>>()).unwrap();
        let t = x.transpose(&[2, 0, 1]).unwrap();
        assert!(!t.is_contiguous());
        assert!(t.as_slice::<i32>().is_err());
        assert_eq!(
            t.to_vec::<i32>().unwrap(),
            [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]
        );
        assert_eq!(
            t.contiguous().as_slice::<i32>().unwrap(),
            t.to_vec::<i32>().unwrap()
        );
        assert_eq!(
            t.slice(1, 1, 2).unwrap().to_vec::<i32>().unwrap(),
            [6, 8, 10, 7, 9, 11]
        );
    }

    #[test]
    fn wrong_shapes_and_dtypes_are_errors() {
        assert!(Tensor::new([2, 2], [1f32]).is_err());
        assert!(Tensor::new([usize::MAX, 2], [1f32]).is_err());
        assert!(Tensor::zeros(DType::F32, [0, 1 << 40, 1 << 40]).is_err());
        assert!(Tensor::scalar(1f32).as_slice::<f64>().is_err());
        let x = Tensor::zeros(DType::F32, [2, 3]).unwrap();
        assert!(x.transpose(&[0, 0]).is_err());
        assert!(x.slice(1, 2, 4).is_err());
        assert!(
            x.slice(1, 3, 3)
                .unwrap()
                .as_slice::<f32>()
                .unwrap()
                .is_empty()
        );
        assert!(x.reshape([5]).is_err());
        assert!(x.broadcast_to([3, 3]).is_err());
        assert!(Tensor::from_buffer(DType::Bool, [1], Buffer::from_slice(&[7u8])).is_err());
    }

    #[test]
    fn casts_round_saturate_and_truncate() {
        let x = Tensor::new([5], [1.9f32, -1.9, 300.0, f32::NAN, 0.0]).unwrap();
        assert_eq!(
            x.cast(DType::I8).to_vec::<i8>().unwrap(),
            [1, -1, 127, 0, 0]
        );
        assert_eq!(x.cast(DType::U8).to_vec::<u8>().unwrap(), [1, 0, 255, 0, 0]);
        assert_eq!(
            x.cast(DType::Bool).to_vec_bool().unwrap(),
            [true, true, true, true, false]
        );
    }

    #[test]
    fn select_concat_broadcast() {
        let x = Tensor::new([2, 3], [0i64, 1, 2, 3, 4, 5]).unwrap();
        let s = x.select(1, &[2, 0]).unwrap();
        assert_eq!(s.to_vec::<i64>().unwrap(), [2, 0, 5, 3]);
        let c = Tensor::concat(&[x.clone(), s], 1).unwrap();
        assert_eq!(c.to_vec::<i64>().unwrap(), [0, 1, 2, 2, 0, 3, 4, 5, 5, 3]);
        let b = Tensor::new([2, 1], [1i64, 2])
            .unwrap()
            .broadcast_to([2, 2, 2])
            .unwrap();
        assert_eq!(b.to_vec::<i64>().unwrap(), [1, 1, 2, 2, 1, 1, 2, 2]);
    }
}
