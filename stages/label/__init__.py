"""From audio to labels. `base` is the contract; `recipe` the configuration; `scan/` finds recordings, `plan`
makes shards of them; `decode`, `codes` and `cqt` are the stages, `shard` runs them, `audit` reads back."""
