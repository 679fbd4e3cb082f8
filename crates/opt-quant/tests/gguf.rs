//! GGUF files against those of the reference library, and against damage.

use std::sync::Arc;

use opt_core::{ErrorKind, Tensor};
use opt_quant::gguf::{Builder, File, GgufType, Value};
use proptest::prelude::*;
use serde_json::Value as Json;

fn golden() -> Json {
    serde_json::from_str(include_str!("golden/gguf.json")).unwrap()
}

fn reference(golden: &Json) -> Vec<u8> {
    let digits = golden["file"].as_str().unwrap().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn floats(list: &Json) -> Vec<f32> {
    let list = list.as_array().unwrap().iter();
    list.map(|x| x.as_f64().unwrap() as f32).collect()
}

/// Every type once, with entries of several scales.
fn builder(golden: &Json) -> Builder {
    let x = Tensor::new([6, 64], floats(&golden["entries"])).unwrap();
    let mut builder = Builder::new();
    builder.metadata("general.architecture", "test").unwrap();
    builder.metadata("test.block_count", 2u32).unwrap();
    builder.metadata("test.epsilon", 1e-6f32).unwrap();
    builder.metadata("test.flag", true).unwrap();
    let tokens = vec!["[PAD]", "größe", ""];
    builder.metadata("test.tokens", tokens).unwrap();
    builder.metadata("test.types", vec![1i32, -2, 3]).unwrap();
    for (name, ty) in [
        ("w.f32", GgufType::F32),
        ("w.f16", GgufType::F16),
        ("w.bf16", GgufType::Bf16),
        ("w.q8_0", GgufType::Q8_0),
        ("w.q4_0", GgufType::Q4_0),
        ("w.q4_1", GgufType::Q4_1),
    ] {
        builder.tensor(name, ty, &x).unwrap();
    }
    let scale = Tensor::new([3], [0.5f32, 2.0, -1.0]).unwrap();
    builder.tensor("scale", GgufType::F32, &scale).unwrap();
    builder
}

#[test]
fn files_are_those_of_the_reference_byte_for_byte() {
    let golden = golden();
    let (ours, theirs) = (builder(&golden).encode().unwrap(), reference(&golden));
    let at = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    assert_eq!(at, None, "the first byte that differs");
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn files_of_the_reference_are_read() {
    let golden = golden();
    let file = File::parse(Arc::new(reference(&golden))).unwrap();
    let tensors = golden["tensors"].as_object().unwrap();
    assert_eq!(file.names().len(), tensors.len());
    for (name, tensor) in tensors {
        let ty = file.dtype(name).unwrap();
        assert_eq!(ty.to_string(), tensor["type"].as_str().unwrap());
        let read = file.get(name).unwrap();
        assert_eq!(
            read.to_vec::<f32>().unwrap(),
            floats(&tensor["read"]),
            "{name}"
        );
    }
    assert_eq!(file.shape("w.q4_0").unwrap(), [6, 64]);
    let notes = file.metadata();
    assert_eq!(notes["test.block_count"].as_usize(), Some(2));
    assert_eq!(notes["test.epsilon"], Value::F32(1e-6));
    assert_eq!(
        notes["test.tokens"],
        Value::from(vec!["[PAD]", "größe", ""])
    );
}

#[test]
fn what_cannot_be_stored_is_an_error() {
    let mut builder = Builder::new();
    let odd = Tensor::new([2, 31], vec![0f32; 62]).unwrap();
    let error = builder.tensor("odd", GgufType::Q4_0, &odd).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
    assert!(error.to_string().starts_with("odd: "), "{error}");
    let many = Tensor::new([1, 1, 1, 1, 1], [0f32]).unwrap();
    assert!(builder.tensor("many", GgufType::F32, &many).is_err());
    let int = Tensor::new([1], [1i64]).unwrap();
    let error = builder.tensor("int", GgufType::F32, &int).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DType);
    builder.tensor("odd", GgufType::F16, &odd).unwrap();
    assert!(builder.tensor("odd", GgufType::F16, &odd).is_err());
    assert!(builder.metadata("general.alignment", 64u32).is_err());
    let mixed = Value::Array(vec![Value::U8(1), Value::I8(1)]);
    assert!(builder.metadata("mixed", mixed).is_err());
    for bad in [f32::NAN, f32::INFINITY, 1e9] {
        for ty in [GgufType::Q4_0, GgufType::Q4_1, GgufType::Q8_0] {
            let mut x = vec![0f32; 64];
            x[40] = bad;
            let mut builder = Builder::new();
            let x = Tensor::new([64], x).unwrap();
            builder.tensor("w", ty, &x).unwrap();
            let error = builder.encode().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data, "{bad} as {ty}");
            let message = error.to_string();
            assert!(
                message.starts_with("w") && message.contains("entries from 32"),
                "{message}"
            );
        }
    }
}

