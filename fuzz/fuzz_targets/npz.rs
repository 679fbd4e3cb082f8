//! Any bytes as an archive of arrays, and as one array.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opt_data::npz::{Npz, NpzOptions, npy_from_bytes};

fuzz_target!(|bytes: &[u8]| {
    let _ = npy_from_bytes(bytes);
    // Memory is bounded by the limit, and the fuzzer's own limit on memory tells if it is not.
    let options = NpzOptions::default().max_bytes(1 << 20);
    let cursor = std::io::Cursor::new(bytes.to_vec());
    if let Ok(mut npz) = Npz::from_reader(cursor, options) {
        for tensor in npz.tensors() {
            let _ = tensor;
        }
    }
});
