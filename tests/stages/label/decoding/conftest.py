"""A recording that several test files take apart."""

import pytest


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """(header, packets) of 100 seconds of noise in FLAC."""
    from tests.stages.label.decoding.holes import flac

    return flac(tmp_path_factory.mktemp("long") / "x.flac")
