"""Decoding apart from the worker: a crash, a hang or a bomb in a decoder costs a child process, not a shard.

`recording` decodes one file, in `child`, a process of its own; `process` feeds and watches the child;
`source` proves that the bytes are those that were scanned, and could all be read.
"""
