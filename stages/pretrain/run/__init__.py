"""How a model is trained, saved, judged and shown."""
