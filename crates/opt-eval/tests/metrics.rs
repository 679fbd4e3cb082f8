//! Metrics against scikit-learn; `xtask/oracle/metrics.py` makes the golden file.

use opt_core::Tensor;
use opt_eval::{Average, ConfusionMatrix, top_k_accuracy};
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
            for (average, key) in [
                (Average::Macro, "macro"),
                (Average::Micro, "micro"),
                (Average::Weighted, "weighted"),
            ] {
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
