//! How a layer is cut into tasks.

use std::ops::Range;

use super::{BLOCK, ROW, TILE};

/// Bytes of weights that stay in the second-level cache while activations pass by.
const WEIGHTS: usize = 1 << 19;

/// Blocks of sums that a task keeps between the parts of a long sum.
const KEPT: usize = 32;

/// Multiply-adds of a task that is worth being handed to another thread.
const TASK: usize = 1 << 22;

/// A part of a layer that one thread computes.
pub(super) struct Task {
    pub(super) group: usize,
    /// Blocks of rows or pixels.
    pub(super) activations: Range<usize>,
    /// Blocks of outputs.
    pub(super) outputs: Range<usize>,
}

/// The tasks of an image, or of all rows.
pub(super) struct Tasks {
    groups: usize,
    /// Blocks of rows or pixels, and into how many ranges they are cut.
    activations: usize,
    halves: usize,
    /// Blocks of outputs, and into how many ranges they are cut.
    outputs: usize,
    parts: usize,
}

impl Tasks {
    /// For a number of threads; a block's sum has `steps` steps of 64 bytes.
    pub(super) fn new(
        groups: usize,
        activations: usize,
        outputs: usize,
        steps: usize,
        threads: usize,
    ) -> Tasks {
        let work = groups * activations * outputs * steps * BLOCK * BLOCK * ROW;
        // More tasks than threads, since a thread that slept is late for its first.
        let pieces = if threads <= 1 {
            1
        } else {
            (work / TASK).clamp(1, 8 * threads)
        };
        let fitting = if activations == 1 {
            // They pass by once.
            KEPT
        } else {
            (WEIGHTS / (steps * 2 * TILE)).clamp(1, KEPT)
        };
        let parts = outputs.div_ceil(fitting);
        let halves = pieces.div_ceil(parts * groups).min(activations).max(1);
        let parts = parts.max(pieces.div_ceil(halves * groups).min(outputs));
        Tasks {
            groups,
            activations,
            halves,
            outputs,
            parts,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.groups * self.parts * self.halves
    }

    pub(super) fn at(&self, i: usize) -> Task {
        let Tasks { halves, parts, .. } = *self;
        Task {
            group: i / (parts * halves),
            activations: share(self.activations, halves, i % halves),
            outputs: share(self.outputs, parts, i / halves % parts),
        }
    }
}

/// The `i`-th of `parts` shares of `count`, as equal as can be.
pub(super) fn share(count: usize, parts: usize, i: usize) -> Range<usize> {
    count * i / parts..count * (i + 1) / parts
}
