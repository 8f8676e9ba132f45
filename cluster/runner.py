"""What runs the stages of labelling: Ray, or plain processes of this machine."""

import importlib.util
from types import ModuleType


def runner(plain: bool) -> ModuleType:
    """A module with `preflight`, `session`, `check_nodes`, `run_chain`, `run_one_reporting` and its `NAME`.

    ValueError where Ray is wanted and not installed."""
    if plain:
        from cluster import plain as module
    elif importlib.util.find_spec("ray") is None:
        raise ValueError("ray is not installed: pip install 'ray[data]', or add --plain to run without it")
    else:
        from cluster import sharded as module
    return module
