"""From labels to a model. `loop` is training as it happens, `config` all that can be set; then `data/` (which
samples, in which order), `model/` (the network and its objective) and `run/` (how it is stepped, saved,
watched)."""
