//! Benchmarks of the opt libraries: those of criterion in `benches/`, and this library's side of
//! `cargo xtask bench`, which compares it with others.
//!
//! `rows.json` lists the workloads. For each, `cargo xtask bench` starts the program
//! [`step-worker`](protocol) and the programs in `peers/`, which speak the same [`protocol`], and
//! has them run the same steps in turn.
//!
//! The program `profile-step` says what a step of a workload spends its time on.
//!
//! `cargo xtask bench-calibration` compares the memory that calibration takes: [`calibration`] and the
//! program `calibration-worker` are this library's side, `peers/calibration_onnxruntime.py` the other.
//!
//! | to add | where |
//! | --- | --- |
//! | a workload | `rows.json` |
//! | a kind of model | [`models`], and `peers/torch_models.py` |
//! | a model that is a file | `peers/onnx_models.py` |
//! | a backend | [`backend`] |
//! | another library | a program that speaks the [`protocol`] (`peers/worker.py` and `peers/rust` have what Python and Rust programs share), and an entry in `xtask/src/bench/peers.rs` |

#![forbid(unsafe_code)]

pub mod backend;
pub mod calibration;
pub mod models;
pub mod protocol;
pub mod torch_names;
pub mod work;

/// What the worker fails with: it only ends up in a message.
pub type Failure = Box<dyn std::error::Error>;
