use std::io::Cursor;

use opt_core::DType;
use proptest::prelude::*;

use super::*;
use crate::ErrorKind;

fn archive(tensors: &[(&str, &Tensor)], compressed: bool) -> Vec<u8> {
    let mut writer = NpzWriter::new(Cursor::new(Vec::new())).compressed(compressed);
    for (name, tensor) in tensors {
        writer.add(name, tensor).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A version 1 `.npy` file with a header of one's own.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn header(descr: &str, shape: &str) -> String {
    format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n")
}

#[track_caller]
fn refused(bytes: &[u8], kind: ErrorKind, says: &str) {
    let error = npy_from_bytes(bytes).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn headers_that_mean_the_same_are_read() {
    for text in [
        "{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }",
        "{\"shape\":(2L,),\"fortran_order\":False,\"descr\":\"<i4\"}   \n",
        " { 'shape' : ( 2 ) , 'descr' : '=i4' , 'fortran_order' : True } ",
    ] {
        let t = npy_from_bytes(&npy(text, &[1, 0, 0, 0, 255, 255, 255, 255])).unwrap();
        assert_eq!(t.to_vec::<i32>().unwrap(), [1, -1], "{text}");
    }
    let empty = npy_from_bytes(&npy(&header("'<f8'", "(0, 3)"), &[])).unwrap();
    assert_eq!(empty.shape(), [0, 3]);
}

#[test]
fn hostile_headers_are_errors() {
    use ErrorKind::{Format, InvalidArgument, Unsupported};
    let four = |shape: &str| npy(&header("'<f4'", shape), &[0; 4]);
    refused(b"", Format, "cut off");
    refused(b"PK\x03\x04....", Format, "NUMPY");
    refused(b"\x93NUMPY\x09\x00\x00\x00", Unsupported, "version 9.0");
    refused(
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        Format,
        "header of 4294967295",
    );
    refused(&four("(-1,)"), Format, "a size");
    refused(&four("(1.5,)"), Format, "");
    refused(&four("(99999999999999999999,)"), Format, "a size");
    refused(&four("(4294967296, 4294967296)"), Format, "too many");
    refused(&four("(0, 4294967296, 4294967296)"), Format, "too many");
    refused(&four("(1000000000,)"), Format, "4 are there");
    refused(&four("(0,)"), Format, "follow");
    refused(
        &four(&format!("({})", "1,".repeat(65))),
        Format,
        "more than 64",
    );
    let limit = NpzOptions::default().max_bytes(3);
    let error = npy_from(&mut &four("(1,)")[..], 1 << 20, limit).unwrap_err();
    assert_eq!(error.kind(), InvalidArgument, "{error}");
    for text in [
        "",
        "{",
        "{}",
        "{'descr'",
        "{'descr': [",
        "{'descr': '<f4}",
        "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 'y'}",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': 'é4', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '', 'fortran_order': False, 'shape': (1,)}",
    ] {
        refused(&npy(text, &[0; 4]), Format, "");
    }
}

#[test]
fn dtypes_without_a_counterpart_are_named() {
    for (descr, says) in [
        ("'|O'", "Python objects"),
        ("'<U7'", "unicode"),
        ("'|S3'", "byte strings"),
        ("'<c8'", "complex"),
        ("'<M8[ns]'", "dates"),
        ("'|V2'", "bfloat16"),
        ("'<f16'", "another size"),
        ("[('a', '<f4'), ('b', '<i4', (2,))]", "structured"),
    ] {
        let bytes = npy(&header(descr, "(1,)"), &[0; 32]);
        refused(&bytes, ErrorKind::Unsupported, says);
    }
    for dtype in [DType::BF16, DType::I4] {
        let t = Tensor::zeros(dtype, [2]).unwrap();
        let error = npy::write(&mut Vec::new(), &t).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn names_are_told_when_one_is_wrong() {
    let x = Tensor::scalar(1f32);
    let mut npz = Npz::from_bytes(archive(&[("weights", &x), ("a/b", &x)], false)).unwrap();
    assert_eq!(npz.names(), ["weights", "a/b"]);
    assert_eq!(npz.tensor("a/b").unwrap().item().unwrap(), 1.0);
    let error = npz.tensor("weight").unwrap_err();
    assert!(error.to_string().contains("weights"), "{error}");
}

#[test]
fn two_arrays_of_one_name_are_refused() {
    let x = Tensor::scalar(1f32);
    let mut writer = NpzWriter::new(Cursor::new(Vec::new()));
    writer.add("x", &x).unwrap();
    assert!(writer.add("x", &x).is_err());
    // The name's two places in the file: beside the entry and in the directory.
    let mut bytes = archive(&[("x", &x), ("y", &x)], false);
    for i in 0..bytes.len() - 5 {
        if &bytes[i..i + 5] == b"y.npy" {
            bytes[i] = b'x';
        }
    }
    let error = Npz::from_bytes(bytes).unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
}

#[test]
fn an_entry_that_claims_more_than_it_can_hold_is_refused_before_memory_is_taken() {
    // 3 GiB of zeros: the header says so, the directory too, the packed bytes are few.
    let shape = header("'<f4'", "(805306368,)");
    let real = npy(&shape, &[0; 64]);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    zip.start_file("x.npy", options).unwrap();
    zip.write_all(&real).unwrap();
    let mut bytes = zip.finish().unwrap().into_inner();
    let error = Npz::from_bytes(bytes.clone())
        .unwrap()
        .tensor("x")
        .unwrap_err();
    assert!(error.to_string().contains("64 are there"), "{error}");
    let size = (real.len() as u32).to_le_bytes();
    let claimed = (3u32 << 30).to_le_bytes();
    for i in 0..bytes.len() - 4 {
        if bytes[i..i + 4] == size {
            bytes[i..i + 4].copy_from_slice(&claimed);
        }
    }
    let error = Npz::from_bytes(bytes).unwrap().tensor("x").unwrap_err();
    assert!(error.to_string().contains("packed into"), "{error}");
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let zeros = Tensor::zeros(DType::U8, [1 << 20]).unwrap();
    let bytes = archive(&[("x", &zeros)], true);
    assert!(bytes.len() < 4096, "{}", bytes.len());
    let limit = NpzOptions::default().max_bytes(1 << 16);
    let mut npz = Npz::from_reader(Cursor::new(bytes.clone()), limit).unwrap();
    let error = npz.tensor("x").unwrap_err();
    assert!(error.to_string().contains("max_bytes"), "{error}");
    assert_eq!(
        Npz::from_bytes(bytes).unwrap().tensor("x").unwrap().len(),
        1 << 20
    );
}

#[test]
fn cut_and_flipped_archives_never_panic_and_never_lie() {
    let x = Tensor::new([3, 2], [1f32, -2.0, 3.5, 0.0, 5.0, 6.0]).unwrap();
    let y = Tensor::from_bools([2], [true, false]).unwrap();
    for compressed in [false, true] {
        let bytes = archive(&[("x", &x), ("y", &y)], compressed);
        for len in 0..bytes.len() {
            assert!(Npz::from_bytes(&bytes[..len]).is_err(), "cut at {len}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let Ok(mut npz) = Npz::from_bytes(flipped) else {
                continue;
            };
            for name in npz.names().to_vec() {
                if let Ok(t) = npz.tensor(&name) {
                    // A name may change; content has a checksum.
                    let same = [&x, &y].iter().any(|o| t.to_f64s() == o.to_f64s());
                    assert!(same, "bit {bit}: {name}");
                }
            }
        }
    }
}

const DTYPES: [DType; 8] = [
    DType::F32,
    DType::F64,
    DType::F16,
    DType::I64,
    DType::I32,
    DType::I8,
    DType::U8,
    DType::Bool,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn archives_come_back(
        arrays in prop::collection::btree_map(
            "[a-zA-Z0-9_./é ]{0,12}",
            (0..DTYPES.len(), prop::collection::vec(0usize..5, 0..4), any::<u64>()),
            0..6,
        ),
        compressed in any::<bool>(),
    ) {
        let arrays: Vec<(String, Tensor)> = arrays
            .into_iter()
            .map(|(name, (dtype, shape, seed))| {
                let stream = opt_core::random::Philox::new(seed);
                let data: Vec<f64> = (0..shape.iter().product::<usize>() as u64)
                    .map(|i| (stream.normal(0, i) * 100.0).round())
                    .collect();
                (name, Tensor::from_f64s(DTYPES[dtype], &shape, &data).unwrap())
            })
            .collect();
        let list: Vec<(&str, &Tensor)> = arrays.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let bytes = archive(&list, compressed);
        prop_assert_eq!(&bytes, &archive(&list, compressed), "the same bytes every time");
        let mut npz = Npz::from_bytes(bytes).unwrap();
        let read: Vec<_> = npz.tensors().collect::<Result<_>>().unwrap();
        prop_assert_eq!(read.len(), arrays.len());
        for ((name, t), (read_name, read)) in arrays.iter().zip(&read) {
            prop_assert_eq!(name, read_name);
            prop_assert_eq!(t.dtype(), read.dtype());
            prop_assert_eq!(t.shape(), read.shape());
            prop_assert_eq!(t.bytes().unwrap(), read.bytes().unwrap());
        }
    }

    #[test]
    fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = npy_from_bytes(&npy(&String::from_utf8_lossy(&bytes), &[0; 8]));
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend(&bytes);
        let _ = npy_from_bytes(&file);
        let _ = Npz::from_bytes(bytes);
    }
}
