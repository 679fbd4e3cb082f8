//! Identity, gradient stop and assignment to variables.

use crate::{GraphBuilder, Result, ValueId};

/// The input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity;

/// The input, through which no gradient flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopGradient;

/// Gives a variable (first input) the value of the second, of the same type. It takes effect at
/// the end of the run: everything in the run reads the old content. The output is the new value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assign;

impl GraphBuilder {
    /// A value through which no gradient flows.
    ///
    /// # Errors
    /// None.
    pub fn stop_gradient(&mut self, x: ValueId) -> Result<ValueId> {
        self.op(StopGradient, &[x])
    }

    /// Assigns to a variable at the end of the run.
    ///
    /// # Errors
    /// If the types differ; that the target is a variable is checked by
    /// [`Graph::verify`](crate::Graph::verify).
    pub fn assign(&mut self, variable: ValueId, value: ValueId) -> Result<ValueId> {
        self.op(Assign, &[variable, value])
    }
}

crate::ops::rules::pending_rules!(Identity, StopGradient, Assign);
