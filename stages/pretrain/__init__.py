"""From labels to a model: `loop` is training as it happens, `config` all that can be set.

Letters behind a tensor's name are its shape: B clips, N samples at 24 kHz, T model frames, L label frames of
a column, S masked frames of a micro-batch, D width, K codebooks (of all columns, in order), C codes of a
codebook, F CQT bins. Further ones, or others, head a file."""
