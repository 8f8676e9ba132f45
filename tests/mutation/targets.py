"""The modules that are mutated, and the test files that hold each of them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MODULES = (
    "stages/shards/*.py",
    *(
        f"stages/label/{name}.py"
        for name in ("shard", "plan", "audit", "rows", "gathering", "decode", "scan/scan", "scan/identity")
    ),
    "stages/label/decoding/*.py",
    *(
        f"stages/pretrain/data/{name}.py"
        for name in ("order", "state", "crop_index", "crops", "masking", "mixture", "loader")
    ),
    *(
        f"stages/pretrain/run/{name}.py"
        for name in ("checkpoint", "loss_guard", "loss_scale", "optimiser", "settings", "engine")
    ),
    "stages/pretrain/model/objective.py",
    "stages/pretrain/loop.py",
    "cluster/*.py",
    "pipeline/labelling/lock.py",
)

# Tests that hold a module beside those that mirror its name.
FURTHER = {
    **{
        f"cluster/{name}.py": ("tests/cluster/test_chain.py",)
        for name in ("crew", "losses", "placing", "stage")
    },
    "stages/label/rows.py": ("tests/stages/label/test_gathering.py",),
    "stages/shards/storage.py": ("tests/stages/shards/test_fetching*.py",),
    "stages/shards/tables.py": ("tests/stages/label/test_plan*.py",),
    "stages/label/scan/identity.py": ("tests/stages/label/scan/test_scan*.py",),
    "stages/label/decoding/child.py": ("tests/stages/label/decoding/test_process*.py",),
    "stages/label/decoding/process.py": ("tests/stages/label/decoding/test_supervised*.py",),
    "stages/label/decoding/supervised.py": ("tests/stages/label/decoding/test_process*.py",),
    "stages/label/decoding/quick.py": (
        "tests/stages/label/decoding/test_source*.py",
        "tests/stages/label/scan/test_probing*.py",
    ),
    "stages/label/decoding/source.py": (
        "tests/stages/label/decoding/test_recording*.py",
        "tests/stages/label/test_decode*.py",
    ),
    "stages/label/decoding/recording.py": ("tests/stages/label/decoding/test_damage*.py",),
    "stages/pretrain/data/crop_index.py": (
        "tests/stages/pretrain/data/test_crops*.py",
        "tests/stages/pretrain/data/test_loader*.py",
    ),
    "stages/pretrain/data/crops.py": ("tests/stages/pretrain/data/test_loader*.py",),
}


def modules() -> list[str]:
    """Paths of the mutated modules, relative to the repository's root."""
    found = [path for pattern in MODULES for path in sorted(ROOT.glob(pattern)) if path.name != "__init__.py"]
    return [str(path.relative_to(ROOT)) for path in found]


# Left out: they start processes of ranks, half a minute for each mutant that survives the others.
SLOW = ("tests/stages/pretrain/run/test_engine.py", "tests/stages/pretrain/test_loop.py")


def tests_of(module: str) -> list[str]:
    """The test files that hold a module: `tests/a/b/test_c*.py` for `a/b/c.py`, and further ones."""
    path = Path(module)
    patterns = (
        f"tests/{path.parent}/test_{path.stem}.py",
        f"tests/{path.parent}/test_{path.stem}_*.py",
        *FURTHER.get(module, ()),
    )
    found = [str(p.relative_to(ROOT)) for pattern in patterns for p in sorted(ROOT.glob(pattern))]
    return [name for name in dict.fromkeys(found) if name not in SLOW]
