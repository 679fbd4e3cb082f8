//! 64-byte-aligned bytes, or bytes that somebody else owns.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytemuck::{Pod, Zeroable};
use bytes::Bytes;

use crate::{Error, ErrorKind, Result};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Chunk([u8; 64]);

/// A run of bytes: owned and 64-byte aligned, or [shared with their owner](Buffer::from_owner).
///
/// This is what tensors and backend buffers are made of; the alignment is that of a cache line
/// and of the widest vector register. Owned bytes are copied by a clone; foreign bytes are
/// shared by it, and copied into owned ones by the first write.
#[derive(Clone)]
pub struct Buffer {
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    Owned(Owned),
    Foreign {
        bytes: Bytes,
        /// A copy, made by the first reader that needs more alignment than the bytes have.
        aligned: OnceLock<Owned>,
    },
}

#[derive(Clone)]
struct Owned {
    chunks: Vec<Chunk>,
    len: usize,
}

impl Owned {
    fn zeroed(len: usize) -> Owned {
        Owned {
            chunks: bytemuck::zeroed_vec(len.div_ceil(64)),
            len,
        }
    }

    fn copy_of(bytes: &[u8]) -> Owned {
        let mut owned = Owned::zeroed(bytes.len());
        owned.bytes_mut().copy_from_slice(bytes);
        owned
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.chunks)[..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.chunks)[..self.len]
    }
}

/// An owner of bytes, as the `bytes` crate wants it.
struct Shared<T: ?Sized>(Arc<T>);

impl<T: AsRef<[u8]> + ?Sized> AsRef<[u8]> for Shared<T> {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

/// The bytes of as many whole elements of a type as there are.
const fn whole<T>(bytes: usize) -> usize {
    // Both hold for every element of a tensor; a cast of 64-byte-aligned bytes cannot fail then.
    const {
        assert!(size_of::<T>() > 0, "the element type has no size");
        assert!(align_of::<T>() <= 64, "the element type needs more than 64");
    }
    bytes - bytes % size_of::<T>()
}

impl Buffer {
    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Buffer {
        Buffer {
            storage: Storage::Owned(Owned::zeroed(len)),
        }
    }

    /// A buffer that holds a copy of a slice.
    pub fn from_slice<T: Pod>(data: &[T]) -> Buffer {
        Buffer {
            storage: Storage::Owned(Owned::copy_of(bytemuck::cast_slice(data))),
        }
    }

