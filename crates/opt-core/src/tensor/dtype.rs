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
    /// Signed 4-bit integer in -8..=7, two a byte, the first in the low half.
    I4,
    /// Unsigned 4-bit integer in 0..=15, two a byte, the first in the low half.
    U4,
    /// Signed 2-bit integer in -2..=1, four a byte, the first in the lowest bits.
    I2,
    /// Unsigned 2-bit integer in 0..=3, four a byte, the first in the lowest bits.
    U2,
    /// 8-bit float: 4 exponent bits, 3 mantissa bits, up to 448, NaN but no infinities
    /// (`FLOAT8E4M3FN`).
    F8E4M3,
    /// 8-bit float: 5 exponent bits, 2 mantissa bits, up to 57344, NaN and infinities.
    F8E5M2,
    /// 8-bit power of two from 2^-127 to 2^127, or NaN: the scale of microscaling formats.
    F8E8M0,
    /// 6-bit float: 2 exponent bits, 3 mantissa bits, up to 7.5; four in three bytes.
    F6E2M3,
    /// 6-bit float: 3 exponent bits, 2 mantissa bits, up to 28; four in three bytes.
    F6E3M2,
    /// 4-bit float: 2 exponent bits, 1 mantissa bit, up to 6; two a byte.
    F4E2M1,
}

impl DType {
    /// Every element type.
    pub const ALL: [DType; 19] = [
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
        DType::I2,
        DType::U2,
        DType::F8E4M3,
        DType::F8E5M2,
        DType::F8E8M0,
        DType::F6E2M3,
        DType::F6E3M2,
        DType::F4E2M1,
    ];

    /// Bits an element takes.
    pub fn bits(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 64,
            DType::F32 | DType::I32 => 32,
            DType::F16 | DType::BF16 => 16,
            DType::I8 | DType::U8 | DType::Bool => 8,
            DType::F8E4M3 | DType::F8E5M2 | DType::F8E8M0 => 8,
            DType::F6E2M3 | DType::F6E3M2 => 6,
            DType::I4 | DType::U4 | DType::F4E2M1 => 4,
            DType::I2 | DType::U2 => 2,
        }
    }

    /// Bytes that `len` elements take, rounded up to whole bytes.
    pub fn bytes(self, len: usize) -> usize {
        match self.is_packed() {
            true => (len * self.bits()).div_ceil(8),
            false => len * (self.bits() / 8),
        }
    }

    /// Whether this is a floating-point type that ops compute in; those of 8 bits and fewer only
    /// [store](DType::is_storage) numbers.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
    }

    /// Whether this is an integer type (`Bool` is not).
    pub fn is_int(self) -> bool {
        matches!(
            self,
            DType::I64
                | DType::I32
                | DType::I8
                | DType::U8
                | DType::I4
                | DType::U4
                | DType::I2
                | DType::U2
        )
    }

    /// Whether elements share bytes.
    pub fn is_packed(self) -> bool {
        self.bits() < 8
    }

    /// Whether this type only stores numbers: packed integers, and floats of 8 bits and fewer.
    /// Quantization, dequantization and casts know them, and what moves elements may; arithmetic
    /// does not.
    pub fn is_storage(self) -> bool {
        self.is_packed() || matches!(self, DType::F8E4M3 | DType::F8E5M2 | DType::F8E8M0)
    }

    /// The inclusive range of an integer type of 8, 4 or 2 bits; the grid of quantized values.
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
            DType::I2 => Ok((-2, 1)),
            DType::U2 => Ok((0, 3)),
            _ => Err(Error::dtype(format!(
                "{self} is no quantized integer type; those are i8, u8, i4, u4, i2 and u2"
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
            DType::I2 => "i2",
            DType::U2 => "u2",
            DType::F8E4M3 => "f8e4m3",
            DType::F8E5M2 => "f8e5m2",
            DType::F8E8M0 => "f8e8m0",
            DType::F6E2M3 => "f6e2m3",
            DType::F6E3M2 => "f6e3m2",
            DType::F4E2M1 => "f4e2m1",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is the element of a [`Tensor`](crate::Tensor).
///
/// `bool` tensors are read and written as `u8` (0 or 1) or through
/// [`Tensor::to_vec_bool`](crate::Tensor::to_vec_bool); packed integers through
/// [`Tensor::unpack`](crate::Tensor::unpack), floats of 8 bits and fewer through
/// [`Tensor::codes`](crate::Tensor::codes) or as numbers.
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
