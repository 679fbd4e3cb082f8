//! Criterion benchmarks of the opt libraries.
