"""Which fold a group goes to: the evenest of many seeded tries."""

from collections import Counter

import numpy as np

TRIES = 4000


def spread(groups: dict[str, Counter], folds: int, seed: int = 0) -> dict[str, str]:
    """group → fold, so that every class has as even a share in every fold as whole groups allow.

    Large groups first, each to the fold where the squared shares grow least; the order is shuffled and noise
    added in each of the tries. ValueError when in none of them every class is in every fold.
    """
    classes = sorted({name for counts in groups.values() for name in counts})
    table_GC = np.array([[groups[g][c] for c in classes] for g in sorted(groups)], float)
    share_GC = table_GC / table_GC.sum(0)
    rng, best, least = np.random.default_rng(seed), None, np.inf
    for _ in range(TRIES):
        held_FC, place_G = np.zeros((folds, len(classes))), np.zeros(len(groups), int)
        weight_G = share_GC.sum(1) * rng.uniform(0.5, 1.5, len(groups))
        for g in np.argsort(-weight_G):
            cost_F = (2 * held_FC * share_GC[g] + share_GC[g] ** 2).sum(1)
            place_G[g] = np.argmin(cost_F * rng.uniform(0.9, 1.1, folds))
            held_FC[place_G[g]] += share_GC[g]
        missing = (held_FC == 0).sum()
        cost = 1000 * missing + (held_FC**2).sum()
        if cost < least:
            best, least = place_G, cost
    if least >= 1000:
        raise ValueError(f"{len(groups)} groups cannot put every class in each of {folds} folds")
    return {group: str(fold) for group, fold in zip(sorted(groups), best, strict=True)}
