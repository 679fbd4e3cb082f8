//! Schemes: which numbers stand for a tensor's, and what shares a scale.

mod text;

use opt_core::tensor::MiniFloat;
use opt_core::{DType, Error, Result};

/// The number format of a [`Scheme`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Integers: `scale * (q - zero_point)`, with a scale in `f32`.
    Int(DType),
    /// Floats of 8 bits, `scale * q`, with a scale in `f32`.
    Float(DType),
    /// The 16 quantiles of the normal distribution of QLoRA (Dettmers et al. 2023), `scale * level`,
    /// with a scale in `f32`, the largest magnitude of the group.
    Nf4,
    /// A microscaling format (OCP MX 1.0, 2023): floats of 8, 6 or 4 bits, `2^e * q`, with a power of
    /// two (E8M0) for each 32.
    Mx(DType),
    /// NVIDIA's 4-bit floats: `tensor_scale * scale * q` with E2M1 elements, an E4M3 scale for each
    /// 16, and one `f32` for the tensor.
    NvFp4,
    /// 16-bit floats, rounded to nearest, without scales.
    Half(DType),
}

/// What shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Granularity {
    /// The whole tensor.
    Tensor,
    /// Each output channel.
    Channel,
    /// This many entries, one after another along the axis that a product sums over; the last group
    /// of a row may have fewer.
    Group(usize),
}

/// How numbers are stored: a number format, what shares a scale, and whether there are zero points.
///
/// A scheme is a value that is composed; [`Scheme::check`] says whether the parts go together, and
/// everything that takes a scheme checks it. It reads and writes as text, also through serde.
///
/// ```
/// use opt_quant::Scheme;
///
/// let scheme = Scheme::int4().group(64).asymmetric();
/// assert_eq!(scheme.to_string(), "int4, group 64, asymmetric");
/// assert_eq!("int4, group 64, asymmetric".parse::<Scheme>()?, scheme);
/// assert_eq!("mxfp4".parse::<Scheme>()?, Scheme::mxfp4());
///
/// // Quantiles of a distribution about 0 have no zero point.
/// assert!(Scheme::nf4().asymmetric().check().is_err());
/// # Ok::<(), opt_quant::Error>(())
/// ```
///
/// The [crate's page](crate#schemes) lists the schemes and the bits that they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Scheme {
    format: Format,
    granularity: Granularity,
    symmetric: bool,
    bits: Option<u32>,
}

impl Scheme {
    const fn new(format: Format, granularity: Granularity) -> Scheme {
        Scheme {
            format,
            granularity,
            symmetric: true,
            bits: None,
        }
    }

    /// 8-bit signed integers, symmetric, a scale a channel: the usual choice for weights.
    pub const fn int8() -> Scheme {
        Scheme::new(Format::Int(DType::I8), Granularity::Channel)
    }

    /// 8-bit unsigned integers, asymmetric, a scale a channel.
    pub const fn uint8() -> Scheme {
        Scheme::new(Format::Int(DType::U8), Granularity::Channel).asymmetric()
    }

    /// 4-bit signed integers, symmetric, in groups of 32.
    pub const fn int4() -> Scheme {
        Scheme::new(Format::Int(DType::I4), Granularity::Group(32))
    }

    /// 4-bit unsigned integers, asymmetric, in groups of 32.
    pub const fn uint4() -> Scheme {
        Scheme::new(Format::Int(DType::U4), Granularity::Group(32)).asymmetric()
    }

    /// 2-bit signed integers, symmetric, in groups of 32: -1, 0 and 1 times the largest magnitude.
    pub const fn int2() -> Scheme {
        Scheme::new(Format::Int(DType::I2), Granularity::Group(32))
    }

    /// 2-bit unsigned integers, asymmetric, in groups of 32.
    pub const fn uint2() -> Scheme {
        Scheme::new(Format::Int(DType::U2), Granularity::Group(32)).asymmetric()
    }

    /// 8-bit floats with 3 mantissa bits, a scale a channel.
    pub const fn fp8_e4m3() -> Scheme {
        Scheme::new(Format::Float(DType::F8E4M3), Granularity::Channel)
    }

    /// 8-bit floats with 2 mantissa bits, a scale a channel.
    pub const fn fp8_e5m2() -> Scheme {
        Scheme::new(Format::Float(DType::F8E5M2), Granularity::Channel)
    }

