"""Use of a trained model: `run` opens one, `export` writes it for others, `features` applies it."""
