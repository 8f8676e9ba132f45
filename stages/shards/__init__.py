"""The format, without torch or ray. `record` says that a shard is finished, `column` writes and reads its
tar, `frames` says what label frames mean, `recordings` reads audio by position, `histograms` adds up,
`catalog` is the plan, `storage` (by `fetching`) is where it lies, `tables` larger than memory."""