#[test]
fn scalars_and_empty_tensors_come_back() {
    let mut builder = Builder::new();
    let (scalar, empty) = (
        Tensor::scalar(2f32),
        Tensor::new([0, 32], [0f32; 0]).unwrap(),
    );
    builder.tensor("scalar", GgufType::F32, &scalar).unwrap();
    builder.tensor("empty", GgufType::Q8_0, &empty).unwrap();
    let file = File::parse(Arc::new(builder.encode().unwrap())).unwrap();
    assert_eq!(file.get("scalar").unwrap().to_vec::<f32>().unwrap(), [2.0]);
    assert_eq!(file.get("empty").unwrap().shape(), [0, 32]);
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let whole = builder(&golden()).encode().unwrap();
    // The last tensor ends before the padding.
    for len in 0..whole.len() - 20 {
        let error = File::parse(Arc::new(whole[..len].to_vec())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format, "{len}: {error}");
    }
}

#[test]
fn claims_beyond_the_file_take_no_memory() {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(u64::MAX.to_le_bytes());
    bytes.extend(u64::MAX.to_le_bytes());
    assert!(File::parse(Arc::new(bytes.clone())).is_err());
    bytes[8..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(1u64.to_le_bytes());
    bytes.push(b'k');
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend((u64::MAX / 2).to_le_bytes());
    let error = File::parse(Arc::new(bytes)).unwrap_err();
    assert!(error.to_string().contains("does not fit"), "{error}");
}

proptest! {
    #[test]
    fn damage_never_panics(at in 0usize..700, byte: u8) {
        let mut bytes = builder(&golden()).encode().unwrap();
        bytes[at] = byte;
        if let Ok(file) = File::parse(Arc::new(bytes)) {
            for name in file.names() {
                let _ = file.get(name);
            }
        }
    }

    #[test]
    fn entries_come_back_within_half_a_step(
        x in prop::collection::vec(-100f32..100.0, 32),
    ) {
        let (low, high) = x.iter().fold((x[0], x[0]), |(l, h), &x| (l.min(x), h.max(x)));
        let great = high.max(-low);
        // The scale is rounded to half precision: 2^-11 of the code's magnitude.
        for (ty, step, codes) in [
            (GgufType::Q8_0, great / 127.0, 127.0),
            // The codes go to 7 on the side of the smaller magnitudes, so that an entry there
            // may be a whole step away.
            (GgufType::Q4_0, great / 4.0, 8.0),
            (GgufType::Q4_1, (high - low) / 15.0, 15.0),
        ] {
            let mut bytes = Vec::new();
            ty.encode(&x, &mut bytes).unwrap();
            let bound = step * 0.5 + step * codes / 2048.0 + great / 2048.0;
            for (x, y) in x.iter().zip(ty.decode(&bytes).unwrap()) {
                prop_assert!((x - y).abs() <= bound * 1.0001, "{ty}: {x} {y} {bound}");
            }
        }
    }
}
