use proptest::prelude::*;

use super::*;

fn values(n: usize, seed: u64) -> Vec<f32> {
    let stream = opt_core::random::Philox::new(seed);
    (0..n)
        .map(|i| stream.uniform(0, i as u64) as f32 - 0.5)
        .collect()
}

/// The instruction sets that this processor has.
fn isas() -> Vec<Isa> {
    let mut all = vec![Isa::Portable];
    #[cfg(target_arch = "x86_64")]
    {
        if Isa::get() != Isa::Portable {
            all.push(Isa::Avx2);
        }
        if Isa::get() == Isa::Avx512 {
            all.push(Isa::Avx512);
        }
    }
    all
}

/// The product by the plain loops in `f64`.
fn reference(m: usize, n: usize, k: usize, a: Mat<'_>, b: Mat<'_>) -> Vec<f64> {
    let mut out = vec![0f64; m * n];
    for i in 0..m {
        for j in 0..n {
            out[i * n + j] = (0..k)
                .map(|p| {
                    f64::from(a.data[i * a.row + p * a.col])
                        * f64::from(b.data[p * b.row + j * b.col])
                })
                .sum();
        }
    }
    out
}

/// A product in every way that its operands and its result can be given, against the definition.
fn check(route: Route, m: usize, n: usize, k: usize, trans_a: bool, trans_b: bool) {
    let (a, b, bias) = (values(m * k, 1), values(k * n, 2), values(m.max(n), 3));
    let a = if trans_a {
        Mat::new(&a, m).transposed()
    } else {
        Mat::new(&a, k)
    };
    let b = if trans_b {
        Mat::new(&b, k).transposed()
    } else {
        Mat::new(&b, n)
    };
    let expected = reference(m, n, k, a, b);
    let (pa, pb) = (PackedLhs::by(route, a, m, k), PackedRhs::by(route, b, n, k));
    let residual = values(m * n, 6);
    for (threads, gap) in [(1, 3), (3, 3), (1, 0)] {
        for (a, b) in [
            (Lhs::Plain(a), Rhs::Plain(b)),
            (Lhs::Packed(&pa), Rhs::Packed(&pb)),
            (Lhs::Plain(a), Rhs::Packed(&pb)),
        ] {
            for base in [
                Base::Zero,
                Base::Out,
                Base::Row(&bias[..n]),
                Base::Column(&bias[..m]),
            ] {
                let gemm = Gemm {
                    m,
                    n,
                    k,
                    a,
                    b,
                    base,
                    threads,
                };
                let more = (!matches!(base, Base::Out)).then_some(&residual[..]);
                for (residual, functions) in [
                    (None, &[][..]),
                    (more, &[][..]),
                    (None, &[UnaryOp::Relu, UnaryOp::Neg][..]),
                    (more, &[UnaryOp::Relu, UnaryOp::Neg][..]),
                ] {
                    let finish = Finish {
                        residual,
                        functions,
                    };
                    compare(&gemm, route, finish, &expected, n + gap);
                }
            }
        }
    }
}

fn compare(gemm: &Gemm<'_>, route: Route, finish: Finish<'_>, expected: &[f64], row: usize) {
    let Gemm { m, n, k, .. } = *gemm;
    let mut out = vec![0.25f32; m * row];
    gemm.by(route, finish, &mut out, row);
    for i in 0..m {
        for j in 0..row {
            let found = out[i * row + j];
            if j >= n {
                assert_eq!(found, 0.25, "written beyond the row");
                continue;
            }
            let plus = match gemm.base {
                Base::Zero => 0.0,
                Base::Out => 0.25,
                Base::Row(b) => b[j],
                Base::Column(b) => b[i],
            };
            let plus = plus + finish.residual.map_or(0.0, |r| r[i * n + j]);
            let mut want = expected[i * n + j] as f32 + plus;
            if !finish.functions.is_empty() {
                want = -want.max(0.0);
            }
            assert!(
                (found - want).abs() <= 1e-5 * (1.0 + (k as f32).sqrt()),
                "{m}x{n}x{k} ({i}, {j}): {found} against {want}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn tiles_agree_with_the_definition(
        m in 0usize..40, n in 0usize..70, k in 0usize..40, ta: bool, tb: bool
    ) {
        for isa in isas() {
            check(Route::Tiles(isa), m, n, k, ta, tb);
        }
        // Never chosen for products without terms, which it cannot pack.
        if m * n * k > 0 {
            check(Route::Rten, m, n, k, ta, tb);
        }
    }
}

#[test]
fn few_rows_and_columns_agree_with_the_definition() {
    let mut routes: Vec<Route> = isas().into_iter().map(Route::Tiles).collect();
    routes.push(Route::Rten);
    for route in routes {
        for few in 1..=5 {
            for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
                check(route, few, 277, 67, trans_a, trans_b);
                check(route, 45, few, 67, trans_a, trans_b);
            }
        }
    }
}

#[test]
fn large_products_agree_with_the_definition() {
    for route in [Route::Tiles(Isa::get()), Route::Rten] {
        check(route, 150, 201, 300, false, true);
        check(route, 61, 300, 129, true, false);
        // More than one range of `k`.
        check(route, 40, 96, 1100, false, false);
        check(route, 3, 520, 1100, false, false);
        check(route, 3, 520, 1100, false, true);
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    for (m, n, k) in [
        (197, 231, 65),
        (40, 96, 1100),
        (2, 1500, 700),
        (900, 3, 700),
    ] {
        let (a, b) = (values(m * k, 4), values(k * n, 5));
        for trans_b in [false, true] {
            let run = |threads| {
                let mut out = vec![0f32; m * n];
                let b = match trans_b {
                    false => Mat::new(&b, n),
                    true => Mat::new(&b, k).transposed(),
                };
                let gemm = Gemm {
                    m,
                    n,
                    k,
                    a: Lhs::Plain(Mat::new(&a, k)),
                    b: Rhs::Plain(b),
                    base: Base::Zero,
                    threads,
                };
                gemm.run(&mut out, n);
                out
            };
            let one = run(1);
            assert!((2..6).all(|threads| run(threads) == one));
        }
    }
}
