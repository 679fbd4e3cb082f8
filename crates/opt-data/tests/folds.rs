//! Folds and class weights against scikit-learn: `xtask/oracle/folds.py`.

use opt_core::Tensor;
use opt_data::{Fold, KFold, StratifiedKFold, TensorDataset, balanced_class_weights};
use serde_json::{Value, json};

fn golden(key: &str) -> Vec<Value> {
    let golden: Value = serde_json::from_str(include_str!("golden/folds.json")).unwrap();
    golden[key].as_array().unwrap().clone()
}

fn data(labels: &Value) -> TensorDataset {
    let labels: Vec<i64> = serde_json::from_value(labels.clone()).unwrap();
    TensorDataset::new(vec![Tensor::new([labels.len()], labels).unwrap()]).unwrap()
}

#[test]
fn folds_are_those_of_scikit_learn() {
    let cases = golden("folds");
    assert_eq!(cases.len(), 12);
    for case in cases {
        let data = data(&case["labels"]);
        let k = case["k"].as_u64().unwrap() as usize;
        let tests = |folds: Vec<Fold>| json!(folds.iter().map(|f| &f.test).collect::<Vec<_>>());
        let plain = KFold::new(k).unwrap().split(&data).unwrap();
        assert_eq!(tests(plain), case["plain"]);
        let stratified = StratifiedKFold::new(k).unwrap().split(&data, 0).unwrap();
        assert_eq!(tests(stratified), case["stratified"]);
    }
}

#[test]
fn weights_are_those_of_scikit_learn() {
    for case in golden("weights") {
        let classes = case["classes"].as_u64().unwrap() as usize;
        let weights = balanced_class_weights(&data(&case["labels"]), 0, classes).unwrap();
        let expected: Vec<f64> = serde_json::from_value(case["weights"].clone()).unwrap();
        assert_eq!(weights.len(), classes);
        for (found, expected) in weights.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }
}