    /// 4-bit quantiles of the normal distribution in groups of 64, as QLoRA has them.
    pub const fn nf4() -> Scheme {
        Scheme::new(Format::Nf4, Granularity::Group(64))
    }

    /// MXFP8 with E4M3 elements; groups of 32 with a power of two.
    pub const fn mxfp8() -> Scheme {
        Scheme::new(Format::Mx(DType::F8E4M3), Granularity::Group(32))
    }

    /// MXFP8 with E5M2 elements.
    pub const fn mxfp8_e5m2() -> Scheme {
        Scheme::new(Format::Mx(DType::F8E5M2), Granularity::Group(32))
    }

    /// MXFP6 with E2M3 elements; groups of 32 with a power of two.
    pub const fn mxfp6() -> Scheme {
        Scheme::new(Format::Mx(DType::F6E2M3), Granularity::Group(32))
    }

    /// MXFP6 with E3M2 elements.
    pub const fn mxfp6_e3m2() -> Scheme {
        Scheme::new(Format::Mx(DType::F6E3M2), Granularity::Group(32))
    }

    /// MXFP4 (E2M1 elements); groups of 32 with a power of two.
    pub const fn mxfp4() -> Scheme {
        Scheme::new(Format::Mx(DType::F4E2M1), Granularity::Group(32))
    }

    /// NVFP4 (E2M1 elements); groups of 16 with an E4M3 scale, and an `f32` for the tensor.
    pub const fn nvfp4() -> Scheme {
        Scheme::new(Format::NvFp4, Granularity::Group(16))
    }

    /// IEEE half precision.
    pub const fn f16() -> Scheme {
        Scheme::new(Format::Half(DType::F16), Granularity::Tensor)
    }

    /// The upper half of `f32`.
    pub const fn bf16() -> Scheme {
        Scheme::new(Format::Half(DType::BF16), Granularity::Tensor)
    }

    /// What weights usually have: [`Scheme::int8`].
    pub const fn weights() -> Scheme {
        Scheme::int8()
    }

    /// What activations usually have: [`Scheme::uint8`] with one scale.
    pub const fn activations() -> Scheme {
        Scheme::uint8().per_tensor()
    }

    /// One scale for the whole tensor.
    #[must_use]
    pub const fn per_tensor(mut self) -> Scheme {
        self.granularity = Granularity::Tensor;
        self
    }

    /// A scale for each output channel.
    #[must_use]
    pub const fn per_channel(mut self) -> Scheme {
        self.granularity = Granularity::Channel;
        self
    }

    /// A scale for each `size` entries along the axis that a product sums over.
    #[must_use]
    pub const fn group(mut self, size: usize) -> Scheme {
        self.granularity = Granularity::Group(size);
        self
    }

    /// Without zero points: the middle of the grid stands for 0.
    #[must_use]
    pub const fn symmetric(mut self) -> Scheme {
        self.symmetric = true;
        self
    }

    /// With a zero point for each scale, so that a range need not lie evenly about 0.
    #[must_use]
    pub const fn asymmetric(mut self) -> Scheme {
        self.symmetric = false;
        self
    }

    /// The same on a grid of fewer bits than the integer type has, 2 or more: 3 bits of a signed
    /// type are -4 to 3.
    ///
    /// ```
    /// use opt_quant::Scheme;
    ///
    /// assert_eq!(Scheme::int4().bits(3).grid()?, (-4, 3));
    /// # Ok::<(), opt_quant::Error>(())
    /// ```
    #[must_use]
    pub const fn bits(mut self, bits: u32) -> Scheme {
        self.bits = Some(bits);
        self
    }

    /// The number format.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// What shares a scale.
    pub const fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Whether there are no zero points.
    pub const fn is_symmetric(&self) -> bool {
        self.symmetric
    }

    /// Whether what is quantized has zero points: integers on a grid whose zero is not 0.
    pub fn has_zero_points(&self) -> bool {
        match self.format {
            Format::Int(_) => !self.symmetric || self.grid().is_ok_and(|(low, _)| low >= 0),
            _ => false,
        }
    }

    /// The dtype of the stored codes; those of [`Format::Nf4`] are the numbers of its levels.
    pub const fn dtype(&self) -> DType {
        match self.format {
            Format::Int(dtype) | Format::Float(dtype) | Format::Mx(dtype) | Format::Half(dtype) => {
                dtype
            }
            Format::Nf4 => DType::U4,
            Format::NvFp4 => DType::F4E2M1,
        }
    }

