//! 64-byte-aligned bytes.

use bytemuck::{Pod, Zeroable};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Chunk([u8; 64]);

/// An owned, zero-initialised, 64-byte-aligned run of bytes.
///
/// This is what tensors and backend buffers are made of; the alignment is that of a cache line
/// and of the widest vector register.
#[derive(Clone)]
pub struct Buffer {
    chunks: Vec<Chunk>,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Buffer {
        Buffer {
            chunks: bytemuck::zeroed_vec(len.div_ceil(64)),
            len,
        }
    }

    /// A buffer that holds a copy of a slice.
    pub fn from_slice<T: Pod>(data: &[T]) -> Buffer {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let mut buffer = Buffer::zeroed(bytes.len());
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.chunks)[..self.len]
    }

    /// The bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.chunks)[..self.len]
    }

    /// The bytes as elements; a remainder that fills no element is left out.
    pub fn typed<T: Pod>(&self) -> &[T] {
        let n = self.len / size_of::<T>();
        bytemuck::cast_slice(&self.bytes()[..n * size_of::<T>()])
    }

    /// The bytes as elements, to write; a remainder that fills no element is left out.
    pub fn typed_mut<T: Pod>(&mut self) -> &mut [T] {
        let n = self.len / size_of::<T>();
        bytemuck::cast_slice_mut(&mut self.bytes_mut()[..n * size_of::<T>()])
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}
