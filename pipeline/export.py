"""`overtone export RUN --out DIR`: the encoder of a training run as a Hugging Face folder."""

from pathlib import Path

from stages.evaluate.export import files
from stages.evaluate.run import open_run
from stages.shards.storage import Storage


def export(place: str, out: str, checkpoint: str = "latest") -> str:
    """config.json comes last, so that a folder that loads is whole. Raises ValueError."""
    run = open_run(place, checkpoint)
    found, storage = files(run), Storage(out)
    for name in sorted(found, key=lambda name: name == "config.json"):
        storage.write(name, found[name])
    size_mb = len(found["model.safetensors"]) / 1e6
    return (
        f"{out}: {', '.join(sorted(found))} ({size_mb:.0f} MB) from checkpoint {run.checkpoint} of "
        f"{Path(place)}\n"
        f"load it with transformers: AutoModel.from_pretrained({out!r})"
    )
