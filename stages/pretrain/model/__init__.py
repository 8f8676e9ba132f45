"""The network and what it learns: `front_end` waveform to frames, `encoder` the layers (of `attention`,
`conformer`), `backbone` both; `heads`, `objective`, `mert` what is learnt; `published` (by `hubert`,
`weight_files`) weights of others."""
