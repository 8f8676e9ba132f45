"""How a model is trained. `engine` steps it (`optimiser`, `loss_scale`), `checkpoint` saves it into
`run_dir`, `metrics` and `validation` judge it, `run_log` and `display` show it; `world` is the ranks,
`preflight` and `cqt_start` come before the first update, `loss_guard`, `watchdog` and `stopping` end one that
goes wrong."""
