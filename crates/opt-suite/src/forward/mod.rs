//! Kernels against expected results, one file an op family.

pub mod golden;

use crate::Case;

/// All forward cases.
pub fn cases() -> Vec<Case> {
    golden::cases()
}
