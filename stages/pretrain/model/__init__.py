"""The network: front-end, encoder, and nothing of the objective.

`config` sizes, `front_end` waveform or log-mel to frames, `encoder` the stack, `attention` and `conformer`
its blocks, `layers` precision and dropout, `weights` initial values, `count` parameters and arithmetic.
"""
