"""Which samples a run sees, in which order: docs/training-data.md."""
