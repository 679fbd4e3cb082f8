//! Data sets, batches, transforms and augmentation for the opt model-optimization libraries.
