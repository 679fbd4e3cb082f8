//! Unstructured and structured pruning of neural-network graphs: smaller, and physically so.
