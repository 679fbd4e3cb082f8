//! Metrics, cost, latency and before/after comparison of neural-network graphs.
