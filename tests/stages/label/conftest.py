"""Shared by the tests of decoding."""

import os

import pytest

from stages.label.decode import Decode
from tests.stages.label.scanned import Scans


@pytest.fixture(scope="module")
def decoder():
    opened = Decode().open(stall_s=30.0)
    yield opened
    opened.close()


@pytest.fixture
def scans(tmp_path, monkeypatch) -> Scans:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return Scans(tmp_path)
