"""Which samples a run sees, and in which order. `settings` is `data:`, `pinning` (by `corpora`, `joining`)
fixes the shards once, `index` holds them; `order`, `crop_index`, `state` and `counter_rng` define what comes
next, `crops` (by `tars`, `masking`, `mixture`) reads it into a `batch`, `loader` does so ahead of time."""
