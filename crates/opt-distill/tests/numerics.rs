//! What holds for all inputs: zeros where student and teacher agree, invariances, and finite
//! gradients where a formula has a root or a logarithm of 0.

use opt_core::autodiff::grad;
use opt_core::{Backend, DType, GraphBuilder, Result, Tensor, TensorType};
use opt_distill::{
    AttentionTransfer, Dist, Dkd, FeatureLoss, Features, Hint, LogitLoss, Pad, Rkd, SoftTargets,
};
use opt_ndarray::NdarrayBackend;
use proptest::prelude::*;

enum Term {
    Logits(Box<dyn LogitLoss>),
    Features(Box<dyn FeatureLoss>),
}

fn logits(loss: impl LogitLoss + 'static) -> Term {
    Term::Logits(Box::new(loss))
}

fn features(loss: impl FeatureLoss + 'static) -> Term {
    Term::Features(Box::new(loss))
}

/// The loss and its gradient by the student, with label 0 for all.
fn run(term: &Term, s: &Tensor, t: &Tensor) -> Result<(f64, Vec<f64>)> {
    let mut b = GraphBuilder::new("loss");
    let ty = |x: &Tensor| TensorType::new(x.dtype(), x.shape());
    let (x, y) = (b.input("s", ty(s))?, b.input("t", ty(t))?);
    let loss = match term {
        Term::Features(loss) => loss.build(&mut b, &Features::new(x, y))?,
        Term::Logits(loss) => {
            let labels = b.constant(Tensor::zeros(DType::I64, [s.shape()[0]])?);
            loss.build(&mut b, x, y, Some(labels))?
        }
    };
    let gradient = grad(&mut b, loss, &[x])?.of(x)?;
    b.output("loss", loss)?;
    b.output("gradient", gradient)?;
    let out = NdarrayBackend::new().run_once(&b.finish()?, &[s.clone(), t.clone()])?;
    Ok((out[0].item()?, out[1].to_f64s()))
}

fn all_finite(term: &Term, s: &Tensor, t: &Tensor) -> (f64, Vec<f64>) {
    let (loss, gradient) = run(term, s, t).unwrap();
    assert!(loss.is_finite(), "{loss}");
    assert!(gradient.iter().all(|g| g.is_finite()), "{gradient:?}");
    (loss, gradient)
}

fn tensor(dtype: DType, shape: &[usize], data: &[f64]) -> Tensor {
    Tensor::from_f64s(dtype, shape, data).unwrap()
}

