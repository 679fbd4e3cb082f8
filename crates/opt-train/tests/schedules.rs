//! Schedules against PyTorch's (`xtask/oracle/schedules.py`).

use opt_train::{
    Anneal, Constant, Cosine, CosineRestarts, Epoch, Exponential, Metric, MultiStepDecay, OneCycle,
    Polynomial, ReduceOnPlateau, Schedule, StepDecay, Warmup,
};
use serde_json::Value;

const LR: f64 = 0.2;

fn setting(name: &str) -> Box<dyn Schedule> {
    let (lr, cycle) = (LR, OneCycle::new(0.4));
    match name {
        "step" => Box::new(StepDecay {
            lr,
            every: 7,
            gamma: 0.5,
        }),
        "multi_step" => Box::new(MultiStepDecay {
            lr,
            milestones: vec![10, 11, 60],
            gamma: 0.3,
        }),
        "exponential" => Box::new(Exponential { lr, gamma: 0.97 }),
        "polynomial" => Box::new(Polynomial { lr, power: 2.0 }),
        "linear" => Box::new(Polynomial { lr, power: 1.0 }),
        "cosine" => Box::new(Cosine { lr, min: 0.01 }),
        "cosine_restarts" => Box::new(CosineRestarts {
            lr,
            min: 0.02,
            period: 15,
            factor: 1,
        }),
        "cosine_restarts_longer" => Box::new(CosineRestarts {
            lr,
            min: 0.0,
            period: 9,
            factor: 2,
        }),
        "warmup" => Box::new(Warmup {
            steps: 20,
            then: Constant(lr),
        }),
        "one_cycle" => Box::new(cycle),
        "one_cycle_linear" => Box::new(OneCycle {
            rise: 0.45,
            anneal: Anneal::Linear,
            div_factor: 10.0,
            final_div_factor: 50.0,
            ..cycle
        }),
        "one_cycle_three_phases" => Box::new(OneCycle {
            rise: 0.2,
            three_phase: true,
            ..cycle
        }),
        other => panic!("the script has a setting `{other}` that the test does not know"),
    }
}

fn plateau(name: &str) -> ReduceOnPlateau<Constant> {
    let of = ReduceOnPlateau::new(Constant(LR));
    let half = ReduceOnPlateau { factor: 0.5, ..of };
    match name {
        "plateau" => ReduceOnPlateau {
            patience: 3,
            ..half
        },
        "plateau_cooldown" => ReduceOnPlateau {
            factor: 0.3,
            patience: 1,
            cooldown: 4,
            min_lr: 1e-4,
            ..of
        },
        "plateau_threshold" => ReduceOnPlateau {
            patience: 2,
            threshold: 0.2,
            ..half
        },
        "plateau_accuracy" => ReduceOnPlateau {
            metric: Metric::Accuracy,
            patience: 4,
            threshold: 0.05,
            ..half
        },
        other => panic!("the script has a setting `{other}` that the test does not know"),
    }
}

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/schedules.json")).expect("golden JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list");
    list.iter().map(|v| v.as_f64().expect("a number")).collect()
}

#[test]
fn rates_equal_pytorchs() {
    let golden = golden();
    let settings = golden["rates"].as_object().expect("settings");
    assert_eq!(settings.len(), 12);
    for (name, expected) in settings {
        let schedule = setting(name);
        schedule.check().unwrap();
        let expected = numbers(expected);
        let total = expected.len() as u64;
        for (step, expected) in expected.into_iter().enumerate() {
            let found = schedule.lr(step as u64, total);
            let after = schedule.lr_after(step as u64, total, &[]);
            assert!(
                (found - expected).abs() < 1e-12 && after == found,
                "{name}, step {step}: {found} against {expected}"
            );
        }
    }
}

#[test]
fn plateaus_equal_pytorchs() {
    let golden = golden();
    let settings = golden["plateaus"].as_object().expect("settings");
    assert_eq!(settings.len(), 4);
    for (name, expected) in settings {
        let schedule = plateau(name);
        schedule.check().unwrap();
        let mut epochs = Vec::new();
        let metrics = numbers(&expected["metrics"]);
        for (metric, expected) in metrics.into_iter().zip(numbers(&expected["rates"])) {
            let mut epoch = Epoch::new(epochs.len() as u64, 1.0);
            match schedule.metric {
                Metric::Loss => epoch.val_loss = Some(metric),
                Metric::Accuracy => epoch.val_accuracy = Some(metric),
            }
            epochs.push(epoch);
            let found = schedule.lr_after(0, 1, &epochs);
            let error = (found - expected).abs() / expected;
            assert!(error < 1e-12, "{name}: {found} against {expected}");
        }
        // The rate did fall, and the warm-up hands the epochs on.
        assert!(schedule.lr_after(0, 1, &epochs) < LR / 4.0);
        let warm = Warmup {
            steps: 2,
            then: schedule,
        };
        let half = schedule.lr_after(0, 1, &epochs) / 2.0;
        assert_eq!(warm.lr_after(0, 1, &epochs), half);
    }
}

#[test]
fn no_step_gives_a_rate_that_is_not_a_number() {
    let names = golden()["rates"].as_object().expect("settings").clone();
    for name in names.keys() {
        for (step, total) in [
            (0, 0),
            (0, 1),
            (5, 1),
            (0, 2),
            (1, 2),
            (0, 5),
            (u64::MAX, 10),
        ] {
            let rate = setting(name).lr(step, total);
            assert!(
                rate.is_finite() && rate >= 0.0,
                "{name}, {step}, {total}: {rate}"
            );
        }
    }
}

#[test]
fn settings_out_of_range_are_errors() {
    let lr = 0.1;
    let cycle = OneCycle::new(lr);
    let plateau = ReduceOnPlateau::new(Constant(lr));
    let cases: Vec<(&str, Box<dyn Schedule>)> = vec![
        ("NaN", Box::new(Constant(f64::NAN))),
        ("-1", Box::new(Cosine { lr: -1.0, min: 0.0 })),
        (
            "inf",
            Box::new(Warmup {
                steps: 3,
                then: Constant(f64::INFINITY),
            }),
        ),
        (
            "length between decays",
            Box::new(StepDecay {
                lr,
                every: 0,
                gamma: 0.5,
            }),
        ),
        (
            "period",
            Box::new(CosineRestarts {
                lr,
                min: 0.0,
                period: 0,
                factor: 1,
            }),
        ),
        ("rising", Box::new(OneCycle { rise: 1.0, ..cycle })),
        (
            "rising",
            Box::new(OneCycle {
                rise: 0.6,
                three_phase: true,
                ..cycle
            }),
        ),
        (
            "div_factor",
            Box::new(OneCycle {
                div_factor: 0.0,
                ..cycle
            }),
        ),
        ("power", Box::new(Polynomial { lr, power: 0.0 })),
        (
            "factor",
            Box::new(ReduceOnPlateau {
                factor: 1.0,
                ..plateau
            }),
        ),
        (
            "threshold",
            Box::new(ReduceOnPlateau {
                threshold: f64::NAN,
                ..plateau
            }),
        ),
    ];
    for (word, schedule) in cases {
        let error = schedule.check().unwrap_err().to_string();
        assert!(error.contains(word), "{schedule:?}: {error}");
    }
}
