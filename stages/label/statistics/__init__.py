"""Statistics of one segment: plain numpy functions, a file for each kind of data. They run while labelling,
at little cost (`tests/bench/bench_statistics.py`)."""
