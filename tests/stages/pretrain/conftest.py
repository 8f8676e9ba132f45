"""Corpora, readers and quick runs that several test files share. What is heavy to import is imported by who
asks."""

import pytest


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    """The configuration of a small run, and its corpus."""
    from tests.chaos.training import configured

    return configured(tmp_path_factory.mktemp("run"))


@pytest.fixture
def quick(monkeypatch, configuration, tmp_path):
    """That run in the test's own process."""
    from tests.stages.pretrain.runs import Quick

    return Quick(monkeypatch, configuration, tmp_path)


@pytest.fixture(scope="module", params=["wav-float16", "flac-uint8"])
def made(request, tmp_path_factory):
    """A corpus in each form that audio and CQT are stored in."""
    from tests.stages.pretrain.corpus import Corpus

    form, storage = request.param.split("-")
    root = tmp_path_factory.mktemp("crops") / request.param
    return Corpus(str(root), format=form, storage=storage).write(shards=2, segments=4).gather()


@pytest.fixture
def data(made):
    from stages.pretrain.data.settings import Data
    from tests.stages.pretrain.corpus import CROP

    return Data(corpora=(made.root,), crop_samples=CROP, cache=f"{made.root}-cache")


@pytest.fixture
def reader(data):
    from tests.stages.pretrain.reading import reading

    made = reading(data)
    yield made
    made.tars.close()
