"""One front door a command. `cli` names them; read `labels` first, then `pretrain`."""
