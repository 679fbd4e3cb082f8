//! Says what the libtorch backend finds on this machine, and how to mend what is missing:
//! `cargo run --features tch --example tch_doctor`.
//!
//! The exit status is 1 where something is missing or wrong.

use std::process::ExitCode;

fn main() -> ExitCode {
    let found = opt_tch::doctor();
    println!("{found}");
    match found.is_well() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
