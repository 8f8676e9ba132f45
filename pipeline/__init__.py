"""What runs, in which order: one front door a command. `cli` names them; read `labels` first, then
`pretrain`."""
