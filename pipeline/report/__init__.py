"""What is in an OUT or a training run, for eyes."""
