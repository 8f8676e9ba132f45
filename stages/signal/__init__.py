"""Leaves: `rates` (24 kHz, 320 samples), `mel`, `cqt` (with `cqt_tables`), `chroma`, `online` (constant-Q of
a training crop), `tables` (computed once, kept on disk)."""
