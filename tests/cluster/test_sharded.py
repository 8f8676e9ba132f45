"""How the shards of a chain are put into blocks."""

import pytest

from cluster.sharded import blocks


@pytest.mark.parametrize(
    ("shards", "expected"),
    [
        (0, 1),
        (1, 1),
        (1999, 1999),
        (2000, 2000),
        (2001, 2000),
        (5000, 2000),
        (10_000, 2000),
        (10_001, 2001),
        (160_000, 32_000),
    ],
)
def test_blocks_hold_one_shard_or_a_few(shards, expected):
    assert blocks(shards) == expected
