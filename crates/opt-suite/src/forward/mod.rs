//! Kernels against expected results, one file an op family.

pub mod golden;
pub mod half;

use crate::Case;

/// All forward cases.
pub fn cases() -> Vec<Case> {
    [golden::cases(), half::cases()].concat()
}
