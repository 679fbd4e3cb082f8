//! Knowledge distillation: teacher and student in one training graph.
