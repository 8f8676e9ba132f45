"""What is worth knowing of one segment: plain numpy functions, each of one kind of data.

They run while labelling, beside the tars' bytes, and are cheap against it
(`tests/bench/bench_statistics.py`).
"""
