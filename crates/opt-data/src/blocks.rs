//! Elements that arrive one after the other, in number unknown.

use opt_core::tensor::Buffer;
use opt_core::{DType, Element};

use crate::{Result, Tensor};

/// Elements a block holds; the last is no multiple of the elements of an example.
const BLOCK: usize = 1 << 16;

/// A list that grows by blocks: while a plain vector grows it holds its content twice, and then up
/// to twice the room that it needs. This holds what it was given and at most one block more, and
/// twice that only while it becomes a tensor.
#[derive(Debug)]
pub(crate) struct Blocks<T> {
    full: Vec<Vec<T>>,
    last: Vec<T>,
}

impl<T> Default for Blocks<T> {
    fn default() -> Blocks<T> {
        Blocks {
            full: Vec::new(),
            last: Vec::new(),
        }
    }
}

impl<T: Element> Blocks<T> {
    pub(crate) fn len(&self) -> usize {
        self.full.len() * BLOCK + self.last.len()
    }

    pub(crate) fn push(&mut self, value: T) {
        if self.last.len() == BLOCK {
            let next = Vec::with_capacity(BLOCK);
            self.full.push(std::mem::replace(&mut self.last, next));
        }
        self.last.push(value);
    }

    /// The elements, to change.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.full.iter_mut().flatten().chain(&mut self.last)
    }

    /// A tensor of the elements; the shape has to have as many.
    pub(crate) fn into_tensor(self, shape: &[usize]) -> Result<Tensor> {
        let size = size_of::<T>();
        let mut buffer = Buffer::zeroed(self.len() * size);
        let mut rest = buffer.typed_mut::<T>();
        for block in self.full.into_iter().chain([self.last]) {
            let (head, tail) = rest.split_at_mut(block.len());
            head.copy_from_slice(&block);
            rest = tail;
        }
        let dtype: DType = T::DTYPE;
        Tensor::from_buffer(dtype, shape, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_blocks_become_one_tensor() {
        for n in [0, 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1] {
            let mut blocks = Blocks::default();
            (0..n).for_each(|v| blocks.push(v as i64));
            assert_eq!(blocks.len(), n);
            blocks.iter_mut().for_each(|v| *v += 1);
            let tensor = blocks.into_tensor(&[n]).unwrap();
            assert!(tensor.to_vec::<i64>().unwrap().into_iter().eq(1..=n as i64));
        }
    }
}
