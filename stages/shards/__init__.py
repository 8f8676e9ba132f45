"""The format, without torch or ray. `record` marks a shard as finished, `column` writes its tar, `checking`
reads it back, `frames` defines label frames, `recordings` reads audio by position, `histograms` adds up,
`catalog` has the plan, `storage` (with `fetching`) the files, `tables` those larger than memory."""
