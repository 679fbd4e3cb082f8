//! The cases that every backend runs, on libtorch's CPU device and on CUDA where there is one.

use opt_suite::{Case, failures, forward, gradients, mixed_precision, training};
use opt_tch::{Device, TchBackend};

fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    if Device::best() != Device::Cpu {
        devices.push(Device::best());
    }
    devices
}

fn all_hold(cases: &[Case]) {
    for device in devices() {
        let failed = failures(&TchBackend::new(device).unwrap(), cases);
        assert!(
            failed.is_empty(),
            "{} of {} on {device}:\n{}",
            failed.len(),
            cases.len(),
            failed.join("\n")
        );
    }
}

#[test]
fn gradients_hold() {
    all_hold(&gradients::cases());
}

#[test]
fn outputs_agree() {
    all_hold(&forward::cases());
}

#[test]
fn imported_models_train_like_in_pytorch() {
    for device in devices() {
        let failed = training::failures(&TchBackend::new(device).unwrap());
        assert!(failed.is_empty(), "on {device}:\n{}", failed.join("\n"));
    }
}

/// PyTorch computed these on the processor; a GPU's fused attention rounds probabilities.
#[test]
fn mixed_precision_is_pytorchs() {
    let backend = TchBackend::new(Device::Cpu).unwrap();
    mixed_precision::a_step_rounds_where_pytorchs_autocast_does(&backend);
    mixed_precision::losses_follow_pytorchs_autocast(&backend);
    mixed_precision::gradients_below_half_precision_need_the_scale(&backend);
}
