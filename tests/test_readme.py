"""Every command and line of Python of README.md and of the guides works in a clone."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.pipeline import ROOT, write_params

PAGES = [
    ROOT / name for name in ("README.md", "docs/pipeline.md", "docs/library.md", "docs/deploy.md")
]
NOT_HERE = ("make ", "cp recipes/", "source ", "tensorboard ", "git clone ", "cd ")
# make: would call this test; recipes: need a download; the others have no lasting effect.


def blocks(language: str) -> list[str]:
    """The fenced blocks in `language`, in the order in which they are read."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Lines that a reader types, without comments."""
    lines = [line.split(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(NOT_HERE)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone that includes uncommitted changes, with quick parameters, all committed."""
    folder = tmp_path_factory.mktemp("readme") / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    write_params(folder)
    (folder / "dvc.lock").unlink(missing_ok=True)
    for command in ("git init -q", "git add -A", "git commit -qm Start"):
        shell(command, folder)
    shell("dvc repro", folder)
    shell("git add -A", folder)
    shell("git commit -qm Baseline", folder)
    return folder


def shell(command: str, folder: Path) -> str:
    """Run a command as a reader would, and return its output."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        **{f"GIT_{who}_NAME": "Reader" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "reader@example.org" for who in ("AUTHOR", "COMMITTER")},
    }
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.mark.timeout(600)
def test_every_command_works(clone):
    listed = commands()
    assert len(listed) >= 8, listed
    for command in listed:
        output = shell(command, clone)
        if command == "dvc queue start":
            wait_for_queue(clone)
        if command.startswith(("dvc metrics diff", "dvc exp show")):
            assert "top1" in output, f"{command}\n{output}"
        if command.startswith("python -m stages.compare"):
            assert {"2/1", "2/2", "2/3", "2/4"} <= set(output.split()), output


def wait_for_queue(clone: Path) -> None:
    """Wait until nothing is queued or running, and check that all experiments succeeded."""
    end = time.monotonic() + 300
    while True:
        status = shell("dvc queue status", clone)
        if not re.search(r"Queued|Running", status):
            break
        assert time.monotonic() < end, status
        time.sleep(1)
    assert "Failed" not in status, status
    assert "Success" in status, status


def test_a_second_run_does_nothing(clone):
    assert "up to date" in shell("dvc repro", clone)


def test_the_python_works(clone):
    Image.new("RGB", (40, 30), "gray").save(clone / "picture.jpg")
    for number, block in enumerate(blocks("python")):
        if "torch.onnx" in block and torch.__version__.startswith("2.11."):
            continue  # cannot export the pooling of the tests' network
        (clone / f"block{number}.py").write_text(block)
        shell(f"{sys.executable} block{number}.py", clone)
        (clone / f"block{number}.py").unlink()
    (clone / "picture.jpg").unlink()
