//! Files that numpy wrote: `xtask/oracle/npz.py`.

use opt_core::{DType, Tensor};
use opt_data::npz::{Npz, npy_from_bytes, write_npy};
use serde_json::Value;

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| Some(c.to_digit(16)? as u8))
        .collect();
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/npz.json")).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    unhex(value.as_str().unwrap())
}

#[test]
fn arrays_of_numpy_are_read() {
    let golden = golden();
    let arrays = golden["arrays"].as_array().unwrap();
    assert_eq!(arrays.len(), 20);
    for array in arrays {
        let name = array["name"].as_str().unwrap();
        let read = npy_from_bytes(&bytes(&array["npy"])).unwrap();
        assert_eq!(serde_json::json!(read.shape()), array["shape"], "{name}");
        assert_eq!(serde_json::json!(read.to_f64s()), array["values"], "{name}");
    }
}

#[test]
fn arrays_are_written_as_numpy_does() {
    let golden = golden();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    let mut compared = 0;
    for array in golden["arrays"].as_array().unwrap() {
        let name = array["name"].as_str().unwrap();
        // What is written is little-endian, row-major and of version 1.
        if name.starts_with(['>', 'b', 'v', 'f']) {
            continue;
        }
        let expected = bytes(&array["npy"]);
        write_npy(&path, &npy_from_bytes(&expected).unwrap()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), expected, "{name}");
        compared += 1;
    }
    assert_eq!(compared, 11);
}

#[test]
fn archives_of_numpy_are_read() {
    let mut npz = Npz::from_bytes(bytes(&golden()["archive"])).unwrap();
    assert_eq!(npz.names(), ["first", "second"]);
    let first = npz.tensor("first").unwrap();
    assert_eq!(first.shape(), [2, 3]);
    assert_eq!(first.to_f64s(), [0.0, 1.0, -2.0, 3.0, 100.0, -128.0]);
    let second = npz.tensor("second").unwrap();
    assert_eq!(second.dtype(), DType::Bool);
    assert_eq!(second.to_f64s(), [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
}

/// `numpy.savez_compressed(f, x=arange(100, dtype="<f4"), y=zeros((40, 50), dtype=">i8"))` of
/// numpy 2.4. Not made by the script, because other builds of zlib pack the same bytes otherwise.
const COMPRESSED: &str = "\
    504b03042d000000080000002100bb764876ffffffffffffffff05001400782e6e70790100100010020000000000\
    000b010000000000009dc8c12b047118c6f15739480e7b707070f81dd46fd51c46ed41da3236c901cd81a2949dcc\
    6c7bd8ec34b349a126499ba40d69933449da246d92364993244747c73d3a3a3afaf227787a3f4fbdcfe1ccdcb4bd\
    d021abb2ae5d2f5c0ef488d2d942461b4a17ca4125705696ca81ebfdee134e29f4d8c3a2e37bfce921d334060db5\
    a9fe9d6ef94b344a591c22c448d0868c89a4a060c2828d3c7c44a8a2863a6234d0440b09def08e0fb4f1892f7c43\
    72229de8420f52e8451ffaa13080340c98c86018595818c724a6606316f358441e2e8a28c147056bd840842d6c63\
    0755ec620ffba8e1004738461d2738c519629ce3029768e00ad7b84113b7b8c33d5a78c0239e90e0192f78cdfd00\
    504b03042d0000000800000021007e31508affffffffffffffff05001400792e6e707901001000003f0000000000\
    007300000000000000edc8b10ec1500040d15a7dc5db1e49870e246230da2a1683491a7d42222aaf62115fe187d5\
    2f98cfd9eefd6c76f5763f2a9ec52bb6a93fe6b80c717559c432c453971fb9b91dbadca6df5f37d73e0dbf3f37f7\
    34f4645695615e4dcbf00e7f1a1700000000000000000000000000000030f802504b01022d032d00000008000000\
    2100bb7648760b01000010020000050000000000000000000000800100000000782e6e7079504b01022d032d0000\
    000800000021007e31508a73000000003f0000050000000000000000000000800142010000792e6e7079504b0506\
    000000000200020066000000ec0100000000\
";

#[test]
fn compressed_archives_of_numpy_are_read() {
    let mut npz = Npz::from_bytes(unhex(COMPRESSED)).unwrap();
    let x = npz.tensor("x").unwrap();
    assert!(x.to_f64s().into_iter().eq((0..100).map(f64::from)));
    let y: Tensor = npz.tensor("y").unwrap();
    assert_eq!((y.dtype(), y.shape()), (DType::I64, &[40, 50][..]));
    assert!(y.to_f64s().iter().all(|&v| v == 0.0));
}
