"""The network and what it learns: docs/model.md."""
