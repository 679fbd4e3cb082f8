//! Every path against the definition, in plain integers.

use opt_core::ops::Window;
use opt_core::random::Philox;
use proptest::prelude::*;

use super::super::{Arg, Out, RunCx};
use super::*;

/// The paths that this processor has.
fn paths() -> Vec<IntPath> {
    let all = [
        IntPath::Portable,
        IntPath::Vnni,
        IntPath::Amx,
        IntPath::Auto,
    ];
    all.into_iter().filter(|p| p.is_available()).collect()
}

/// Bytes of all values, the extreme ones often.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let stream = Philox::new(seed);
    (0..len as u64)
        .map(|i| match (stream.uniform(0, i) * 320.0) as u32 {
            v @ 0..256 => v as u8,
            256..288 => 0x80,
            288..304 => 0x7f,
            _ => 0xff,
        })
        .collect()
}

#[derive(Debug, Clone, Copy)]
enum End {
    Requantize { signed: bool, relu: bool },
    Dequantize { relu: bool, offset: bool },
    Sums,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        (any::<bool>(), any::<bool>()).prop_map(|(signed, relu)| End::Requantize { signed, relu }),
        (any::<bool>(), any::<bool>()).prop_map(|(relu, offset)| End::Dequantize { relu, offset }),
        Just(End::Sums),
    ]
}

/// A layer of random weights whose sums use the output's range and go beyond it.
fn layer(
    geometry: Option<Geometry>,
    (groups, inputs, outputs): (usize, usize, usize),
    signed: bool,
    zero: u8,
    end: End,
    seed: u64,
) -> Layer {
    let taps = geometry.as_ref().map_or(1, Geometry::taps);
    let channels = groups * outputs;
    let weight = bytes(channels * inputs * taps, seed);
    let noise = Philox::new(seed + 1);
    let depth = ((inputs * taps) as f32).sqrt();
    Layer {
        geometry,
        groups,
        inputs,
        outputs,
        weight: weight.into_iter().map(|w| w as i8).collect(),
        bias: (0..channels as u64)
            .map(|i| ((noise.uniform(0, i) - 0.5) * 50_000.0) as i32)
            .collect(),
        zero: Some(if signed {
            i32::from(zero as i8)
        } else {
            i32::from(zero)
        }),
        dtype: if signed { DType::I8 } else { DType::U8 },
        multiplier: (0..channels as u64)
            .map(|i| (noise.uniform(1, i) as f32 + 0.01) / (80.0 * depth))
            .collect(),
        finish: match end {
            End::Dequantize { relu, .. } => Finish::Dequantize { relu },
            End::Sums => Finish::Sums,
            End::Requantize { signed, relu } => {
                let (low, high) = if signed { (-128, 127) } else { (0, 255) };
                let zero = if signed { -5 } else { 100 };
                Finish::Requantize {
                    zero,
                    low: if relu { zero } else { low },
                    high,
                }
            }
        },
        offset: match end {
            End::Dequantize { offset: true, .. } => (0..channels as u64)
                .map(|i| noise.uniform(2, i) as f32 - 0.5)
                .collect(),
            _ => Vec::new(),
        },
        epilogue: Vec::new(),
        path: IntPath::Portable,
    }
}

/// The sum of an output channel for a pixel, from the definition.
fn sum(l: &Layer, image: &[u8], channel: usize, pixel: usize) -> i32 {
    let group = channel / l.outputs;
    let taps = l.taps();
    let read = |at: usize| {
        if l.dtype == DType::I8 {
            i64::from(image[at] as i8)
        } else {
            i64::from(image[at])
        }
    };
    let mut sum = i64::from(l.bias[channel]);
    for c in 0..l.inputs {
        let from = group * l.inputs + c;
        for tap in 0..taps {
            let x = match &l.geometry {
                None => Some(pixel * l.inputs + c),
                Some(g) => {
                    let place = |axis: usize, out: usize, tap: usize| {
                        let at = out * g.stride[axis] + tap * g.dilation[axis];
                        at.checked_sub(g.pad[axis]).filter(|&i| i < g.input[axis])
                    };
                    let y = place(1, pixel / g.output[2], tap / g.kernel[2]);
                    let x = place(2, pixel % g.output[2], tap % g.kernel[2]);
                    y.zip(x)
                        .map(|(y, x)| (from * g.input[1] + y) * g.input[2] + x)
                }
            };
            // The border holds zero points.
            let x = x.map_or(0, |at| read(at) - i64::from(l.zero.unwrap()));
            sum += x * i64::from(l.weight[(channel * l.inputs + c) * taps + tap]);
        }
    }
    sum as i32
}

