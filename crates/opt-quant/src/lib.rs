//! Post-training and quantization-aware int8 quantization of neural-network graphs.
