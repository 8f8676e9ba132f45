"""What runs the stages of labelling: Ray, or plain processes of this machine."""

from types import ModuleType


def runner(plain: bool) -> ModuleType:
    """A module with `preflight`, `probe_all`, `session`, `check_nodes`, `run_chain`, `run_one_reporting` and
    its `NAME`.

    ValueError where Ray is wanted and not installed."""
    if plain:
        from cluster import plain as module

        return module
    try:
        from cluster import sharded
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ValueError("ray is not installed: pip install ray, or add --plain to run without it") from None
    return sharded