/// The layer's output as bytes, from the definition.
fn reference(l: &Layer, x: &[u8], images: usize, pixels: usize) -> Vec<u8> {
    let channels = l.groups * l.outputs;
    let input = x.len() / images;
    let mut out = Vec::new();
    for n in 0..images {
        let image = &x[n * input..][..input];
        for i in 0..channels * pixels {
            let (channel, pixel) = match l.geometry {
                Some(_) => (i / pixels, i % pixels),
                None => (i % channels, i / channels),
            };
            let sum = sum(l, image, channel, pixel);
            let mut scaled = sum as f32 * l.multiplier[channel];
            match l.finish {
                Finish::Sums => out.extend(sum.to_ne_bytes()),
                Finish::Requantize { zero, low, high } => {
                    let v = scaled.round_ties_even() as i64;
                    let v = v.saturating_add(i64::from(zero));
                    out.push(v.clamp(i64::from(low), i64::from(high)) as u8);
                }
                Finish::Dequantize { relu } => {
                    scaled += l.offset.get(channel).unwrap_or(&-0.0);
                    let v = if relu && scaled <= 0.0 { 0.0 } else { scaled };
                    out.extend(v.to_ne_bytes());
                }
            }
        }
    }
    out
}

fn run(l: &Layer, path: IntPath, rows: usize, x: &[u8], len: usize, threads: usize) -> Vec<u8> {
    run_on(l, None, path, rows, x, len, threads)
}

/// A run with a scale and zero point of its own, if there are.
fn run_on(
    l: &Layer,
    grid: Option<(f32, u8)>,
    path: IntPath,
    rows: usize,
    x: &[u8],
    len: usize,
    threads: usize,
) -> Vec<u8> {
    let kernel = compile(Layer { path, ..l.clone() }, rows);
    // Floats need an aligned buffer.
    let mut out = vec![f32::NAN; len.div_ceil(4)];
    let dtype = match l.finish {
        Finish::Requantize { .. } => DType::U8,
        Finish::Dequantize { .. } => DType::F32,
        Finish::Sums => DType::I32,
    };
    let bytes = &mut bytemuck::cast_slice_mut(&mut out)[..len];
    let arg = |dtype, bytes| Arg {
        dtype,
        shape: &[],
        bytes,
    };
    let (scale, zero) = grid.unwrap_or_default();
    let (scale, zero) = ([scale], [zero]);
    let mut args = vec![arg(l.dtype, x)];
    if grid.is_some() {
        args.push(arg(DType::F32, bytemuck::cast_slice(&scale)));
        args.push(arg(l.dtype, &zero));
    }
    let mut outs = [Out {
        dtype,
        shape: &[],
        bytes,
    }];
    let mut scratch = opt_core::tensor::Buffer::zeroed(kernel.scratch());
    let mut cx = RunCx {
        threads,
        scratch: scratch.bytes_mut(),
    };
    kernel.run(&args, &mut outs, &mut cx).unwrap();
    outs[0].bytes.to_vec()
}

fn check(l: &Layer, images: usize, pixels: usize, x: &[u8]) {
    let expected = reference(l, x, images, pixels);
    for path in paths() {
        for threads in [1, 3] {
            let found = run(l, path, pixels, x, expected.len(), threads);
            let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{path:?} on {threads} threads");
        }
    }
}

fn product(m: usize, n: usize, k: usize, signed: bool, zero: u8, end: End, seed: u64) {
    let l = layer(None, (1, k, n), signed, zero, end, seed);
    check(&l, 1, m, &bytes(m * k, seed + 2));
}

