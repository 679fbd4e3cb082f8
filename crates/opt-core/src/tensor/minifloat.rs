//! Floating-point formats of 8 bits and fewer.

use super::DType;

/// A floating-point format of 8, 6 or 4 bits: what its codes mean, and which is nearest to a number.
///
/// ```
/// use opt_core::DType;
/// use opt_core::tensor::MiniFloat;
///
/// let e2m1 = MiniFloat::of(DType::F4E2M1).unwrap();
/// let values: Vec<f32> = (0..8).map(|code| e2m1.decode(code)).collect();
/// assert_eq!(values, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
/// // Ties go to the even code, and what is beyond the largest number becomes that number.
/// assert_eq!(e2m1.decode(e2m1.encode(2.5)), 2.0);
/// assert_eq!(e2m1.decode(e2m1.encode(-1e9)), -6.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MiniFloat {
    /// Bits of the mantissa; 0 is the scale format E8M0, which has no sign either.
    mantissa: u32,
    /// Bits of the exponent.
    exponent: u32,
    bias: i32,
    /// The code of the largest number.
    most: u8,
    /// The code of infinity.
    infinity: Option<u8>,
    /// The code that NaN is encoded as; larger ones without the sign are NaN too.
    nan: Option<u8>,
}

impl MiniFloat {
    /// The format of a dtype; `None` for those that are no floats of 8 bits or fewer.
    pub fn of(dtype: DType) -> Option<MiniFloat> {
        let format = |exponent, mantissa, bias, most, infinity, nan| MiniFloat {
            mantissa,
            exponent,
            bias,
            most,
            infinity,
            nan,
        };
        Some(match dtype {
            DType::F8E4M3 => format(4, 3, 7, 0x7E, None, Some(0x7F)),
            DType::F8E5M2 => format(5, 2, 15, 0x7B, Some(0x7C), Some(0x7E)),
            DType::F6E2M3 => format(2, 3, 1, 0x1F, None, None),
            DType::F6E3M2 => format(3, 2, 3, 0x1F, None, None),
            DType::F4E2M1 => format(2, 1, 1, 0x7, None, None),
            DType::F8E8M0 => format(8, 0, 127, 0xFE, None, Some(0xFF)),
            _ => return None,
        })
    }

    /// The largest number.
    pub fn max(self) -> f32 {
        self.decode(self.most)
    }

    /// The exponent of the largest number, `floor(log2(max))`.
    pub fn max_exponent(self) -> i32 {
        (i32::from(self.most) >> self.mantissa) - self.bias
    }

    /// The least number above 0.
    pub fn min_positive(self) -> f32 {
        self.decode(if self.mantissa == 0 { 0 } else { 1 })
    }

    /// The number that a code stands for. Bits beyond the format's are ignored.
    pub fn decode(self, code: u8) -> f32 {
        if self.mantissa == 0 {
            return match code {
                0xFF => f32::NAN,
                code => power_of_two(i32::from(code) - self.bias) as f32,
            };
        }
        let bits = self.exponent + self.mantissa;
        let (magnitude, negative) = (code & ((1 << bits) - 1), code >> bits & 1 == 1);
        let size = if Some(magnitude) == self.infinity {
            f32::INFINITY
        } else if magnitude > self.most {
            f32::NAN
        } else {
            let exponent = i32::from(magnitude >> self.mantissa);
            let fraction = i32::from(magnitude & ((1 << self.mantissa) - 1));
            let (lead, exponent) = match exponent {
                0 => (0, 1),
                e => (1 << self.mantissa, e),
            };
            let step = power_of_two(exponent - self.bias - self.mantissa as i32);
            (f64::from(lead + fraction) * step) as f32
        };
        if negative { -size } else { size }
    }

    /// The code of the nearest number, of two as near the one with an even code. Numbers beyond the
    /// largest and infinities become the largest; NaN becomes NaN, or -0 where the format has none
    /// (as `ml_dtypes` has it). This is ONNX's `Cast` with its default `saturate = 1`.
    ///
    /// E8M0 takes the next power of two that is not less, from 2^-127 to 2^127, and makes NaN of
    /// negative numbers: ONNX's default `round_mode = "up"`.
    pub fn encode(self, x: f64) -> u8 {
        if self.mantissa == 0 {
            return self.encode_power(x);
        }
        let bits = self.exponent + self.mantissa;
        let sign = u8::from(x.is_sign_negative()) << bits;
        if x.is_nan() {
            return self.nan.map_or(1 << bits, |nan| sign | nan);
        }
        let size = x.abs();
        if size >= f64::from(self.max()) {
            return sign | self.most;
        }
        // Below the least normal number all steps are the same.
        let exponent = exponent_of(size).max(1 - self.bias);
        let step = power_of_two(self.mantissa as i32 - exponent);
        let steps = (size * step).round_ties_even() as u8;
        // A step count of 2^mantissa and more adds the implicit bit's 1 to the exponent, and so does
        // a count that was rounded up to the next power of two.
        let code = (((exponent - 1 + self.bias) as u8) << self.mantissa) + steps;
        sign | code
    }

