"""The library can be installed alone, and imported without what only the pipeline needs."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
        [sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_the_wheel_is_the_library_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="pyproject.toml needs it")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for package in ("qnet", "stages", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    build = "from setuptools.build_meta import build_wheel; print('built', build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    wheel = tmp_path / done.stdout.split()[-1]
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in (tmp_path / "qnet").rglob("*") if path.is_file())
    assert packed == {path.relative_to(tmp_path).as_posix() for path in files}
    assert "qnet/py.typed" in packed


def test_the_oldest_versions_are_those_that_pyproject_names():
    tomllib = pytest.importorskip("tomllib", reason="from Python 3.11 on")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["pipeline"]
    _, *pins = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    for requirement, pin in zip(needed, pins, strict=True):
        assert pin in (exact := requirement.replace(">=", "=="), f"{exact}.0")


def test_everything_that_pyproject_needs_has_one_version_on_this_python():
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()[2:]]
    here = [canonicalize_name(pin.name) for pin in pins if not pin.marker or pin.marker.evaluate()]
    assert len(here) == len(set(here))
    needed = [Requirement(line) for line in requires("qnet") or []]
    assert {canonicalize_name(requirement.name) for requirement in needed} <= set(here)