    /// A buffer over a range of somebody else's bytes, such as a memory-mapped file, without a
    /// copy; it keeps the owner alive.
    ///
    /// The bytes are only read. Two things copy them into owned, aligned memory, once: writing
    /// ([`bytes_mut`](Buffer::bytes_mut), [`typed_mut`](Buffer::typed_mut)), and
    /// [`typed`](Buffer::typed) of an element type that their address is
    /// [not aligned](Buffer::is_aligned_to) to. Nothing fails for the sake of alignment.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use opt_core::{DType, Tensor, tensor::Buffer};
    ///
    /// let file: Arc<Vec<u8>> = Arc::new(b"head\x00\x00\x80\x3f".to_vec());
    /// let buffer = Buffer::from_owner(file.clone(), 4..8)?;
    /// assert!(std::ptr::eq(buffer.bytes(), &file[4..8]));
    /// let one = Tensor::from_buffer(DType::F32, [], buffer)?;
    /// assert_eq!(one.item()?, 1.0);
    /// # Ok::<(), opt_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the range does not lie within the owner's bytes.
    pub fn from_owner<T>(owner: Arc<T>, range: Range<usize>) -> Result<Buffer>
    where
        T: AsRef<[u8]> + Send + Sync + ?Sized + 'static,
    {
        // Asks the owner for its bytes only once: an `AsRef` may answer differently every time.
        let all = Bytes::from_owner(Shared(owner));
        if range.start > range.end || range.end > all.len() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "the owner has {} bytes, the range {range:?} does not lie within",
                    all.len()
                ),
            ));
        }
        Ok(Buffer {
            storage: Storage::Foreign {
                bytes: all.slice(range),
                aligned: OnceLock::new(),
            },
        })
    }

    /// Whether the bytes are its own; those of [`from_owner`](Buffer::from_owner) are not until
    /// they are written.
    pub fn is_owned(&self) -> bool {
        matches!(self.storage, Storage::Owned(_))
    }

    /// Whether the bytes start at a multiple of `align`, so that elements of that alignment are
    /// read in place. Owned bytes do for every element type.
    pub fn is_aligned_to(&self, align: usize) -> bool {
        align != 0 && self.bytes().as_ptr().addr().is_multiple_of(align)
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        match &self.storage {
            Storage::Owned(owned) => owned.len,
            Storage::Foreign { bytes, .. } => bytes.len(),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Owned(owned) => owned.bytes(),
            Storage::Foreign { bytes, .. } => bytes,
        }
    }

    /// The bytes, to write; copies foreign ones first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        if let Storage::Foreign { bytes, aligned } = &mut self.storage {
            let owned = aligned.take().unwrap_or_else(|| Owned::copy_of(bytes));
            self.storage = Storage::Owned(owned);
        }
        match &mut self.storage {
            Storage::Owned(owned) => owned.bytes_mut(),
            Storage::Foreign { .. } => unreachable!("replaced by a copy above"),
        }
    }

    /// The bytes as elements; a remainder that fills no element is left out. Copies foreign bytes
    /// that are not aligned for `T`, the first time.
    ///
    /// A `T` without a size, or of an alignment above 64, does not compile.
    pub fn typed<T: Pod>(&self) -> &[T] {
        let end = whole::<T>(self.len());
        let bytes = match &self.storage {
            Storage::Foreign { bytes, aligned } if !self.is_aligned_to(align_of::<T>()) => {
                aligned.get_or_init(|| Owned::copy_of(bytes)).bytes()
            }
            _ => self.bytes(),
        };
        bytemuck::cast_slice(&bytes[..end])
    }

    /// The bytes as elements, to write; a remainder that fills no element is left out. Copies
    /// foreign bytes first.
    ///
    /// A `T` without a size, or of an alignment above 64, does not compile.
    pub fn typed_mut<T: Pod>(&mut self) -> &mut [T] {
        let end = whole::<T>(self.len());
        bytemuck::cast_slice_mut(&mut self.bytes_mut()[..end])
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let owner = if self.is_owned() { "" } else { ", shared" };
        write!(f, "Buffer({} bytes{owner})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Tensor};

    /// Bytes of which some start lies at every distance from a multiple of 64.
    fn foreign(shift: usize, len: usize) -> (Arc<Buffer>, Buffer) {
        let bytes: Vec<u8> = (0..200).collect();
        let owner = Arc::new(Buffer::from_slice(&bytes));
        let buffer = Buffer::from_owner(owner.clone(), shift..shift + len).unwrap();
        (owner, buffer)
    }

    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            self.bytes()
        }
    }

    #[test]
    fn every_alignment_reads_the_same_and_aligned_ones_in_place() {
        for shift in 0..64 {
            let (owner, buffer) = foreign(shift, 27);
            assert!(!buffer.is_owned());
            assert!(std::ptr::eq(buffer.bytes(), &owner.bytes()[shift..][..27]));
            let read: &[u32] = buffer.typed();
            assert_eq!(read.len(), 6);
            assert_eq!(bytemuck::cast_slice::<u32, u8>(read), &buffer.bytes()[..24]);
            let in_place = std::ptr::addr_eq(read.as_ptr(), buffer.bytes().as_ptr());
            assert_eq!(in_place, shift % 4 == 0, "shift {shift}");
            assert_eq!(in_place, buffer.is_aligned_to(4), "shift {shift}");
            assert_eq!(buffer.typed::<u128>().len(), 1);
            assert_eq!(buffer.typed::<u8>(), buffer.bytes());
        }
    }

    #[test]
    fn writing_copies_and_leaves_the_owner_alone() {
        for shift in [0, 1, 4] {
            let (owner, buffer) = foreign(shift, 16);
            let mut written = buffer.clone();
            assert!(!written.is_owned(), "a clone shares");
            written.typed::<f64>();
            written.typed_mut::<u32>()[0] = 0xffff_ffff;
            assert!(written.is_owned() && written.is_aligned_to(64));
            assert_eq!(written.bytes()[..4], [255; 4]);
            assert_eq!(written.bytes()[4..], buffer.bytes()[4..]);
            assert_eq!(owner.bytes()[shift], shift as u8);
        }
    }

    #[test]
    fn ranges_outside_the_owner_are_refused() {
        let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(vec![0u8; 8]);
        let backwards = Range { start: 5, end: 3 };
        for range in [0..9, 9..9, 8..usize::MAX, backwards] {
            let error = Buffer::from_owner(owner.clone(), range).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
        let empty = Buffer::from_owner(owner, 8..8).unwrap();
        assert!(empty.is_empty() && empty.typed::<f64>().is_empty());
    }

    #[test]
    fn an_owner_that_changes_its_answer_is_asked_once() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        struct Fickle(AtomicUsize, Vec<u8>);
        impl AsRef<[u8]> for Fickle {
            fn as_ref(&self) -> &[u8] {
                match self.0.fetch_add(1, Ordering::Relaxed) {
                    0 => &self.1,
                    _ => &[],
                }
            }
        }
        let owner = Arc::new(Fickle(AtomicUsize::new(0), vec![7; 8]));
        let buffer = Buffer::from_owner(owner, 4..8).unwrap();
        assert_eq!(buffer.bytes(), [7; 4]);
        assert_eq!(buffer.typed::<u32>(), [0x0707_0707]);
    }

    #[test]
    fn tensors_over_foreign_bytes_are_tensors() {
        let values = [1.5f32, -2.0, 3.25, 4.0];
        for shift in 0..8 {
            let mut bytes = vec![0u8; shift];
            bytes.extend_from_slice(bytemuck::cast_slice(&values));
            let owner = Arc::new(Buffer::from_slice(&bytes));
            let buffer = Buffer::from_owner(owner.clone(), shift..shift + 16).unwrap();
            let mut t = Tensor::from_buffer(DType::F32, [2, 2], buffer).unwrap();
            assert_eq!(t.as_slice::<f32>().unwrap(), values);
            let bytes = t.bytes().unwrap();
            assert_eq!(bytemuck::cast_slice::<u8, f32>(bytes), values);
            let in_place = std::ptr::eq(bytes, &owner.bytes()[shift..]);
            assert_eq!(in_place, shift % 4 == 0, "shift {shift}");
            let turned = t.transpose(&[1, 0]).unwrap();
            assert_eq!(turned.to_vec::<f32>().unwrap(), [1.5, 3.25, -2.0, 4.0]);
            t.as_slice_mut::<f32>().unwrap()[0] = 9.0;
            assert_eq!(t.to_vec::<f32>().unwrap(), [9.0, -2.0, 3.25, 4.0]);
            assert_eq!(turned.item().ok(), None);
            let unchanged: &[u8] = bytemuck::cast_slice(&values);
            assert_eq!(&owner.bytes()[shift..], unchanged);
        }
    }

    #[test]
    fn buffers_cross_threads() {
        fn both<T: Send + Sync>() {}
        both::<Buffer>();
    }
}
