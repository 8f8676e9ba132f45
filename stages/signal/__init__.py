"""Leaves: `rates` (24 kHz, 320 samples), `mel`, `cqt`, `chroma`, `online` (constant-Q of a training crop)."""
