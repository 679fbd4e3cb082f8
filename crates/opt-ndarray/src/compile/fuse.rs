//! Fusion: several nodes in one pass over memory.

use opt_core::Result;

use super::plan::Ir;

/// Fuses what can be.
pub(super) fn fuse(ir: &mut Ir) -> Result<()> {
    let _ = ir.uses();
    Ok(())
}
