//! Any bytes as a safetensors file: what is read must be as long as it says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opt_onnx::safetensors::SafeTensors;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = SafeTensors::from_bytes(bytes) {
        for name in file.names() {
            if let Ok(tensor) = file.get(name) {
                assert_eq!(tensor.to_f64s().len(), tensor.len());
            }
        }
    }
});
