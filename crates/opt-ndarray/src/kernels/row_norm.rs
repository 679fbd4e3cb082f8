//! Normalization of rows in `f32` by vector instructions.

use super::lanes::by_isa;

/// Running sums of a row: several, since each addition waits for the one before.
const SUMS: usize = 64;

/// The sum of a function of the entries.
#[inline(always)]
fn total(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; SUMS];
    let (chunks, rest) = x.as_chunks::<SUMS>();
    for chunk in chunks {
        for (s, &v) in sums.iter_mut().zip(chunk) {
            *s += f(v);
        }
    }
    for (s, &v) in sums.iter_mut().zip(rest) {
        *s += f(v);
    }
    let mut width = SUMS / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

by_isa! {
    /// Normalizes rows as long as `scale`: `(x - mean) / sqrt(var + epsilon) * scale + bias`, or
    /// the same without the mean.
    pub(super) fn normalize_rows(x: &[f32], scale: &[f32], bias: Option<&[f32]>, centre: bool, epsilon: f32, out: &mut [f32]) = |_FMA| {
        let len = scale.len();
        let over = 1.0 / len as f32;
        for (x, out) in x.chunks_exact(len).zip(out.chunks_exact_mut(len)) {
            let mean = if centre { total(x, |v| v) * over } else { 0.0 };
            let var = total(x, |v| (v - mean) * (v - mean)) * over;
            let inv = 1.0 / (var + epsilon).sqrt();
            match bias {
                Some(bias) => {
                    for (((y, &x), &a), &b) in out.iter_mut().zip(x).zip(scale).zip(bias) {
                        *y = (x - mean) * (inv * a) + b;
                    }
                }
                None => {
                    for ((y, &x), &a) in out.iter_mut().zip(x).zip(scale) {
                        *y = (x - mean) * (inv * a);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_agree_with_the_definition() {
        for len in [1, 7, 64, 130, 1000] {
            let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) * 0.1 + 3.0;
            let x: Vec<f32> = (0..3 * len).map(value).collect();
            let scale: Vec<f32> = (0..len).map(|i| 1.0 + 0.01 * (i % 9) as f32).collect();
            let bias: Vec<f32> = (0..len).map(|i| 0.1 * (i % 5) as f32).collect();
            for (centre, bias) in [(true, Some(&bias[..])), (false, None), (true, None)] {
                let mut out = vec![f32::NAN; x.len()];
                normalize_rows(&x, &scale, bias, centre, 1e-5, &mut out);
                for (x, out) in x.chunks_exact(len).zip(out.chunks_exact(len)) {
                    let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                    let over = 1.0 / len as f64;
                    let mean = if centre {
                        x.iter().sum::<f64>() * over
                    } else {
                        0.0
                    };
                    let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() * over;
                    for (i, &found) in out.iter().enumerate() {
                        let plus = bias.map_or(0.0, |b| f64::from(b[i]));
                        let normal = (x[i] - mean) / (var + 1e-5).sqrt();
                        let want = normal * f64::from(scale[i]) + plus;
                        assert!((f64::from(found) - want).abs() < 1e-5, "{found} for {want}");
                    }
                }
            }
        }
    }
}