    /// The entries of a group; `None` where scales are for channels or the tensor.
    pub const fn group_size(&self) -> Option<usize> {
        match self.granularity {
            Granularity::Group(size) => Some(size),
            _ => None,
        }
    }

    /// Fails unless the parts go together.
    ///
    /// # Errors
    /// Names the part that does not.
    pub fn check(&self) -> Result<()> {
        let fail = |what: String| Err(Error::invalid(format!("the scheme `{self}`: {what}")));
        let integers = matches!(self.format, Format::Int(_));
        if !self.symmetric && !integers {
            return fail("only integers have zero points".into());
        }
        if self.granularity == Granularity::Group(0) {
            return fail("a group of no entries".into());
        }
        if let Some(bits) = self.bits {
            let most = self.dtype().bits();
            if !integers || !(2..=most).contains(&(bits as usize)) {
                return fail(match integers {
                    true => format!("{bits} bits; its integers have 2 to {most}"),
                    false => "only grids of integers can be narrowed".into(),
                });
            }
        }
        let group = self.group_size();
        match self.format {
            Format::Mx(_) if group != Some(32) => fail("MX formats have groups of 32".into()),
            Format::NvFp4 if group != Some(16) => fail("NVFP4 has groups of 16".into()),
            Format::Half(_) if self.granularity != Granularity::Tensor => {
                fail("16-bit floats have no scales".into())
            }
            _ => Ok(()),
        }
    }

    /// The lowest and the highest integer.
    ///
    /// # Errors
    /// If the format is no grid of integers, or the scheme fails its [check](Scheme::check).
    pub fn grid(&self) -> Result<(i32, i32)> {
        self.check()?;
        let Format::Int(dtype) = self.format else {
            return Err(Error::invalid(format!(
                "the scheme `{self}` has no grid of integers"
            )));
        };
        let (low, high) = dtype.int_range()?;
        Ok(match self.bits {
            None => (low, high),
            Some(bits) if low < 0 => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
            Some(bits) => (0, (1 << bits) - 1),
        })
    }

    /// The format of floats of 8 bits and fewer.
    pub(crate) fn minifloat(&self) -> Option<MiniFloat> {
        MiniFloat::of(self.dtype())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_an_error_that_says_so() {
        for (scheme, part) in [
            (Scheme::nf4().asymmetric(), "zero points"),
            (Scheme::fp8_e4m3().asymmetric(), "zero points"),
            (Scheme::mxfp4().group(16), "groups of 32"),
            (Scheme::mxfp8().per_channel(), "groups of 32"),
            (Scheme::nvfp4().group(32), "groups of 16"),
            (Scheme::f16().group(32), "no scales"),
            (Scheme::bf16().per_channel(), "no scales"),
            (Scheme::int4().group(0), "no entries"),
            (Scheme::int4().bits(5), "2 to 4"),
            (Scheme::int8().bits(1), "2 to 8"),
            (Scheme::int8().bits(u32::MAX), "2 to 8"),
            (Scheme::nf4().bits(3), "narrowed"),
        ] {
            let error = scheme.check().unwrap_err();
            assert!(error.message().contains(part), "{scheme}: {error}");
            assert!(scheme.grid().is_err());
        }
        for scheme in [
            Scheme::nf4().group(128),
            Scheme::nf4().per_channel(),
            Scheme::int8().asymmetric().group(7),
            Scheme::uint4().symmetric().per_tensor(),
            Scheme::fp8_e5m2().group(128),
        ] {
            scheme.check().unwrap();
        }
    }

    #[test]
    fn grids_of_integers() {
        for (scheme, grid) in [
            (Scheme::int8(), (-128, 127)),
            (Scheme::uint8(), (0, 255)),
            (Scheme::uint4(), (0, 15)),
            (Scheme::int2(), (-2, 1)),
            (Scheme::uint2(), (0, 3)),
            (Scheme::int8().bits(3), (-4, 3)),
            (Scheme::uint8().bits(2), (0, 3)),
        ] {
            assert_eq!(scheme.grid().unwrap(), grid, "{scheme}");
        }
        assert!(Scheme::fp8_e4m3().grid().is_err());
    }
}
