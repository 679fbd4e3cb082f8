//! Element types.

use std::fmt;

use half::{bf16, f16};

use crate::{Error, Result};

/// The element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `f32` (8 exponent bits, 7 mantissa bits).
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// Boolean, one byte an element, 0 or 1.
    Bool,
    /// Signed 4-bit integer in -8..=7, two an byte, the first in the low half.
    I4,
    /// Unsigned 4-bit integer in 0..=15, two an byte, the first in the low half.
    U4,
}

impl DType {
    /// Every element type.
    pub const ALL: [DType; 11] = [
        DType::F32,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::I64,
        DType::I32,
        DType::I8,
        DType::U8,
        DType::Bool,
        DType::I4,
        DType::U4,
    ];

    /// Bits an element takes.
    pub fn bits(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 64,
            DType::F32 | DType::I32 => 32,
            DType::F16 | DType::BF16 => 16,
            DType::I8 | DType::U8 | DType::Bool => 8,
            DType::I4 | DType::U4 => 4,
        }
    }

    /// Bytes that `len` elements take, rounded up to whole bytes.
    pub fn bytes(self, len: usize) -> usize {
        match self {
            DType::I4 | DType::U4 => len.div_ceil(2),
            _ => len * (self.bits() / 8),
        }
    }

    /// Whether this is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
    }

    /// Whether this is an integer type (`Bool` is not).
    pub fn is_int(self) -> bool {
        matches!(
            self,
            DType::I64 | DType::I32 | DType::I8 | DType::U8 | DType::I4 | DType::U4
        )
    }

    /// Whether two elements share a byte.
    pub fn is_packed(self) -> bool {
        matches!(self, DType::I4 | DType::U4)
    }

    /// The inclusive range of an 8-bit or 4-bit integer type; the grid of quantized values.
    ///
    /// ```
    /// use opt_core::DType;
    /// assert_eq!(DType::I8.int_range().unwrap(), (-128, 127));
    /// ```
    ///
    /// # Errors
    /// For every other type.
    pub fn int_range(self) -> Result<(i32, i32)> {
        match self {
            DType::I8 => Ok((-128, 127)),
            DType::U8 => Ok((0, 255)),
            DType::I4 => Ok((-8, 7)),
            DType::U4 => Ok((0, 15)),
            _ => Err(Error::dtype(format!(
                "{self} is no quantized type; use i8, u8, i4 or u4"
            ))),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::Bool => "bool",
            DType::I4 => "i4",
            DType::U4 => "u4",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is the element of a [`Tensor`](crate::Tensor).
///
/// `bool` tensors are read and written as `u8` (0 or 1) or through
/// [`Tensor::to_vec_bool`](crate::Tensor::to_vec_bool); packed 4-bit tensors through
/// [`Tensor::unpack`](crate::Tensor::unpack).
pub trait Element: bytemuck::Pod + sealed::Sealed + Send + Sync + PartialEq + fmt::Debug {
    /// The element type.
    const DTYPE: DType;
    /// The value as `f64`, exactly but for integers beyond 2^53.
    fn to_f64(self) -> f64;
    /// The nearest value to an `f64`; integers truncate toward zero and saturate, NaN gives 0.
    fn from_f64(value: f64) -> Self;
}

/// The `f32` from which a 16-bit float is rounded as from the `f64` itself: of the two neighbours
/// of a number that `f32` has not, the one with an odd last bit (Boldo & Melquiond 2008). `half`
/// rounds from the upper 32 bits of an `f64`, by which what lies just above a tie is taken for one.
fn odd(y: f64) -> f32 {
    let near = y as f32;
    if f64::from(near) == y || y.is_nan() {
        return near;
    }
    let bits = near.to_bits();
    let toward_zero = bits - u32::from(f64::from(near).abs() > y.abs());
    f32::from_bits(toward_zero | 1)
}

macro_rules! element {
    ($($t:ty, $d:ident, |$x:ident| $to:expr, |$y:ident| $from:expr;)*) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn to_f64(self) -> f64 { let $x = self; $to }
            fn from_f64($y: f64) -> Self { $from }
        }
    )*};
}

element! {
    f32, F32, |x| f64::from(x), |y| y as f32;
    f64, F64, |x| x, |y| y;
    f16, F16, |x| x.to_f64(), |y| f16::from_f32(odd(y));
    bf16, BF16, |x| x.to_f64(), |y| bf16::from_f32(odd(y));
    i64, I64, |x| x as f64, |y| y as i64;
    i32, I32, |x| f64::from(x), |y| y as i32;
    i8, I8, |x| f64::from(x), |y| y as i8;
    u8, U8, |x| f64::from(x), |y| y as u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_are_rounded_to_the_nearest() {
        // One bit of an f32, or of an f64, beside ties of both dtypes.
        for tie in [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.0 / 2048.0] {
            for sign in [1.0, -1.0] {
                let single = tie as f32;
                let bits = single.to_bits();
                for beside in [bits - 1, bits, bits + 1].map(f32::from_bits) {
                    let y = sign * f64::from(beside);
                    assert_eq!(bf16::from_f64s(y), bf16::from_f32(y as f32), "{y}");
                    assert_eq!(f16::from_f64s(y), f16::from_f32(y as f32), "{y}");
                }
                let up = f64::from_bits(f64::to_bits(tie) + 1);
                let down = f64::from_bits(f64::to_bits(tie) - 1);
                let above = f32::from_bits(bits + 1);
                let below = f32::from_bits(bits - 1);
                for (y, like) in [(up, above), (down, below)] {
                    let like = sign as f32 * like;
                    assert_eq!(bf16::from_f64s(sign * y), bf16::from_f32(like), "{y}");
                    assert_eq!(f16::from_f64s(sign * y), f16::from_f32(like), "{y}");
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_keep_their_sign() {
        for y in [0.0, 1e-320, 1e-46, 1e-30, 7e4, 1e39, 1e300, f64::INFINITY] {
            for y in [y, -y] {
                assert_eq!(
                    bf16::from_f64s(y).to_f64(),
                    f64::from(bf16::from_f32(y as f32))
                );
                assert_eq!(
                    f16::from_f64s(y).to_f64(),
                    f64::from(f16::from_f32(y as f32))
                );
            }
        }
        assert!(bf16::from_f64s(f64::NAN).is_nan() && f16::from_f64s(f64::NAN).is_nan());
    }

    /// [`Element::from_f64`], which the types' own functions of the name hide.
    trait FromF64: Element {
        fn from_f64s(y: f64) -> Self {
            <Self as Element>::from_f64(y)
        }
    }

    impl FromF64 for f16 {}
    impl FromF64 for bf16 {}
}
