//! Examples of the opt libraries; see the files beside `Cargo.toml`.