    fn encode_power(self, x: f64) -> u8 {
        if x.is_nan() || x < 0.0 {
            return 0xFF;
        }
        if x >= power_of_two(127) {
            return self.most;
        }
        if x <= power_of_two(-127) {
            return 0;
        }
        let exponent = exponent_of(x);
        let up = i32::from(x > power_of_two(exponent));
        (exponent + up + self.bias) as u8
    }

    /// [`decode`](MiniFloat::decode) of every code.
    pub fn table(self) -> [f32; 256] {
        std::array::from_fn(|code| self.decode(code as u8))
    }
}

/// `2^e`, for exponents of normal `f64`.
fn power_of_two(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// `floor(log2(x))` of a positive number that is no subnormal `f64`; less than -1022 for those.
fn exponent_of(x: f64) -> i32 {
    (x.to_bits() >> 52 & 0x7FF) as i32 - 1023
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;

    const FORMATS: [DType; 5] = [
        DType::F8E4M3,
        DType::F8E5M2,
        DType::F6E2M3,
        DType::F6E3M2,
        DType::F4E2M1,
    ];

    /// The nearest finite number by looking at all, ties to the even code; saturating.
    fn nearest(format: MiniFloat, values: &[(u8, f64)], x: f64) -> u8 {
        let sign = u8::from(x.is_sign_negative()) << (format.exponent + format.mantissa);
        let size = x.abs().min(1e6);
        let mut best = values[0];
        for &(code, value) in values {
            let (new, old) = ((value - size).abs(), (best.1 - size).abs());
            if new < old || (new == old && code % 2 == 0) {
                best = (code, value);
            }
        }
        sign | best.0
    }

    #[test]
    fn codes_are_the_nearest_of_all() {
        for dtype in FORMATS {
            let format = MiniFloat::of(dtype).unwrap();
            let values: Vec<(u8, f64)> = (0..=format.most)
                .map(|code| (code, f64::from(format.decode(code))))
                .collect();
            let upper = (0..=u16::MAX).map(|bits| f32::from_bits(u32::from(bits) << 16));
            let stream = Philox::new(7);
            let near = (0..20_000).map(|i| (stream.normal(0, i) * 8.0) as f32);
            // Ties, and their neighbours.
            let ties = values.windows(2).flat_map(|pair| {
                let tie = ((pair[0].1 + pair[1].1) / 2.0) as f32;
                let bits = tie.to_bits();
                [bits - 1, bits, bits + 1].map(f32::from_bits)
            });
            for x in upper.chain(near).chain(ties) {
                if x.is_nan() {
                    continue;
                }
                let expected = nearest(format, &values, f64::from(x));
                assert_eq!(format.encode(f64::from(x)), expected, "{dtype} of {x:e}");
            }
        }
    }

    #[test]
    fn every_code_comes_back() {
        for dtype in FORMATS.into_iter().chain([DType::F8E8M0]) {
            let format = MiniFloat::of(dtype).unwrap();
            for code in 0..1u16 << dtype.bits() {
                let code = code as u8;
                let value = format.decode(code);
                if value.is_finite() {
                    assert_eq!(format.encode(f64::from(value)), code, "{dtype} {code:#x}");
                } else if value.is_nan() {
                    assert!(format.decode(format.encode(f64::NAN)).is_nan(), "{dtype}");
                }
            }
        }
    }

    /// The tables of the OCP specifications (8-bit floats, 2023; microscaling formats, 2023).
    #[test]
    fn the_ranges_are_those_of_the_specifications() {
        for (dtype, max, least, exponent) in [
            (DType::F8E4M3, 448.0, 2f32.powi(-9), 8),
            (DType::F8E5M2, 57344.0, 2f32.powi(-16), 15),
            (DType::F6E2M3, 7.5, 0.125, 2),
            (DType::F6E3M2, 28.0, 0.0625, 4),
            (DType::F4E2M1, 6.0, 0.5, 2),
        ] {
            let format = MiniFloat::of(dtype).unwrap();
            assert_eq!(format.max(), max, "{dtype}");
            assert_eq!(format.min_positive(), least, "{dtype}");
            assert_eq!(format.max_exponent(), exponent, "{dtype}");
            for (x, code) in [(f64::INFINITY, format.most), (1e300, format.most)] {
                assert_eq!(format.encode(x), code);
            }
        }
        let scale = MiniFloat::of(DType::F8E8M0).unwrap();
        for (x, code) in [
            (1.0, 127),
            (1.5, 128),
            (2.0, 128),
            (0.0, 0),
            (1e-300, 0),
            (1e300, 254),
            (f64::NAN, 255),
            (-1.0, 255),
        ] {
            assert_eq!(scale.encode(x), code, "{x}");
        }
        assert_eq!(scale.decode(0), 2f32.powi(-127));
        assert_eq!(MiniFloat::of(DType::F16), None);
    }

    #[test]
    fn zeros_keep_their_sign_and_nan_is_what_the_format_has() {
        for dtype in FORMATS {
            let format = MiniFloat::of(dtype).unwrap();
            let negative = format.encode(-0.0);
            assert_eq!(format.encode(0.0), 0);
            assert_eq!(negative, 1 << (dtype.bits() - 1));
            assert!(format.decode(negative).is_sign_negative());
            let nan = format.decode(format.encode(f64::NAN));
            assert_eq!(nan.is_nan(), dtype.bits() == 8, "{dtype}");
        }
    }
}
