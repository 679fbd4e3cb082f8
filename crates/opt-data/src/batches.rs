//! Batches of a data set.

use std::ops::Range;
use std::thread::Scope;

use opt_core::random::Philox;

use crate::prefetch::Prefetch;
use crate::{Dataset, Error, ErrorKind, Result, Tensor};

/// The batches of one epoch: an iterator over the fields of [`Dataset::batch`].
///
/// The order is a function of the seed and the epoch alone, so a run that stopped in the middle
/// of an epoch goes on with [`Batches::skip_to`].
///
/// ```
/// use opt_data::{Batches, digits};
///
/// let train = digits()?.train;
/// let mut seen = 0;
/// for batch in Batches::new(&train, 64)?.shuffled(0, 3) {
///     let batch = batch?;
///     let (images, labels) = (&batch[0], &batch[1]);
///     assert_eq!(images.shape()[0], labels.len());
///     seen += labels.len();
/// }
/// assert_eq!(seen, 1437);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Batches<'a> {
    data: &'a dyn Dataset,
    /// `None` is the order of the data set.
    order: Option<Vec<usize>>,
    batch_size: usize,
    drop_last: bool,
    next: usize,
}

impl std::fmt::Debug for Batches<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches")
            .field("examples", &self.data.len())
            .field("batch_size", &self.batch_size)
            .field("shuffled", &self.order.is_some())
            .field("drop_last", &self.drop_last)
            .field("next", &self.next)
            .finish()
    }
}

impl<'a> Batches<'a> {
    /// Batches of `batch_size` examples in the order of the data set; the last is smaller where
    /// the number of examples is no multiple.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if `batch_size` is 0; [`ErrorKind::Data`] if the data set is
    /// empty.
    pub fn new(data: &'a dyn Dataset, batch_size: usize) -> Result<Batches<'a>> {
        if batch_size == 0 {
            return Err(Error::invalid("a batch size of 0"));
        }
        if data.is_empty() {
            return Err(Error::new(ErrorKind::Data, "batches of an empty data set"));
        }
        Ok(Batches {
            data,
            order: None,
            batch_size,
            drop_last: false,
            next: 0,
        })
    }

    /// In a random order, drawn from a seed and the number of the epoch.
    #[must_use]
    pub fn shuffled(mut self, seed: u64, epoch: u64) -> Batches<'a> {
        self.order = Some(Philox::new(seed).permutation(epoch, self.data.len()));
        self
    }

