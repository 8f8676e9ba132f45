"""From labels to a model: `loop` is training as it happens, `config` all that can be set."""
