"""`pinning` (by `corpora`, `joining`) fixes the shards once, `index` holds them; `order`, `crop_index`,
`state` and `counter_rng` say which sample comes next, `crops` (by `tars`, `masking`, `mixture`) reads a
`batch`, `loader` does so ahead of time."""
