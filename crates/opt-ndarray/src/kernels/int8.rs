//! Convolution and matrix product on integers: u8 or i8 activations, i8 weights, i32 sums, and
//! requantization in the same pass. The grid of the activations is a constant, or comes with each
//! run.

pub(crate) mod add;
pub(crate) mod affine;
pub(crate) mod pool;
mod vector;

use opt_core::ops::UnaryOp;
use opt_core::{DType, Error, Result};

use super::Kernel;
use super::conv::Geometry;
use super::elementwise::with_epilogue;
use vector::IntLayer;

/// Which integer kernels a backend uses. All give the same results bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum IntPath {
    /// For each layer the fastest that the processor has.
    #[default]
    Auto,
    /// Products of tiles in AMX registers: Intel processors from 2023 on, under Linux.
    Amx,
    /// 8-bit dot products on 512-bit vectors (AVX-512 VNNI).
    Vnni,
    /// Plain loops: the reference that every other path equals bit for bit.
    Portable,
}

impl IntPath {
    /// Whether this processor, under this operating system, can run it.
    ///
    /// A backend with a path that is not available fails to compile a graph.
    ///
    /// ```
    /// use opt_ndarray::IntPath;
    ///
    /// assert!(IntPath::Auto.is_available() && IntPath::Portable.is_available());
    /// ```
    pub fn is_available(self) -> bool {
        match self {
            IntPath::Auto | IntPath::Portable => true,
            IntPath::Amx => has_amx(),
            IntPath::Vnni => has_vnni(),
        }
    }

    /// Fails if the path is not available.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_available() {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "the integer kernels IntPath::{self:?}: this processor or operating system does not \
             have the instructions; IntPath::Auto takes the fastest that it has"
        )))
    }
}

/// What happens to a sum.
#[derive(Debug, Clone)]
pub(crate) enum Finish {
    /// `clamp(round_half_even(sum * multiplier) + zero, low, high)` as u8 or i8.
    Requantize { zero: i32, low: i32, high: i32 },
    /// `sum * multiplier + offset` as f32, at least 0 with `relu`.
    Dequantize { relu: bool },
    /// The sum itself, as i32.
    Sums,
}

impl Finish {
    /// Bytes of an output element.
    pub(crate) fn size(&self) -> usize {
        match self {
            Finish::Requantize { .. } => 1,
            Finish::Dequantize { .. } | Finish::Sums => 4,
        }
    }
}

/// An integer layer: a convolution of two spatial axes at most, or a matrix product as a
/// convolution of single pixels.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// How the kernel lies on an image; `None` for a matrix product, whose rows are pixels.
    pub(crate) geometry: Option<Geometry>,
    pub(crate) groups: usize,
    /// Input channels of a group.
    pub(crate) inputs: usize,
    /// Output channels of a group.
    pub(crate) outputs: usize,
    /// `[groups * outputs, inputs, taps..]`
    pub(crate) weight: Vec<i8>,
    /// One an output channel.
    pub(crate) bias: Vec<i32>,
    /// The activation's zero point. Without one the kernel's second and third arguments are a
    /// scale, by which the multipliers are multiplied, and a zero point: scalars of each run.
    pub(crate) zero: Option<i32>,
    /// The activation's type.
    pub(crate) dtype: DType,
    /// One an output channel.
    pub(crate) multiplier: Vec<f32>,
    /// What is added to a dequantized sum: one an output channel, or nothing.
    pub(crate) offset: Vec<f32>,
    pub(crate) finish: Finish,
    /// What a dequantized matrix product goes through at last.
    pub(crate) epilogue: Vec<UnaryOp>,
    pub(crate) path: IntPath,
}

impl Layer {
    /// Entries of the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.geometry.as_ref().map_or(1, Geometry::taps)
    }

    /// What it is, for profiles.
    pub(crate) fn name(&self) -> String {
        let op = if self.geometry.is_some() {
            "int conv"
        } else {
            "int matmul"
        };
        match self.finish {
            Finish::Requantize { .. } => format!("{op}+requantize"),
            Finish::Dequantize { .. } => with_epilogue(&format!("{op}+dequantize"), &self.epilogue),
            Finish::Sums => op.to_string(),
        }
    }

    /// Bytes of the constants that it holds.
    pub(crate) fn bytes(&self) -> usize {
        let numbers = self.bias.len() + self.multiplier.len() + self.offset.len();
        self.weight.len() + 4 * numbers
    }
}

/// Whether the processor has products of tiles of bytes that this process may use.
fn has_amx() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        super::amx::available()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether the processor has 8-bit dot products on 512-bit vectors.
fn has_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Packs a layer whose inputs are `rows` pixels (for a matrix product) or images.
pub(crate) fn compile(layer: Layer, rows: usize) -> Box<dyn Kernel> {
    #[cfg(target_arch = "x86_64")]
    {
        use super::amx::layer::AmxLayer;
        let wanted = match layer.path {
            IntPath::Amx => true,
            IntPath::Auto => has_amx() && AmxLayer::suits(&layer, rows),
            IntPath::Vnni | IntPath::Portable => false,
        };
        // Tiles are finished without a thought for NaN, which comes of a multiplier only.
        let plain = match layer.finish {
            Finish::Dequantize { .. } | Finish::Sums => true,
            Finish::Requantize { .. } => {
                layer.zero.is_some() && layer.multiplier.iter().all(|m| m.is_finite())
            }
        };
        if wanted && plain {
            return Box::new(AmxLayer::new(layer, rows));
        }
    }
    Box::new(IntLayer::new(layer, rows))
}

#[cfg(test)]
mod tests;
