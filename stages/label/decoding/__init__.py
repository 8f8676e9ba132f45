"""Decoding in a child process: a crash, a hang or a decompression bomb costs that process, not a shard.

`supervised` starts and watches a child, `child` is its other end; `scan/` probes headers with them too.
`process` decides what a decoder's death means, `recording` decodes one file in the child, `source` checks
that the bytes are those that were scanned (`quick`) and that all of them could be read.
"""
