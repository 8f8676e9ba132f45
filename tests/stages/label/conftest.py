"""Shared by the tests of decoding."""

import pytest

from stages.label.decode import Decode


@pytest.fixture(scope="module")
def decoder():
    opened = Decode().open(stall_s=30.0)
    yield opened
    opened.close()
