//! Every case on the CPU backend, with one thread and with two.

use opt_ndarray::NdarrayBackend;
use opt_suite::{failures, forward, gradients};

#[test]
fn gradients_hold() {
    let cases = gradients::cases();
    let failed = failures(&NdarrayBackend::new().threads(1), &cases);
    assert!(
        failed.is_empty(),
        "{} of {}:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
}

#[test]
fn outputs_agree() {
    for threads in [1, 2] {
        let cases = forward::cases();
        let failed = failures(&NdarrayBackend::new().threads(threads), &cases);
        assert!(
            failed.is_empty(),
            "{threads} threads:\n{}",
            failed.join("\n")
        );
    }
}
