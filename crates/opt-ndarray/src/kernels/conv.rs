//! Convolution, its transpose and its gradient by the weight, in one to three dimensions.
//!
//! In two dimensions and `f32` convolutions multiply panels of patches (`panels.rs`), in training also
//! transformed tiles (`winograd.rs`), or slide over rows with one channel a group (`depthwise.rs`).
//! Gradients by the input are convolutions of one of these kinds, with strides one for each phase
//! of its pixels (`backward.rs`). Gradients by the weight are sums of outer products (`outer.rs`),
//! or of products of shifted images (`shifted.rs`). Elsewhere all three are matrix products with
//! the patches of the input ("columns"), which are laid out image by image, and within an image
//! pixel block by pixel block, in a buffer of the thread.

mod backward;
mod columns;
mod depthwise;
mod direct;
mod flat;
mod forward;
mod grad_weight;
mod lay;
pub(super) mod masks;
mod outer;
mod outer_tile;
mod panel_pack;
mod panel_tile;
mod panels;
mod patch;
mod real;
mod shift_tile;
mod shifted;
mod slide;
#[cfg(test)]
pub(super) mod testing;
mod transpose;
mod winograd;
mod winograd_tile;

use opt_core::ops::Window;
use opt_core::{Result, TensorType};

pub(crate) use self::columns::Geometry;
pub(crate) use self::forward::compile_conv;
pub(crate) use self::grad_weight::compile_conv_grad_weight;
pub(super) use self::patch::reach;
pub(crate) use self::transpose::compile_conv_transpose;

/// Elements of a block of columns: what stays in the second-level cache beside the weight.
const BLOCK: usize = 1 << 17;

/// Sizes of a convolution of `[n, groups * c, ..]` to `[n, groups * o, ..]`.
#[derive(Debug, Clone)]
struct Sizes {
    n: usize,
    groups: usize,
    /// Input channels of a group.
    c: usize,
    /// Output channels of a group.
    o: usize,
    geometry: Geometry,
}

impl Sizes {
    fn new(
        x: &TensorType,
        y: &TensorType,
        kernel: &[usize],
        window: &Window,
        groups: usize,
    ) -> Result<Sizes> {
        let (x, y) = (x.shape.fixed()?, y.shape.fixed()?);
        Ok(Sizes {
            n: x[0],
            groups,
            c: x[1] / groups,
            o: y[1] / groups,
            geometry: Geometry::new(&x[2..], &y[2..], kernel, window),
        })
    }

    /// Rows of the column matrix of a group.
    fn rows(&self) -> usize {
        self.c * self.geometry.taps()
    }

    /// Elements of an input image.
    fn image(&self) -> usize {
        self.groups * self.c * self.geometry.input_len()
    }

    /// Elements of an output image.
    fn output(&self) -> usize {
        self.groups * self.o * self.geometry.output_len()
    }

    /// Output pixels of which the columns are laid out at a time: whole rows of the output.
    fn block(&self) -> usize {
        let row = self.geometry.row_len();
        let rows = (BLOCK / (self.rows() * row).max(1)).max(1);
        (rows * row).min(self.geometry.output_len().max(1))
    }
}
