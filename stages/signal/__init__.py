"""Leaves: `rates` (24 kHz, 320 samples), `mel`, `cqt`, `chroma`, `online` (constant-Q frames of a training
crop), `tables` (computed once, kept on disk)."""
