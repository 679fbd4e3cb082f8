//! Every case on the CPU backend, with one thread and with two.

use opt_ndarray::NdarrayBackend;
use opt_suite::{failures, forward, gradients, mixed_precision, training};

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

#[test]
fn imported_models_train_like_in_pytorch() {
    let failed = training::failures(&NdarrayBackend::new().threads(1));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn mixed_precision_is_pytorchs() {
    let backend = NdarrayBackend::new().threads(1);
    mixed_precision::a_step_rounds_where_pytorchs_autocast_does(&backend);
    mixed_precision::losses_follow_pytorchs_autocast(&backend);
    mixed_precision::gradients_below_half_precision_need_the_scale(&backend);
}
