//! Any bytes as an IDX file, plain or gzipped.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opt_data::idx::{IdxOptions, from_bytes};

fuzz_target!(|bytes: &[u8]| {
    // Memory is bounded by the limit, and the fuzzer's own limit on memory tells if it is not.
    if let Ok(tensor) = from_bytes(bytes, IdxOptions::default().max_bytes(1 << 20)) {
        assert_eq!(tensor.to_f64s().len(), tensor.len());
    }
});
