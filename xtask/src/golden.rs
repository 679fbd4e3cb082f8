//! Comparing golden files as numbers.

use serde_json::Value;

/// The first place where two JSON values differ: in structure, in text, or in a number by more
/// than `tolerance * (1 + |expected|)`.
pub(crate) fn difference(found: &Value, expected: &Value, tolerance: f64) -> Option<String> {
    // A list, not recursion: the depth is the file's.
    let mut open = vec![(String::from("$"), found, expected)];
    while let Some((path, found, expected)) = open.pop() {
        match (found, expected) {
            (Value::Number(a), Value::Number(b)) => {
                let (a, b) = (a.as_f64()?, b.as_f64()?);
                let close = (a - b).abs() <= tolerance * (1.0 + b.abs());
                if !close {
                    return Some(format!("{path}: found {a}, expected {b}"));
                }
            }
            (Value::Array(a), Value::Array(b)) => {
                if a.len() != b.len() {
                    return Some(format!(
                        "{path}: found {} elements, expected {}",
                        a.len(),
                        b.len()
                    ));
                }
                for (i, (a, b)) in a.iter().zip(b).enumerate().rev() {
                    open.push((format!("{path}[{i}]"), a, b));
                }
            }
            (Value::Object(a), Value::Object(b)) => {
                if let Some(key) = a.keys().find(|k| !b.contains_key(*k)) {
                    return Some(format!("{path}: unexpected key {key:?}"));
                }
                for (key, b) in b {
                    match a.get(key) {
                        Some(a) => open.push((format!("{path}.{key}"), a, b)),
                        None => return Some(format!("{path}: no key {key:?}")),
                    }
                }
            }
            (a, b) if a == b => {}
            (a, b) => return Some(format!("{path}: found {a}, expected {b}")),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rounding_is_equal_and_all_else_is_a_difference() {
        let differ = |a: Value, b: Value| difference(&a, &b, 1e-6);
        assert_eq!(
            differ(json!({"a": [1, 2.0]}), json!({"a": [1.0, 2.0000001]})),
            None
        );
        assert_eq!(differ(json!(1e9), json!(1e9 + 100.0)), None);
        let cases = [
            (
                json!([1, 2]),
                json!([1, 2.1]),
                "$[1]: found 2, expected 2.1",
            ),
            (json!([1]), json!([1, 2]), "$: found 1 elements, expected 2"),
            (json!({"a": 1}), json!({}), "$: unexpected key \"a\""),
            (json!({}), json!({"a": 1}), "$: no key \"a\""),
            (
                json!({"a": "nan"}),
                json!({"a": 1}),
                "$.a: found \"nan\", expected 1",
            ),
            (
                json!(["x"]),
                json!(["y"]),
                "$[0]: found \"x\", expected \"y\"",
            ),
            (json!(null), json!(false), "$: found null, expected false"),
        ];
        for (found, expected, message) in cases {
            assert_eq!(differ(found, expected).as_deref(), Some(message));
        }
    }
}