fn convolution(
    images: usize,
    channels: (usize, usize, usize),
    size: [usize; 2],
    kernel: [usize; 2],
    window: &Window,
    signed: bool,
    zero: u8,
    end: End,
    seed: u64,
) {
    let out: Vec<usize> = (0..2)
        .map(|i| {
            let reach = (kernel[i] - 1) * window.dilations[i];
            let padded = size[i] + window.pads_begin[i] + window.pads_end[i];
            (padded.saturating_sub(reach + 1)) / window.strides[i] + 1
        })
        .collect();
    if (0..2).any(|i| {
        (kernel[i] - 1) * window.dilations[i] + 1
            > size[i] + window.pads_begin[i] + window.pads_end[i]
    }) {
        return;
    }
    let geometry = Geometry::new(&size, &out, &kernel, window);
    let l = layer(Some(geometry), channels, signed, zero, end, seed);
    let x = bytes(
        images * channels.0 * channels.1 * size[0] * size[1],
        seed + 2,
    );
    check(&l, images, out[0] * out[1], &x);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_agree_with_the_definition(
        m in 1usize..=200, n in 1usize..=200, k in 1usize..=200,
        signed: bool, zero: u8, end in end(), seed in 0u64..1 << 40,
    ) {
        product(m, n, k, signed, zero, end, seed);
    }

    #[test]
    fn convolutions_agree_with_the_definition(
        images in 1usize..4,
        groups in 1usize..4, inputs in 1usize..20, outputs in 1usize..40,
        size in [1usize..20, 1usize..20], kernel in [1usize..5, 1usize..5],
        strides in [1usize..4, 1usize..4], dilations in [1usize..3, 1usize..3],
        pads in [0usize..3, 0usize..3], end_pads in [0usize..3, 0usize..3],
        signed: bool, zero: u8, end in end(), seed in 0u64..1 << 40,
    ) {
        let mut window = Window::new(2);
        window.strides = strides.to_vec().into();
        window.dilations = dilations.to_vec().into();
        window.pads_begin = pads.to_vec().into();
        window.pads_end = end_pads.to_vec().into();
        convolution(
            images, (groups, inputs, outputs), size, kernel, &window, signed, zero, end, seed,
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A grid that comes with the run gives what the same grid as a constant does, on every path.
    #[test]
    fn grids_of_a_run_are_constants_that_come_later(
        m in 1usize..100, n in 1usize..80, k in 1usize..150,
        signed: bool, zero: u8, relu: bool, offset: bool, threads in 1usize..4,
        scale in 0.001f32..2.0, seed in 0u64..1 << 40,
    ) {
        let end = End::Dequantize { relu, offset };
        let mut fixed = layer(None, (1, k, n), signed, zero, end, seed);
        fixed.epilogue = vec![UnaryOp::Tanh];
        let later = Layer { zero: None, ..fixed.clone() };
        for m in &mut fixed.multiplier {
            *m *= scale;
        }
        let x = bytes(m * k, seed + 2);
        let expected = run(&fixed, IntPath::Portable, m, &x, 4 * m * n, 1);
        for path in paths() {
            let found = run_on(&later, Some((scale, zero)), path, m, &x, 4 * m * n, threads);
            prop_assert_eq!(&found, &expected, "{:?}", path);
        }
    }

    #[test]
    fn grids_of_a_run_serve_convolutions(
        inputs in 1usize..9, outputs in 1usize..20, size in 3usize..12, zero: u8, signed: bool,
        scale in 0.001f32..2.0, seed in 0u64..1 << 40,
    ) {
        let window = Window::new(2).pad(1);
        let geometry = Geometry::new(&[size, size], &[size, size], &[3, 3], &window);
        let end = End::Dequantize { relu: false, offset: true };
        let mut fixed = layer(Some(geometry), (1, inputs, outputs), signed, zero, end, seed);
        let later = Layer { zero: None, ..fixed.clone() };
        for m in &mut fixed.multiplier {
            *m *= scale;
        }
        let x = bytes(inputs * size * size, seed + 2);
        let len = 4 * outputs * size * size;
        let expected = reference(&fixed, &x, 1, size * size);
        for path in paths() {
            let found = run_on(&later, Some((scale, zero)), path, 1, &x, len, 2);
            prop_assert_eq!(&found, &expected, "{:?}", path);
        }
    }

    #[test]
    fn max_pooling_agrees_with_the_definition(
        channels in 1usize..4, size in [1usize..20, 1usize..90], kernel in [1usize..5, 1usize..5],
        strides in [1usize..4, 1usize..4], pads in [0usize..4, 0usize..4], halves: bool,
        signed: bool, seed in 0u64..1 << 40,
    ) {
        let (kernel, strides) = if halves { ([2; 2], [2; 2]) } else { (kernel, strides) };
        let pads = if halves { [0; 2] } else { pads };
        let pads = [pads[0].min(kernel[0] - 1), pads[1].min(kernel[1] - 1)];
        let mut window = Window::new(2);
        window.strides = strides.to_vec().into();
        window.pads_begin = pads.to_vec().into();
        window.pads_end = pads.to_vec().into();
        let fits = |i: usize| (size[i] + 2 * pads[i]).checked_sub(kernel[i]);
        let (Some(h), Some(w)) = (fits(0), fits(1)) else { return Ok(()) };
        let out = [h / strides[0] + 1, w / strides[1] + 1];
        let dtype = if signed { DType::I8 } else { DType::U8 };
        let kernel_ = pool::IntMaxPool {
            geometry: Geometry::new(&size, &out, &kernel, &window),
            dtype,
        };
        let x = bytes(channels * size[0] * size[1], seed);
        let mut found = vec![0u8; channels * out[0] * out[1]];
        let args = [Arg { dtype, shape: &[], bytes: &x }];
        let mut outs = [Out { dtype, shape: &[], bytes: &mut found }];
        let mut cx = RunCx { threads: 2, scratch: &mut [] };
        kernel_.run(&args, &mut outs, &mut cx).unwrap();
        let value = |b: u8| if signed { i32::from(b as i8) } else { i32::from(b) };
        for (i, &found) in found.iter().enumerate() {
            let (c, y, x_) = (i / (out[0] * out[1]), i / out[1] % out[0], i % out[1]);
            let mut best = i32::MIN;
            for ky in 0..kernel[0] {
                for kx in 0..kernel[1] {
                    let row = (y * strides[0] + ky).checked_sub(pads[0]).filter(|&r| r < size[0]);
                    let col = (x_ * strides[1] + kx).checked_sub(pads[1]).filter(|&c| c < size[1]);
                    if let (Some(row), Some(col)) = (row, col) {
                        best = best.max(value(x[(c * size[0] + row) * size[1] + col]));
                    }
                }
            }
            if best > i32::MIN {
                prop_assert_eq!(value(found), best, "{}", i);
            }
        }
    }

    /// Sums of two tensors against the definition in `f64`.
    #[test]
    fn sums_of_tensors_agree_with_the_definition(
        len in 1usize..300, zeros: (u8, u8), signs: (bool, bool), relu: bool, signed: bool,
        scales in (0.01f32..3.0, 0.01f32..3.0), seed in 0u64..1 << 40,
    ) {
        let value = |signed: bool, byte: u8| {
            if signed { i32::from(byte as i8) } else { i32::from(byte) }
        };
        let dtype = |signed| if signed { DType::I8 } else { DType::U8 };
        let (low, high, zero) = if signed { (-128, 127, -7) } else { (0, 255, 99) };
        let low = if relu { zero } else { low };
        let kernel = add::IntAdd {
            operands: [
                (dtype(signs.0), scales.0, value(signs.0, zeros.0)),
                (dtype(signs.1), scales.1, value(signs.1, zeros.1)),
            ],
            zero,
            low,
            high,
        };
        let (a, b) = (bytes(len, seed), bytes(len, seed + 1));
        let mut out = vec![0u8; len];
        let arg = |dtype, bytes| Arg { dtype, shape: &[], bytes };
        let args = [arg(dtype(signs.0), &a[..]), arg(dtype(signs.1), &b[..])];
        let mut outs = [Out { dtype: dtype(signed), shape: &[], bytes: &mut out }];
        let mut cx = RunCx { threads: 2, scratch: &mut [] };
        kernel.run(&args, &mut outs, &mut cx).unwrap();
        // Over either operand the same.
        for over in 0..2 {
            let mut over_it = args[over].bytes.to_vec();
            let mut given = args;
            given[over].bytes = &[];
            let mut outs = [Out { dtype: dtype(signed), shape: &[], bytes: &mut over_it }];
            kernel.run(&given, &mut outs, &mut cx).unwrap();
            prop_assert_eq!(&outs[0].bytes, &out);
        }
        for i in 0..len {
            let a = value(signs.0, a[i]) - value(signs.0, zeros.0);
            let b = value(signs.1, b[i]) - value(signs.1, zeros.1);
            let exact = f64::from(a) * f64::from(scales.0) + f64::from(b) * f64::from(scales.1);
            let point = exact.round_ties_even().clamp(f64::from(low - zero), f64::from(high - zero));
            let found = f64::from(value(signed, out[i]) - zero);
            // Floats of 24 bits may round a tie the other way.
            let near = (exact - exact.floor() - 0.5).abs() < 1e-3 && (found - exact).abs() < 0.502;
            prop_assert!(found == point || near, "{} is {}, not {}", i, found, point);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// Whole cache lines of channels, which are read in their place.
    #[test]
    fn convolutions_of_many_channels_agree_with_the_definition(
        groups in 1usize..3, quarters in 1usize..3, outputs in 1usize..70,
        size in [3usize..14, 3usize..14], stride in 1usize..3,
        signed: bool, zero: u8, end in end(), seed in 0u64..1 << 40,
    ) {
        let window = Window::new(2).pad(1).stride(stride);
        convolution(
            2, (groups, 64 * quarters, outputs), size, [3, 3], &window, signed, zero, end, seed,
        );
    }
}

#[test]
fn long_sums_and_large_products_agree_with_the_definition() {
    let dequantize = End::Dequantize {
        relu: false,
        offset: false,
    };
    let requantize = End::Requantize {
        signed: false,
        relu: true,
    };
    // Sums in several parts, read in place and copied; more weights than the second-level cache.
    product(33, 40, 4096, false, 128, dequantize, 1);
    product(70, 17, 3000, true, 7, requantize, 2);
    product(100, 300, 8192, false, 3, requantize, 3);
    product(1, 130, 5000, true, 255, dequantize, 4);
    // Rows of whole cache lines, an odd number and a power of two.
    product(80, 64, 320, false, 200, dequantize, 5);
    product(64, 96, 1024, true, 200, requantize, 6);
}

#[test]
fn sums_and_outputs_saturate_alike() {
    let l = |multiplier: f32, bias: i32| Layer {
        bias: vec![bias; 20],
        multiplier: vec![multiplier; 20],
        ..layer(
            None,
            (1, 70, 20),
            false,
            0,
            End::Requantize {
                signed: true,
                relu: false,
            },
            9,
        )
    };
    let x = bytes(70 * 5, 10);
    // Beyond the integers' range, and sums that wrap around.
    check(&l(1e9, 0), 1, 5, &x);
    check(&l(f32::MAX, -3), 1, 5, &x);
    check(&l(1e-9, i32::MAX - 10), 1, 5, &x);
    check(&l(0.0, i32::MIN), 1, 5, &x);
}

#[test]
fn a_multiplier_that_is_no_number_gives_the_same_on_every_path() {
    for multiplier in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for end in [
            End::Requantize {
                signed: false,
                relu: false,
            },
            End::Dequantize {
                relu: true,
                offset: false,
            },
        ] {
            let l = Layer {
                multiplier: vec![multiplier; 9],
                ..layer(None, (1, 65, 9), false, 3, end, 11)
            };
            let x = bytes(65 * 40, 12);
            let len = if matches!(end, End::Dequantize { .. }) {
                4 * 40 * 9
            } else {
                40 * 9
            };
            let expected = run(&l, IntPath::Portable, 40, &x, len, 1);
            for path in paths() {
                assert_eq!(run(&l, path, 40, &x, len, 1), expected, "{path:?}");
            }
        }
    }
}

#[test]
fn an_empty_batch_is_no_output() {
    let requantize = End::Requantize {
        signed: false,
        relu: false,
    };
    let l = layer(None, (1, 8, 4), false, 0, requantize, 1);
    for path in paths() {
        assert!(run(&l, path, 0, &[], 0, 2).is_empty());
    }
}
