//! Tiles of weights.

use crate::select::Weight;

/// Which tile each entry of a weight is in.
pub(crate) struct Tiles {
    /// The tile of each entry, in row-major order.
    of_entry: Vec<u32>,
    /// How many entries each tile has.
    sizes: Vec<u32>,
}

impl Tiles {
    /// Tiles of `block[0]` outputs by `block[1]` inputs at one place of the other axes; those at
    /// the end of an axis may be smaller.
    pub(crate) fn of(shape: &[usize], weight: &Weight, block: [usize; 2]) -> Tiles {
        let edge = |axis: usize| match axis {
            a if a == weight.outputs => block[0],
            a if a == weight.inputs => block[1],
            _ => 1,
        };
        let counts: Vec<usize> = (0..shape.len())
            .map(|a| shape[a].div_ceil(edge(a)))
            .collect();
        let len: usize = shape.iter().product();
        let mut sizes = vec![0; counts.iter().product()];
        let mut index = vec![0usize; shape.len()];
        let of_entry = (0..len)
            .map(|_| {
                let tile = (0..shape.len()).fold(0, |t, a| t * counts[a] + index[a] / edge(a));
                for a in (0..shape.len()).rev() {
                    index[a] += 1;
                    if index[a] < shape[a] {
                        break;
                    }
                    index[a] = 0;
                }
                sizes[tile] += 1;
                tile as u32
            })
            .collect();
        Tiles { of_entry, sizes }
    }

    /// The mean score of each tile; negative where all its entries are negative, which else count
    /// as 0.
    pub(crate) fn scores(&self, entries: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.0; self.sizes.len()];
        let mut live = vec![false; self.sizes.len()];
        for (&tile, &score) in self.of_entry.iter().zip(entries) {
            sums[tile as usize] += score.max(0.0);
            live[tile as usize] |= score >= 0.0;
        }
        for ((sum, live), &size) in sums.iter_mut().zip(live).zip(&self.sizes) {
            *sum = if live { *sum / f64::from(size) } else { -1.0 };
        }
        sums
    }

    /// What is decided of tiles, for their entries.
    pub(crate) fn entries(&self, tiles: &[bool]) -> Vec<bool> {
        self.of_entry.iter().map(|&t| tiles[t as usize]).collect()
    }
}

#[cfg(test)]
mod tests {
    use opt_core::{DType, GraphBuilder, Tensor};

    use super::*;

    #[test]
    fn tiles_of_a_kernel_lie_in_one_place_of_it() {
        let mut b = GraphBuilder::new("g");
        let w = Tensor::zeros(DType::F32, [3, 4, 1, 2]).unwrap();
        let value = b.variable("w", w).unwrap();
        let weight = Weight {
            value,
            outputs: 0,
            inputs: 1,
            reduces: true,
        };
        let tiles = Tiles::of(&[3, 4, 1, 2], &weight, [2, 2]);
        // Outputs 0..2 and 2..3, inputs 0..2 and 2..4, two places.
        assert_eq!(tiles.sizes, [4, 4, 4, 4, 2, 2, 2, 2]);
        let entry = |o: usize, i: usize, x: usize| tiles.of_entry[(o * 4 + i) * 2 + x];
        assert_eq!((entry(0, 0, 1), entry(1, 1, 1)), (1, 1));
        assert_eq!((entry(0, 2, 0), entry(1, 3, 0), entry(2, 3, 1)), (2, 2, 7));
        let mut scores = vec![-1.0; 24];
        scores[0] = 8.0;
        let means = tiles.scores(&scores);
        assert_eq!(means[..2], [2.0, -1.0]);
    }
}
