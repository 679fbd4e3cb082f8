//! Gradient rules against central differences in `f64`, one file an op family.

use crate::Case;

/// All gradient cases.
pub fn cases() -> Vec<Case> {
    Vec::new()
}
