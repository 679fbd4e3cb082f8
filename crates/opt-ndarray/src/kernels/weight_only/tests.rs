//! Against sums in `f64`.

use opt_core::DType;
use opt_core::random::Philox;
use proptest::prelude::*;

use super::*;

struct Case {
    kernel: WeightOnly,
    x: Vec<f32>,
    /// The exact sums, and the sums of magnitudes.
    expected: Vec<(f64, f64)>,
}

fn case(m: usize, (k, n): (usize, usize), group: usize, bits: usize, seed: u64) -> Case {
    let noise = Philox::new(seed);
    let draw = |stream: u64, i: usize| noise.uniform(stream, i as u64);
    let most = (1usize << bits) as f64;
    let code = |i: usize, o: usize| (draw(0, i * n + o) * most) as u8;
    let scale = |g: usize, o: usize| (draw(1, g * n + o) + 0.01) as f32;
    let zero = |g: usize, o: usize| (draw(2, g * n + o) * most) as u8;
    let packed = Packed::new((k, n), group, bits, code, scale, zero).unwrap();
    let x: Vec<f32> = (0..m * k).map(|i| (draw(3, i) - 0.5) as f32).collect();
    let bias: Vec<f32> = (0..n).map(|o| draw(4, o) as f32).collect();
    let expected = (0..m * n)
        .map(|at| {
            let (row, o) = (at / n, at % n);
            let mut sums = (f64::from(bias[o]), f64::from(bias[o]).abs());
            for i in 0..k {
                let g = i / group;
                let level = f64::from(code(i, o)) - f64::from(zero(g, o));
                let w = level * f64::from(scale(g, o));
                let product = w * f64::from(x[row * k + i]);
                sums = (sums.0 + product, sums.1 + product.abs());
            }
            sums
        })
        .collect();
    Case {
        kernel: WeightOnly {
            packed,
            bias,
            epilogue: Vec::new(),
        },
        x,
        expected,
    }
}

fn run(kernel: &WeightOnly, x: &[f32], len: usize, threads: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; len];
    let args = [Arg {
        dtype: DType::F32,
        shape: &[],
        bytes: bytemuck::cast_slice(x),
    }];
    let mut outs = [Out {
        dtype: DType::F32,
        shape: &[],
        bytes: bytemuck::cast_slice_mut(&mut out),
    }];
    let mut cx = RunCx {
        threads,
        scratch: &mut [],
    };
    kernel.run(&args, &mut outs, &mut cx).unwrap();
    out
}

fn check(m: usize, (k, n): (usize, usize), group: usize, bits: usize, seed: u64) {
    let Case {
        kernel,
        x,
        expected,
    } = case(m, (k, n), group, bits, seed);
    let found = run(&kernel, &x, m * n, 1);
    // k multiply-adds, a scaling and an addition a group, the bias, and the rounding of a weight:
    // each at most half a unit in the last place of the sum of magnitudes.
    let bound = (k + k.div_ceil(group) + 4) as f64 * f64::from(f32::EPSILON) / 2.0;
    for (i, (&found, &(exact, magnitude))) in found.iter().zip(&expected).enumerate() {
        let error = (f64::from(found) - exact).abs();
        assert!(error <= bound * magnitude, "{i}: {found} is not {exact}");
    }
    assert_eq!(run(&kernel, &x, m * n, 3), found, "threads change nothing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn products_agree_with_the_definition(
        m in 1usize..30, k in 1usize..300, n in 1usize..70, words in 1usize..5,
        bits in prop::sample::select(vec![4usize, 8]), whole: bool, seed in 0u64..1 << 40,
    ) {
        let group = if whole { k } else { 8 * words };
        check(m, (k, n), group, bits, seed);
    }
}

#[test]
fn long_products_agree_with_the_definition() {
    for bits in [4, 8] {
        check(1, (4096, 40), 128, bits, 1);
        check(5, (1000, 600), 32, bits, 2);
        check(64, (512, 96), 64, bits, 3);
    }
}

#[test]
fn groups_of_4_bits_are_whole_words() {
    let groups = |group| Packed::new((64, 3), group, 4, |_, _| 1, |_, _| 1.0, |_, _| 0);
    assert!(groups(12).is_none());
    assert!(groups(16).is_some());
    // One group for all inputs, which need not fill a word.
    let one = Packed::new((13, 3), 13, 4, |_, _| 1, |_, _| 1.0, |_, _| 0).unwrap();
    assert_eq!(one.bytes(), 2 * 16 * 4 + 2 * 64);
}
