//! Properties of all schemes.

use opt_core::{DType, ErrorKind, Tensor};
use proptest::prelude::*;

use super::*;

const SCHEMES: [Scheme; 23] = [
    Scheme::int8(),
    Scheme::int8().asymmetric().per_tensor(),
    Scheme::uint8(),
    Scheme::uint8().group(5),
    Scheme::uint8().symmetric(),
    Scheme::int4(),
    Scheme::int4().asymmetric().group(4),
    Scheme::int4().bits(3),
    Scheme::uint4(),
    Scheme::int2(),
    Scheme::uint2().group(3),
    Scheme::fp8_e4m3(),
    Scheme::fp8_e5m2().per_tensor(),
    Scheme::fp8_e4m3().group(8),
    Scheme::nf4(),
    Scheme::nf4().group(6),
    Scheme::mxfp8(),
    Scheme::mxfp8_e5m2(),
    Scheme::mxfp6(),
    Scheme::mxfp6_e3m2(),
    Scheme::mxfp4(),
    Scheme::nvfp4(),
    Scheme::bf16(),
];

fn schemes() -> impl Strategy<Value = Scheme> {
    proptest::sample::select(SCHEMES.to_vec())
}

/// Numbers of any size that a product of weights may have, with zeros and equal ones among them.
fn tensors() -> impl Strategy<Value = Tensor> {
    let value = prop_oneof![
        8 => -4.0f32..4.0,
        1 => Just(0.0f32),
        1 => Just(1.5f32),
        1 => (-30i32..30).prop_map(|e| 2f32.powi(e)),
        1 => (-140i32..-120).prop_map(|e| 2f64.powi(e) as f32),
    ];
    (1usize..4, 0usize..70).prop_flat_map(move |(rows, columns)| {
        proptest::collection::vec(value.clone(), rows * columns)
            .prop_map(move |data| Tensor::new([rows, columns], data).unwrap())
    })
}

/// All values of an entry's grid, ascending.
fn grid(q: &QuantizedTensor, i: usize) -> Vec<f64> {
    let layout = Layout::new(q.codes.shape(), q.axis, q.block).unwrap();
    let at = layout.at(i);
    let scales = q.scales.as_ref().unwrap();
    let factor = f64::from(factors(scales, q.tensor_scale.as_ref()).unwrap()[at]);
    let mut values: Vec<f64> = match (q.scheme.format(), q.scheme.minifloat()) {
        (Format::Int(_), _) => {
            let zero = q.zero_points.as_ref().map_or(0.0, |z| z.to_f64s()[at]);
            let (low, high) = q.scheme.grid().unwrap();
            (low..=high)
                .map(|level| (f64::from(level) - zero) * factor)
                .collect()
        }
        (_, Some(format)) => (0..1u16 << q.scheme.dtype().bits())
            .map(|code| f64::from(format.decode(code as u8)) * factor)
            .filter(|v| v.is_finite())
            .collect(),
        _ => NF4.iter().map(|&v| f64::from(v) * factor).collect(),
    };
    values.sort_by(f64::total_cmp);
    values
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn every_entry_becomes_a_nearest_number(x in tensors(), scheme in schemes()) {
        let q = quantize_tensor(&x, &scheme).unwrap();
        let back = q.dequantize().unwrap().to_f64s();
        prop_assert_eq!(q.codes().shape(), x.shape());
        for (i, (exact, got)) in x.to_f64s().into_iter().zip(back).enumerate() {
            prop_assert!(got.is_finite());
            if q.scales().is_none() {
                let half = exact.abs() / 256.0 + f64::from(f32::MIN_POSITIVE);
                prop_assert!((exact - got).abs() <= half);
                continue;
            }
            let grid = grid(&q, i);
            let nearest = grid.iter().map(|v| (v - exact).abs()).fold(f64::INFINITY, f64::min);
            let (low, high) = (grid[0], grid[grid.len() - 1]);
            // Divisions and products are rounded to f32.
            let slack = 4e-7 * (exact.abs().max(low.abs().max(high.abs()) * 0.01)) + 1e-44;
            prop_assert!(
                (exact - got).abs() <= nearest + slack,
                "{}: {} became {}, {} away where {} is possible",
                scheme, exact, got, (exact - got).abs(), nearest
            );
            // Half a step of integers, wherever the range was found in the tensor.
            if let Format::Int(_) = scheme.format() {
                let half = (high - low) / (grid.len() - 1) as f64 / 2.0;
                prop_assert!((exact - got).abs() <= half * (1.0 + 1e-4) + 1e-44, "{}", scheme);
            }
            if exact == 0.0 {
                prop_assert_eq!(got, 0.0, "{}", scheme);
            }
        }
    }

    #[test]
    fn order_is_kept_within_a_group(x in tensors(), scheme in schemes()) {
        let q = quantize_tensor(&x, &scheme).unwrap();
        let back = q.dequantize().unwrap().to_f64s();
        let layout = Layout::new(x.shape(), q.axis, q.block).unwrap();
        let mut entries: Vec<(usize, f64, f64)> = x
            .to_f64s()
            .into_iter()
            .zip(back)
            .enumerate()
            .map(|(i, (a, b))| (layout.at(i), a, b))
            .collect();
        entries.sort_by(|a, b| (a.0, a.1).partial_cmp(&(b.0, b.1)).unwrap());
        for pair in entries.windows(2).filter(|p| p[0].0 == p[1].0) {
            prop_assert!(pair[0].2 <= pair[1].2, "{}: {:?}", scheme, pair);
        }
    }

    #[test]
    fn scales_are_finite_and_positive(
        exponent in -149i32..127,
        len in 0usize..40,
        scheme in schemes(),
    ) {
        // All entries equal, down to subnormal numbers.
        let value = 2f64.powi(exponent) as f32;
        let x = Tensor::new([1, len], vec![value; len]).unwrap();
        let q = quantize_tensor(&x, &scheme).unwrap();
        for part in [q.scales(), q.tensor_scale()].into_iter().flatten() {
            for s in part.to_f64s() {
                prop_assert!(s.is_finite() && s > 0.0, "{}: a scale of {}", scheme, s);
            }
        }
        let finite = q.dequantize().unwrap().is_finite();
        prop_assert!(finite, "{} of {}", scheme, value);
    }
}

