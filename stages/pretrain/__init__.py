"""`loop` is training as it happens, `config` all that can be set; `data/` says which samples come in which
order, `model/` is the network and its objective, `run/` steps, saves and watches it."""
