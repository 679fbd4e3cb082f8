//! CPU backend of the opt model-optimization libraries: compiles graphs to fused f32 and int8 kernels.
