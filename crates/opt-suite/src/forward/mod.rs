//! Kernels against expected results, one file an op family.

use crate::Case;

/// All forward cases.
pub fn cases() -> Vec<Case> {
    Vec::new()
}
