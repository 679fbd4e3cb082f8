//! Optimizers, losses, schedules and the training loop of the opt model-optimization libraries.