    /// Leaves out the last batch where it is smaller than the others.
    #[must_use]
    pub fn drop_last(mut self, drop_last: bool) -> Batches<'a> {
        self.drop_last = drop_last;
        self
    }

    /// Goes on at a batch of the epoch, counted from 0.
    #[must_use]
    pub fn skip_to(mut self, batch: usize) -> Batches<'a> {
        self.next = batch;
        self
    }

    /// The number of batches in the whole epoch.
    pub fn count_all(&self) -> usize {
        if self.drop_last {
            self.data.len() / self.batch_size
        } else {
            self.data.len().div_ceil(self.batch_size)
        }
    }

    /// The same batches in the same order, read by a thread of their own while the caller works on
    /// earlier ones: up to `ahead` batches are in memory that the caller has not taken.
    ///
    /// The thread lives in a [scope](std::thread::scope), because it borrows the data set, and ends
    /// when the iterator is dropped.
    ///
    /// ```
    /// use opt_data::{Batches, digits};
    ///
    /// let train = digits()?.train;
    /// let seen = std::thread::scope(|scope| -> opt_data::Result<usize> {
    ///     let mut seen = 0;
    ///     for batch in Batches::new(&train, 64)?.shuffled(0, 3).prefetch(2, scope)? {
    ///         seen += batch?[1].len();
    ///     }
    ///     Ok(seen)
    /// })?;
    /// assert_eq!(seen, 1437);
    /// # Ok::<(), opt_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if `ahead` is 0; [`ErrorKind::Io`] if the system has no
    /// thread to give.
    pub fn prefetch<'scope>(
        self,
        ahead: usize,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<Prefetch<'scope>>
    where
        'a: 'scope,
    {
        Prefetch::start(self, ahead, scope)
    }

    fn range(&self, batch: usize) -> Range<usize> {
        let start = batch * self.batch_size;
        start..(start + self.batch_size).min(self.data.len())
    }

    /// The indices of the examples of a batch of the epoch, counted from 0; none past the end.
    pub fn indices(&self, batch: usize) -> Vec<usize> {
        if batch >= self.count_all() {
            return Vec::new();
        }
        let range = self.range(batch);
        match &self.order {
            Some(order) => order[range].to_vec(),
            None => range.collect(),
        }
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Vec<Tensor>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.count_all() {
            return None;
        }
        let batch = self.next;
        self.next += 1;
        let range = self.range(batch);
        Some(match &self.order {
            Some(order) => self.data.batch(&order[range]),
            None => self.data.batch(&range.collect::<Vec<_>>()),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.count_all().saturating_sub(self.next);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorDataset;

    fn numbered(n: usize) -> TensorDataset {
        let x: Vec<i64> = (0..n as i64).collect();
        TensorDataset::new(vec![Tensor::new([n], x).unwrap()]).unwrap()
    }

    fn all(batches: Batches<'_>) -> Vec<Vec<i64>> {
        batches.map(|b| b.unwrap()[0].to_vec().unwrap()).collect()
    }

    #[test]
    fn in_order_with_and_without_the_last() {
        let data = numbered(7);
        let batches = Batches::new(&data, 3).unwrap();
        assert_eq!(batches.len(), 3);
        assert_eq!(
            all(batches.clone()),
            [vec![0, 1, 2], vec![3, 4, 5], vec![6]]
        );
        let dropped = batches.drop_last(true);
        assert_eq!(dropped.len(), 2);
        assert_eq!(all(dropped), [[0, 1, 2], [3, 4, 5]]);
        assert_eq!(
            all(Batches::new(&data, 100).unwrap()),
            [[0, 1, 2, 3, 4, 5, 6]]
        );
    }

    #[test]
    fn shuffling_is_a_permutation_of_seed_and_epoch() {
        let data = numbered(20);
        let epoch = |seed, epoch| all(Batches::new(&data, 6).unwrap().shuffled(seed, epoch));
        assert_eq!(epoch(1, 0), epoch(1, 0));
        assert_ne!(epoch(1, 0), epoch(1, 1));
        assert_ne!(epoch(1, 0), epoch(2, 0));
        let mut flat = epoch(1, 0).concat();
        flat.sort_unstable();
        assert!(flat.into_iter().eq(0..20));
    }

    #[test]
    fn skipping_resumes_an_epoch() {
        let data = numbered(20);
        let batches = Batches::new(&data, 6).unwrap().shuffled(1, 0);
        let whole = all(batches.clone());
        let resumed = batches.clone().skip_to(2);
        assert_eq!(resumed.len(), 2);
        assert_eq!(all(resumed), whole[2..]);
        assert_eq!(all(batches.clone().skip_to(9)), Vec::<Vec<i64>>::new());
        let named: Vec<i64> = batches.indices(3).into_iter().map(|i| i as i64).collect();
        assert_eq!(named, whole[3]);
        assert!(batches.indices(4).is_empty());
    }

    #[test]
    fn bad_arguments_are_errors() {
        struct Empty;
        impl Dataset for Empty {
            fn len(&self) -> usize {
                0
            }
            fn get(&self, _: usize) -> Result<Vec<Tensor>> {
                unreachable!("no example is asked for")
            }
        }
        assert_eq!(Batches::new(&Empty, 1).unwrap_err().kind(), ErrorKind::Data);
        assert!(Batches::new(&numbered(1), 0).is_err());
    }
}
