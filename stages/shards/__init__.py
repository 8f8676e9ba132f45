"""The format, without torch or ray: `record` marks a shard as finished, `column` writes its tar, `checking`
reads it back, `frames` defines label frames, `catalog` has the plan, `storage` the files."""
