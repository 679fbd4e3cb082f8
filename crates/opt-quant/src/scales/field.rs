//! Which entries of a tensor share a factor.

/// Factors that are known to be equal, as a union-find over numbers. Number 0 is the factor that
/// has to stay 1.
#[derive(Debug, Clone)]
pub(crate) struct Labels {
    parent: Vec<u32>,
}

/// No field has more entries; no weight's channels or bias's entries are as many.
const MOST_ENTRIES: usize = 1 << 22;

/// The factor that has to stay 1.
pub(crate) const FIXED: u32 = 0;

impl Labels {
    pub(crate) fn new() -> Labels {
        Labels {
            parent: vec![FIXED],
        }
    }

    /// A factor of its own.
    pub(crate) fn fresh(&mut self) -> u32 {
        let label = self.parent.len() as u32;
        self.parent.push(label);
        label
    }

    /// The number that stands for all that are equal to this one; the smallest of them, so that
    /// what is fixed is [`FIXED`].
    pub(crate) fn root(&self, mut label: u32) -> u32 {
        while self.parent[label as usize] != label {
            label = self.parent[label as usize];
        }
        label
    }

    fn compress(&mut self, mut label: u32) -> u32 {
        while self.parent[label as usize] != label {
            let up = self.parent[self.parent[label as usize] as usize];
            self.parent[label as usize] = up;
            label = up;
        }
        label
    }

    /// Makes two factors one.
    pub(crate) fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.compress(a), self.compress(b));
        let (low, high) = (a.min(b), a.max(b));
        self.parent[high as usize] = low;
    }

    /// Shortens all ways to roots.
    pub(crate) fn flatten(&mut self) {
        for i in 0..self.parent.len() as u32 {
            let root = self.root(i);
            self.parent[i as usize] = root;
        }
    }

    /// How many numbers there are.
    pub(crate) fn len(&self) -> usize {
        self.parent.len()
    }
}

/// A number for each entry of a tensor, row-major. An axis of size 1 stands for any size: the
/// entries along it share their numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Field {
    pub(crate) shape: Vec<usize>,
    pub(crate) labels: Vec<u32>,
}

impl Field {
    /// One number everywhere.
    pub(crate) fn uniform(rank: usize, label: u32) -> Field {
        Field {
            shape: vec![1; rank],
            labels: vec![label],
        }
    }

    /// New numbers along one axis.
    pub(crate) fn along(labels: &mut Labels, rank: usize, axis: usize, size: usize) -> Field {
        let mut shape = vec![1; rank];
        shape[axis] = size;
        Field {
            shape,
            labels: (0..size).map(|_| labels.fresh()).collect(),
        }
    }

    pub(crate) fn rank(&self) -> usize {
        self.shape.len()
    }

    pub(crate) fn is_fixed(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|&l| labels.root(l) == FIXED)
    }

    /// Makes all of its factors 1.
    pub(crate) fn fix(&self, labels: &mut Labels) {
        self.labels.iter().for_each(|&l| labels.join(l, FIXED));
    }

    /// The number at an index of a tensor of the same rank.
    pub(crate) fn at(&self, index: &[usize]) -> u32 {
        let mut place = 0;
        for (&i, &n) in index.iter().zip(&self.shape) {
            place = place * n + if n == 1 { 0 } else { i };
        }
        self.labels[place]
    }

    /// A field of another shape, whose entry is the number at an index of this one.
    pub(crate) fn map(&self, shape: Vec<usize>, from: impl Fn(&[usize], &mut Vec<usize>)) -> Field {
        let mut source = Vec::with_capacity(self.rank());
        let mut labels = Vec::with_capacity(shape.iter().product());
        for_each_index(&shape, |index| {
            source.clear();
            from(index, &mut source);
            labels.push(self.at(&source));
        });
        Field { shape, labels }
    }

    /// The same with axes of size 1 in front, as numpy broadcasts.
    pub(crate) fn lead(&self, rank: usize) -> Field {
        let mut shape = vec![1; rank.saturating_sub(self.rank())];
        shape.extend(&self.shape);
        Field {
            shape,
            labels: self.labels.clone(),
        }
    }

    /// The same with its numbers written out to sizes that it had 1 for.
    pub(crate) fn spread(&self, shape: &[usize]) -> Field {
        self.map(shape.to_vec(), |index, source| source.extend(index))
    }

    /// Joins the numbers along all axes but those to keep.
    pub(crate) fn only(&self, labels: &mut Labels, keep: impl Fn(usize) -> bool) -> Field {
        let sizes = self.shape.iter().enumerate();
        let shape: Vec<usize> = sizes.map(|(a, &n)| if keep(a) { n } else { 1 }).collect();
        let mut target = Field {
            labels: vec![u32::MAX; shape.iter().product()],
            shape,
        };
        for_each_index(&self.shape, |index| {
            let mut place = 0;
            for (&i, &n) in index.iter().zip(&target.shape) {
                place = place * n + if n == 1 { 0 } else { i };
            }
            let label = self.at(index);
            match target.labels[place] {
                u32::MAX => target.labels[place] = label,
                other => labels.join(other, label),
            }
        });
        target
    }

    /// Whether a field of a shape is small enough to be written out: shapes can be large where no
    /// data is.
    pub(crate) fn fits(shape: &[usize]) -> bool {
        let entries = shape.iter().try_fold(1usize, |n, &m| n.checked_mul(m));
        entries.is_some_and(|n| n <= MOST_ENTRIES)
    }

    /// Joins two fields entry by entry, as numpy broadcasts.
    pub(crate) fn joined(&self, labels: &mut Labels, other: &Field) -> Field {
        let rank = self.rank().max(other.rank());
        let (a, b) = (self.lead(rank), other.lead(rank));
        let sizes = a.shape.iter().zip(&b.shape);
        let shape: Vec<usize> = sizes.map(|(&n, &m)| n.max(m)).collect();
        if !Field::fits(&shape) {
            a.fix(labels);
            b.fix(labels);
            return Field::uniform(rank, FIXED);
        }
        let (a, b) = (a.spread(&shape), b.spread(&shape));
        for (&x, &y) in a.labels.iter().zip(&b.labels) {
            labels.join(x, y);
        }
        a
    }
}

/// Every index of a shape, row-major.
pub(crate) fn for_each_index(shape: &[usize], mut visit: impl FnMut(&[usize])) {
    let count: usize = shape.iter().product();
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        visit(&index);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_broadcast_and_join() {
        let mut labels = Labels::new();
        let channels = Field::along(&mut labels, 4, 1, 3);
        let bias = Field::along(&mut labels, 3, 0, 3);
        let sum = channels.joined(&mut labels, &bias);
        assert_eq!(sum.shape, [1, 3, 1, 1]);
        for c in 0..3 {
            assert_eq!(labels.root(channels.labels[c]), labels.root(bias.labels[c]));
        }
        assert_ne!(labels.root(1), labels.root(2));
        let one = sum.only(&mut labels, |a| a != 1);
        assert_eq!(one.labels.len(), 1);
        assert_eq!(labels.root(1), labels.root(3));
        one.fix(&mut labels);
        assert!(channels.is_fixed(&labels));
    }

    #[test]
    fn axes_of_size_one_stand_for_any_size() {
        let mut labels = Labels::new();
        let channels = Field::along(&mut labels, 3, 1, 2);
        let all = channels.spread(&[1, 2, 3]);
        assert_eq!(all.labels, [1, 1, 1, 2, 2, 2]);
        assert_eq!(channels.at(&[7, 1, 5]), 2);
    }
}
