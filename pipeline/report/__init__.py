"""What is in an OUT or a training run, for eyes; of audio only the examples to listen to are read."""