#[test]
fn nan_and_infinity_are_errors() {
    for scheme in SCHEMES {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let x = Tensor::new([1, 3], [1.0, bad, 2.0]).unwrap();
            let error = quantize_tensor(&x, &scheme).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data, "{scheme}");
            assert!(error.message().contains("entry 1"), "{error}");
        }
    }
    let large = Tensor::new([1], [1e6f32]).unwrap();
    assert!(quantize_tensor(&large, &Scheme::f16()).is_err());
}

#[test]
fn empty_and_scalar_tensors_have_a_form() {
    for scheme in SCHEMES {
        for x in [
            Tensor::scalar(0.75f32),
            Tensor::zeros(DType::F32, [0]).unwrap(),
            Tensor::zeros(DType::F32, [3, 0]).unwrap(),
            Tensor::zeros(DType::F32, [0, 3]).unwrap(),
            Tensor::zeros(DType::F32, [2, 3]).unwrap(),
        ] {
            let back = quantize_tensor(&x, &scheme).unwrap().dequantize().unwrap();
            assert_eq!(back, x, "{scheme}");
        }
    }
}

/// The bits of the table on the crate's page.
#[test]
fn bytes_are_those_of_the_parts() {
    let x = Tensor::zeros(DType::F32, [64, 4096]).unwrap();
    for (scheme, bits) in [
        (Scheme::int8(), 8.0 + 32.0 / 4096.0),
        (Scheme::uint8(), 8.0 + 40.0 / 4096.0),
        (Scheme::int4(), 5.0),
        (Scheme::int4().group(128), 4.25),
        (Scheme::uint4(), 4.0 + 36.0 / 32.0),
        (Scheme::int2(), 3.0),
        (Scheme::uint2(), 2.0 + 34.0 / 32.0),
        (Scheme::fp8_e4m3(), 8.0 + 32.0 / 4096.0),
        (Scheme::nf4(), 4.5),
        (Scheme::mxfp8(), 8.25),
        (Scheme::mxfp6(), 6.25),
        (Scheme::mxfp4(), 4.25),
        (Scheme::nvfp4(), 4.5 + 32.0 / (64.0 * 4096.0)),
        (Scheme::f16(), 16.0),
    ] {
        let q = quantize_tensor(&x, &scheme).unwrap();
        assert_eq!(q.bits_per_weight(), bits, "{scheme}");
    }
}

/// The example of the MX specification's conversion: the shared exponent is that of the largest
/// magnitude less that of the element's largest number, and what is beyond saturates.
#[test]
fn microscaling_shares_the_exponent_of_the_largest() {
    let mut data = [0f32; 32];
    data[..6].copy_from_slice(&[7.0, -1.0, 0.3, 5.0, 2.5, -0.2]);
    let x = Tensor::new([1, 32], data).unwrap();
    let q = quantize_tensor(&x, &Scheme::mxfp4()).unwrap();
    // floor(log2(7)) = 2, and E2M1 reaches 2^2: scale 1. 7 saturates to 6.
    assert_eq!(q.scales().unwrap().to_f64s(), [1.0]);
    let back = q.dequantize().unwrap().to_f64s();
    assert_eq!(back[..6], [6.0, -1.0, 0.5, 4.0, 2.0, -0.0]);
    let q = quantize_tensor(&x, &Scheme::mxfp8()).unwrap();
    // E4M3 reaches 2^8.
    assert_eq!(q.scales().unwrap().to_f64s(), [2f64.powi(-6)]);
}

/// NVFP4's two scales: 6 and 448 are the largest numbers of elements and scales.
#[test]
fn nvfp4_scales_by_group_and_tensor() {
    let mut data = [0f32; 32];
    (data[0], data[1], data[16]) = (2688.0, -448.0, 6.0);
    let x = Tensor::new([1, 32], data).unwrap();
    let q = quantize_tensor(&x, &Scheme::nvfp4()).unwrap();
    assert_eq!(q.tensor_scale().unwrap().to_f64s(), [1.0]);
    assert_eq!(q.scales().unwrap().dtype(), DType::F8E4M3);
    assert_eq!(q.scales().unwrap().to_f64s(), [448.0, 1.0]);
    let back = q.dequantize().unwrap().to_f64s();
    assert_eq!((back[0], back[1], back[16]), (2688.0, -448.0, 6.0));
}

#[test]
fn the_levels_of_nf4_come_back_exactly() {
    let x = Tensor::new([16], NF4).unwrap();
    let q = quantize_tensor(&x, &Scheme::nf4()).unwrap();
    assert_eq!(q.codes().codes().unwrap(), (0..16).collect::<Vec<u8>>());
    assert_eq!(q.dequantize().unwrap(), x);
}
