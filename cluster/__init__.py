"""Where it runs, and the only imports of ray. `session` connects or starts, `sharded` runs the stages of
labelling over shards, `ledger` counts attempts, `trainer` starts ranks, `simulate` is several nodes on one
machine."""
