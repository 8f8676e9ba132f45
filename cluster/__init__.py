"""Where it runs: the only imports of ray. `sharded` runs labelling's stages over shards, `trainer` ranks."""
