"""A folder in which the pipeline has run."""

import shutil
from pathlib import Path

import pytest

from tests.pipeline import STAGES, run, write_params


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which all five stages have run."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_params(folder)
    for stage in STAGES:
        run(stage, folder)
    return folder


@pytest.fixture
def workspace(finished, tmp_path) -> Path:
    """A copy of that folder, free to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))