#[test]
fn examples_that_coincide_have_no_distance_and_no_gradient() {
    for dtype in [DType::F32, DType::F64] {
        // The first two examples of the student are one point.
        let s = tensor(dtype, &[3, 2], &[1.0, 2.0, 1.0, 2.0, 4.0, 6.0]);
        let t = tensor(dtype, &[3, 2], &[0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
        let (loss, _) = all_finite(&features(Rkd::distance()), &s, &t);
        // The student's distances are 0, 5 and 5; the mean is over those above 0.
        let mean = (2.0 + 2f64.sqrt()) / 3.0;
        let (near, far) = (1.0 / mean, 2f64.sqrt() / mean);
        let half_square = |d: f64| d * d / 2.0;
        let sum = half_square(near) + half_square(1.0 - near) + half_square(1.0 - far);
        assert!((loss - 2.0 * sum / 9.0).abs() < 1e-6, "{loss}");
        all_finite(&features(Rkd::angle()), &s, &t);
        // All coincide, or there is one example only.
        for shape in [[3, 2], [1, 2]] {
            let same = Tensor::full(dtype, shape, 0.5).unwrap();
            for loss in [Rkd::distance(), Rkd::angle()] {
                let (loss, gradient) = all_finite(&features(loss), &same, &same);
                assert_eq!(loss, 0.0);
                assert!(gradient.iter().all(|&g| g == 0.0));
            }
        }
    }
}

#[test]
fn flat_probabilities_have_no_correlation_and_no_gradient() {
    for dtype in [DType::F32, DType::F64] {
        let dist = Dist {
            beta: 2.0,
            gamma: 3.0,
            tau: 2.0,
        };
        let flat = Tensor::full(dtype, [2, 10], 0.3).unwrap();
        let t: Vec<f64> = (0..20).map(|i| f64::from(i % 7)).collect();
        let t = tensor(dtype, &[2, 10], &t);
        let (loss, gradient) = all_finite(&logits(dist), &flat, &t);
        assert_eq!(loss, 4.0 * (2.0 + 3.0));
        assert!(gradient.iter().all(|&g| g == 0.0), "{gradient:?}");
    }
}

#[test]
fn dead_layers_have_no_attention_and_no_gradient() {
    for p in [1.0, 2.0, 3.0] {
        let dead = Tensor::zeros(DType::F32, [1, 2, 2, 2]).unwrap();
        let t = Tensor::full(DType::F32, [1, 3, 2, 2], 1.0).unwrap();
        let (loss, gradient) = all_finite(&features(AttentionTransfer { p }), &dead, &t);
        // Four entries of a unit vector, all alike.
        assert!((loss - 0.25).abs() < 1e-6, "{loss}");
        assert!(gradient.iter().all(|&g| g == 0.0), "{gradient:?}");
    }
}

#[test]
fn probabilities_of_zero_add_nothing() {
    for dtype in [DType::F32, DType::F64] {
        // e^-1000 rounds to 0 in both dtypes.
        let sure = tensor(dtype, &[2, 3], &[1000.0, 0.0, 0.0, 0.0, 1000.0, -1000.0]);
        let s = tensor(dtype, &[2, 3], &[0.0, 1.0, 2.0, 3.0, 0.0, 1.0]);
        for loss in [SoftTargets::default(), SoftTargets::only(1.0)] {
            all_finite(&logits(loss), &s, &sure);
            all_finite(&logits(loss), &sure, &s);
        }
        let dkd = Dkd {
            temperature: 1.0,
            ..Dkd::default()
        };
        all_finite(&logits(dkd), &s, &sure);
        all_finite(&logits(dkd), &sure, &s);
        all_finite(&logits(Dist::default()), &sure, &s);
    }
}

#[test]
fn a_variance_cannot_fall_below_its_floor() {
    let x = Tensor::full(DType::F32, [2, 3], 1.0).unwrap();
    // Variances start at 1 + eps, where the logarithm of a perfect student is about eps.
    let (loss, _) = all_finite(&features(Pad { eps: 0.5 }), &x, &x);
    assert!((loss - 1.5f64.ln()).abs() < 1e-6, "{loss}");
}

#[test]
fn settings_out_of_range_and_shapes_that_do_not_fit_are_errors() {
    let x = Tensor::full(DType::F32, [2, 3], 1.0).unwrap();
    let plane = Tensor::full(DType::F32, [2, 3, 2, 2], 1.0).unwrap();
    let vector = Tensor::full(DType::F32, [2], 1.0).unwrap();
    let one = Tensor::full(DType::F32, [2, 1], 1.0).unwrap();
    let soft = SoftTargets::default();
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let dkd = |alpha, beta, temperature| {
        logits(Dkd {
            alpha,
            beta,
            temperature,
        })
    };
    let dist = |beta, gamma, tau| logits(Dist { beta, gamma, tau });
    let targets = |temperature, alpha| logits(SoftTargets { temperature, alpha });
    for (term, input, expected) in [
        (targets(0.0, 1.0), &x, "temperature"),
        (targets(inf, 1.0), &x, "temperature"),
        (targets(1.0, -0.1), &x, "alpha"),
        (targets(1.0, nan), &x, "alpha"),
        (logits(soft), &vector, "[N, C, ..]"),
        (logits(soft), &one, "two classes"),
        (dkd(-1.0, 1.0, 1.0), &x, "alpha"),
        (dkd(1.0, nan, 1.0), &x, "beta"),
        (dkd(1.0, 1.0, -2.0), &x, "temperature"),
        (dkd(1.0, 1.0, 1.0), &plane, "[N, C]"),
        (dkd(1.0, 1.0, 1.0), &one, "two classes"),
        (dist(inf, 1.0, 1.0), &x, "beta"),
        (dist(1.0, -1.0, 1.0), &x, "gamma"),
        (dist(1.0, 1.0, 0.0), &x, "temperature"),
        (dist(1.0, 1.0, 1.0), &plane, "[N, C]"),
        (features(AttentionTransfer { p: 0.5 }), &plane, "power"),
        (features(AttentionTransfer { p: nan }), &plane, "power"),
        (features(AttentionTransfer { p: 2.0 }), &x, "positions"),
        (features(Rkd::distance_and_angle(0.0, 0.0)), &x, "weight 0"),
        (
            features(Rkd::distance_and_angle(-1.0, 0.0)),
            &x,
            "distances",
        ),
        (features(Rkd::distance_and_angle(0.0, nan)), &x, "angles"),
        (features(Pad { eps: 0.0 }), &x, "variance"),
        (features(Pad { eps: 1.0 }), &vector, "[N, C, ..]"),
        (features(Hint::huber(0.0)), &x, "delta"),
    ] {
        let error = run(&term, input, input).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let other = Tensor::full(DType::F32, [2, 4], 1.0).unwrap();
    for term in [logits(soft), dkd(1.0, 1.0, 1.0), dist(1.0, 1.0, 1.0)] {
        let error = run(&term, &x, &other).unwrap_err().to_string();
        assert!(
            error.contains("f32[2,3]") && error.contains("f32[2,4]"),
            "{error}"
        );
    }
}

/// Two tensors of one shape, with entries up to a size.
fn pair(size: f64) -> impl Strategy<Value = (Vec<usize>, Vec<f64>, Vec<f64>)> {
    (1usize..5, 2usize..6).prop_flat_map(move |(n, c)| {
        let data = || prop::collection::vec(-size..size, n * c);
        (Just(vec![n, c]), data(), data())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nothing_is_left_to_learn_of_oneself((shape, x, _) in pair(4.0)) {
        let x = tensor(DType::F64, &shape, &x);
        for term in [
            logits(SoftTargets::only(3.0)),
            logits(Dkd::default()),
            features(Hint::mse()),
            features(Rkd::distance_and_angle(1.0, 2.0)),
        ] {
            let (loss, gradient) = all_finite(&term, &x, &x);
            prop_assert!(loss.abs() < 1e-12, "{loss}");
            prop_assert!(gradient.iter().all(|g| g.abs() < 1e-10), "{gradient:?}");
        }
    }

    #[test]
    fn relations_do_not_depend_on_scale_and_place(
        (shape, s, t) in pair(4.0), factor in 0.5f64..4.0, offset in -3.0f64..3.0,
    ) {
        let moved: Vec<f64> = s.iter().map(|v| v * factor + offset).collect();
        let [s, moved, t] = [s, moved, t].map(|v| tensor(DType::F64, &shape, &v));
        let term = features(Rkd::distance_and_angle(1.0, 1.0));
        let (a, _) = all_finite(&term, &s, &t);
        let (b, _) = all_finite(&term, &moved, &t);
        prop_assert!((a - b).abs() < 1e-9, "{a} {b}");
    }

    #[test]
    fn soft_targets_are_the_parts_of_dkd_with_the_teachers_weight((shape, s, t) in pair(4.0)) {
        // KL = TCKD + (1 - p) NCKD, example by example (Zhao et al. 2022, equation 5).
        let (classes, n) = (shape[1], shape[0]);
        for i in 0..n {
            let row = |v: &[f64]| tensor(DType::F64, &[1, classes], &v[i * classes..(i + 1) * classes]);
            let (s, t) = (row(&s), row(&t));
            let powers: Vec<f64> = t.to_f64s().iter().map(|v| v.exp()).collect();
            let rest = 1.0 - powers[0] / powers.iter().sum::<f64>();
            let dkd = Dkd { alpha: 1.0, beta: rest, temperature: 1.0 };
            let (decoupled, g) = all_finite(&logits(dkd), &s, &t);
            let (whole, h) = all_finite(&logits(SoftTargets::only(1.0)), &s, &t);
            prop_assert!((decoupled - whole).abs() < 1e-10, "{decoupled} {whole}");
            for (g, h) in g.iter().zip(&h) {
                prop_assert!((g - h).abs() < 1e-10, "{g} {h}");
            }
        }
    }

    #[test]
    fn large_logits_keep_everything_finite((shape, s, t) in pair(1e4)) {
        let [s, t] = [s, t].map(|v| tensor(DType::F32, &shape, &v));
        for term in [
            logits(SoftTargets::default()),
            logits(Dkd { temperature: 1.0, ..Dkd::default() }),
            logits(Dist::default()),
            features(Rkd::distance_and_angle(25.0, 50.0)),
        ] {
            all_finite(&term, &s, &t);
        }
    }
}
