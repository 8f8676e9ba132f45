"""Mutation testing: small defects in the critical modules, one at a time; a test must fail for each.

Read `targets` (which modules, which tests), `defects` (which changes), `runs` (one mutant in a process of
its own), `__main__` (a full pass, what `make mutants` runs). Results and reasons are in `tests/mutants.md`.
"""
