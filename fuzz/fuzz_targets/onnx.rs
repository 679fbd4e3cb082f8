//! Any bytes as an ONNX model: what is read must be a valid graph, and come back as one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opt_onnx::{Exporter, Importer};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(graph) = Importer::new().read(bytes) {
        graph.verify().expect("a graph that was read is valid");
        if let Ok(written) = Exporter::new().to_bytes(&graph) {
            // What is written may hold for the model's own opset only; it must not panic.
            let _ = Importer::new().read(written);
        }
    }
});
