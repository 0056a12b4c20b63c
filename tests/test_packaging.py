"""The library can be imported without the packages that only the pipeline needs."""

import subprocess
import sys

import pytest

from tests.pipeline import ROOT

BLOCKED = ("dvc", "yaml", "tensorboard", "matplotlib", "tqdm", "sklearn", "torchvision")
IMPORT = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
import qnet

for name in qnet.__all__:
    getattr(qnet, name)
print(len(qnet.__all__))
"""


def test_qnet_imports_without_the_pipeline():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_the_oldest_versions_are_those_that_pyproject_names():
    tomllib = pytest.importorskip("tomllib", reason="from Python 3.11 on")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["pipeline"]
    _, *pins = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    for requirement, pin in zip(needed, pins, strict=True):
        assert pin in (exact := requirement.replace(">=", "=="), f"{exact}.0")
