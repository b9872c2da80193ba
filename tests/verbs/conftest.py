"""An embedded corpus for the verbs that read vectors."""

import shutil
from pathlib import Path

import pytest
from embedded_corpus import checkpoint, embedded_pictures


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("weights") / "a.ckpt")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, encoder):
    return embedded_pictures(tmp_path_factory.mktemp("built"), encoder)


@pytest.fixture
def corpus(embedded, tmp_path):
    return Path(shutil.copytree(embedded, tmp_path / "corpus"))
