"""The network and what it learns; nothing of how it is stepped.

`config` sizes, `front_end` waveform or log-mel to frames, `encoder` the stack of `attention` and `conformer`,
`backbone` both together; `heads`, `objective` and `mert` are what is learnt; `initial` starting values,
`published` (by `hubert`, `weight_files`) those of others; `layers`, `dropout`, `convolve` and `masked` their
parts; `count` parameters and arithmetic.
"""
