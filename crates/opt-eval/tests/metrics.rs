//! Metrics against scikit-learn; `xtask/oracle/metrics.py` makes the golden file.

use opt_core::Tensor;
use opt_eval::{
    Average, ConfusionMatrix, RegressionMetrics, argmax, log_loss, roc_auc, roc_auc_ovr,
    top_k_accuracy,
};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/metrics.json")).unwrap()
}

fn list<T>(value: &Value, of: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    let items = value.as_array().unwrap().iter();
    items.map(|v| of(v).unwrap()).collect()
}

#[track_caller]
fn assert_close(found: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (found - expected).abs() < 1e-12,
        "{what}: {found} {expected}"
    );
}

#[test]
fn confusion_matrices_equal_scikit_learns() {
    for case in golden()["confusion"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let truth = list(&case["truth"], Value::as_i64);
        let predicted = list(&case["predicted"], Value::as_i64);
        let classes = case["classes"].as_u64().unwrap() as usize;
        let matrix = ConfusionMatrix::new(&truth, &predicted, classes).unwrap();
        let expected = list(&case["confusion"], |row| Some(list(row, Value::as_u64)));
        assert!(
            matrix.rows().eq(expected.iter().map(Vec::as_slice)),
            "{name}"
        );
        assert_close(matrix.accuracy(), &case["accuracy"], name);
        for golden in case["zero_division"].as_array().unwrap() {
            let value = golden["value"].as_f64().unwrap();
            let matrix = matrix.clone().zero_division(value);
            for class in 0..classes {
                let what = format!("{name}, zero_division {value}, class {class}");
                let found = matrix.class(class);
                assert_close(found.precision, &golden["precision"][class], &what);
                assert_close(found.recall, &golden["recall"][class], &what);
                assert_close(found.f1, &golden["f1"][class], &what);
                assert_eq!(
                    found.support,
                    golden["support"][class].as_u64().unwrap(),
                    "{what}"
                );
            }
            for (average, key) in AVERAGES {
                let what = format!("{name}, zero_division {value}, {key}");
                assert_close(matrix.precision(average), &golden[key][0], &what);
                assert_close(matrix.recall(average), &golden[key][1], &what);
                assert_close(matrix.f1(average), &golden[key][2], &what);
            }
        }
    }
}

#[test]
fn top_k_accuracies_equal_scikit_learns() {
    for case in golden()["top_k"].as_array().unwrap() {
        let rows = list(&case["scores"], |row| Some(list(row, Value::as_f64)));
        let scores = Tensor::new([rows.len(), rows[0].len()], rows.concat()).unwrap();
        let labels = list(&case["labels"], Value::as_i64);
        for (i, expected) in case["accuracy"].as_array().unwrap().iter().enumerate() {
            let found = top_k_accuracy(&scores, &labels, i + 1).unwrap();
            assert_close(found, expected, &format!("{}, k {}", case["name"], i + 1));
        }
        assert_eq!(
            top_k_accuracy(&scores, &labels, rows[0].len()).unwrap(),
            1.0
        );
    }
}

const AVERAGES: [(Average, &str); 3] = [
    (Average::Macro, "macro"),
    (Average::Micro, "micro"),
    (Average::Weighted, "weighted"),
];

fn random() -> Value {
    serde_json::from_str(include_str!("golden/metrics_random.json")).unwrap()
}

#[test]
fn metrics_of_random_classifiers_equal_scikit_learns() {
    for case in random()["classes"].as_array().unwrap() {
        let rows = list(&case["weights"], |row| Some(list(row, Value::as_f64)));
        let classes = rows[0].len();
        let scores: Vec<f64> = rows
            .iter()
            .flat_map(|row| row.iter().map(|w| w / row.iter().sum::<f64>()))
            .collect();
        let scores = Tensor::new([rows.len(), classes], scores).unwrap();
        let labels = list(&case["labels"], Value::as_i64);
        let matrix = ConfusionMatrix::new(&labels, &argmax(&scores).unwrap(), classes).unwrap();
        let what = |key: &str| format!("seed {}, {key}", case["seed"]);
        for (key, found) in [
            ("accuracy", matrix.accuracy()),
            ("balanced_accuracy", matrix.balanced_accuracy()),
            ("matthews", matrix.matthews()),
            ("cohen_kappa", matrix.cohen_kappa()),
            ("log_loss", log_loss(&scores, &labels).unwrap()),
        ] {
            assert_close(found, &case[key], &what(key));
        }
        for class in 0..classes {
            let expected = &case["f1_of_classes"][class];
            assert_close(matrix.class(class).f1, expected, &what("f1 of a class"));
        }
        for (average, key) in AVERAGES {
            assert_close(matrix.precision(average), &case[key][0], &what(key));
            assert_close(matrix.recall(average), &case[key][1], &what(key));
            assert_close(matrix.f1(average), &case[key][2], &what(key));
            if classes > 2 {
                let key = format!("roc_auc_{key}");
                let found = roc_auc_ovr(&scores, &labels, average).unwrap();
                assert_close(found, &case[&key], &what(&key));
            }
        }
        if classes > 2 {
            let found = top_k_accuracy(&scores, &labels, 2).unwrap();
            assert_close(found, &case["top_2"], &what("top_2"));
        } else {
            let second: Vec<f64> = scores.to_f64s().into_iter().skip(1).step_by(2).collect();
            let second = Tensor::new([labels.len()], second).unwrap();
            let found = roc_auc(&second, &labels).unwrap();
            assert_close(found, &case["roc_auc"], &what("roc_auc"));
        }
    }
}

#[test]
fn errors_of_random_numbers_equal_scikit_learns() {
    for case in random()["numbers"].as_array().unwrap() {
        let tensor = |key: &str| {
            let rows = list(&case[key], |row| Some(list(row, Value::as_f64)));
            Tensor::new([rows.len(), rows[0].len()], rows.concat()).unwrap()
        };
        let found = RegressionMetrics::new(&tensor("truth"), &tensor("predicted")).unwrap();
        for (key, found) in [
            ("mse", found.mse),
            ("rmse", found.rmse),
            ("mae", found.mae),
            ("r2", found.r2),
        ] {
            let expected = case[key].as_f64().unwrap();
            assert!(
                (found - expected).abs() <= 1e-12 * expected.abs().max(1.0),
                "seed {}, {key}: {found} {expected}",
                case["seed"]
            );
        }
    }
}
