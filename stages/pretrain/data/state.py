"""Where a run is in its data: whole numbers, saved with the weights, that say what comes next."""

import json
from dataclasses import asdict, dataclass, replace

import numpy as np

from stages.pretrain.data import counter_rng


@dataclass(frozen=True)
class State:
    """The place before an update. `consumed` counts samples of this epoch, those skipped included."""

    fingerprint: str  # of the pinned data
    seed: int
    global_batch: int  # samples of an update, over all ranks
    epoch: int = 0
    consumed: int = 0
    update: int = 0  # updates done
    skipped: tuple[tuple[int, int, int], ...] = ()  # (epoch, first sample, samples) never trained on

    def __post_init__(self):
        if self.global_batch < 1:
            raise ValueError(f"global_batch is {self.global_batch}: expected at least 1 sample an update")
        assert min(self.epoch, self.consumed, self.update) >= 0, self

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "State":
        """ValueError when `to_json` did not write `text`."""
        try:
            fields = json.loads(text)
            return State(**fields | {"skipped": tuple(tuple(r) for r in fields["skipped"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"the saved place in the data cannot be read ({error!r}): restore another checkpoint"
            ) from None

    def keys(self, purpose: int, places_B: np.ndarray) -> np.ndarray:
        """uint64 (B,): of the samples at these places of the global batch, for one purpose."""
        key = counter_rng.key(purpose, self.seed, self.epoch)
        return counter_rng.keys(key, self.consumed + places_B)

    def advanced(self, samples_per_epoch: int) -> "State":
        return replace(self._moved(samples_per_epoch), update=self.update + 1)

    def settled(self, samples_per_epoch: int) -> "State":
        """Here, or the next epoch's begin: an end of less than a global batch is dropped."""
        if samples_per_epoch < self.global_batch:
            raise ValueError(
                f"global_batch is {self.global_batch}, an epoch has {samples_per_epoch} samples: lower the "
                "global batch, raise data.crops_per_segment, or label more audio"
            )
        return self._next_epoch() if self.consumed + self.global_batch > samples_per_epoch else self

    def _next_epoch(self) -> "State":
        return replace(self, epoch=self.epoch + 1, consumed=0)

    def _moved(self, samples_per_epoch: int) -> "State":
        here = self.settled(samples_per_epoch)
        return replace(here, consumed=here.consumed + here.global_batch).settled(samples_per_epoch)

    def skip(self, updates: int, samples_per_epoch: int) -> "State":
        """Past the data of so many updates, noted as skipped; the count of updates stays."""
        state = self
        for _ in range(updates):
            state = state.settled(samples_per_epoch)
            epoch, first, samples = state.epoch, state.consumed, state.global_batch
            ranges = state.skipped
            if ranges and ranges[-1][0] == epoch and sum(ranges[-1][1:]) == first:
                first, samples, ranges = ranges[-1][1], ranges[-1][2] + samples, ranges[:-1]
            state = replace(state._moved(samples_per_epoch), skipped=(*ranges, (epoch, first, samples)))
        return state

    def skip_to(self, place: "State", samples_per_epoch: int) -> "State":
        state = self
        while (state.epoch, state.consumed) != (place.epoch, place.consumed):
            state = state.skip(1, samples_per_epoch)
        return state

    def resumed(
        self, fingerprint: str, seed: int, global_batch: int, allow: set[str] = frozenset()
    ) -> "State":
        """For a run with these values. ValueError when they are not those saved, unless `allow` names them
        (data, seed, global_batch). With other data or another seed the place in the old order means nothing:
        theirs begins at the next epoch. Another global batch goes on at the next sample."""
        now = {"fingerprint": fingerprint, "seed": seed, "global_batch": global_batch}
        changed = {name for name, value in now.items() if getattr(self, name) != value}
        for name in sorted(changed):
            allowed = "data" if name == "fingerprint" else name
            if allowed not in allow:
                raise ValueError(
                    f"{name} is {now[name]}, this run was begun with {getattr(self, name)}: restore the "
                    f"{allowed.replace('_', ' ')}, start another run (run.name), or go on with --set "
                    f"resume.allow={allowed}"
                )
        state = replace(self, **now)
        return state._next_epoch() if changed & {"fingerprint", "seed"} else state
