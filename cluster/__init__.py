"""Where it runs: the only imports of ray."""
