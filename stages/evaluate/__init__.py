"""What a trained model is used for: `run` opens one, `export` writes it for others, `features` applies it."""
