"""Statistics of one segment, a file for each kind of data, computed while labelling."""
