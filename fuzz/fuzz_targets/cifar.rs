//! Any bytes as records of CIFAR-10 and CIFAR-100.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opt_data::CifarLabel;
use opt_data::cifar::from_bytes;

fuzz_target!(|bytes: &[u8]| {
    for label in [CifarLabel::Ten, CifarLabel::Fine, CifarLabel::Coarse] {
        if let Ok(data) = from_bytes(bytes, label) {
            data.check_labels(1, label.classes())
                .expect("labels in range");
        }
    }
});
