"""`engine` steps a model (by `optimiser`, `loss_scale`), `checkpoint` saves it into `run_dir`, `metrics` and
`validation` judge it, `run_log` and `display` show it; `world` is the ranks, `preflight` and `cqt_start` come
first, `loss_guard`, `watchdog` and `stopping` end what goes wrong."""
