"""Where the state of an unfinished training stage lies, so that the next try finds it.

`dvc exp run --queue` and `--temp` run an experiment in a folder of its own, below .dvc/tmp/exps of
the project, and delete it when the run ends, even if it was killed. So what it leaves to resume
from goes to the project's own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qnet.resume import ResumeFile, State

RESUME = Path(".resume")
EXPERIMENTS = (".dvc", "tmp", "exps")


def resume_file(name: str) -> ResumeFile:
    """The file for the state of a run that `name` tells from all others."""
    path = RESUME / f"{name}.safetensors"
    for folder in Path.cwd().parents:
        if folder.parts[-len(EXPERIMENTS) :] == EXPERIMENTS:
            return KeptFile(path, folder.parents[len(EXPERIMENTS) - 1] / path)
    return ResumeFile(path)


class KeptFile(ResumeFile):
    """A resume file that is written to one folder and moved to another, which stays.

    Several experiments may have the same run at a time, and then the same state after each epoch:
    each finds a whole file, whichever wrote it, and goes on without one that another has removed.
    They never write to the same file, and none removes the folder that another moves its file to.
    """

    def __init__(self, path: Path, kept: Path) -> None:
        super().__init__(path)
        self.kept = kept

    def save(self, groups: Mapping[str, State], numbers: Mapping[str, Any]) -> None:
        """Replace the file by these named groups of tensors and JSON-able numbers."""
        super().save(groups, numbers)
        with suppress(OSError):  # training goes on all the same, and saves again
            self.kept.parent.mkdir(exist_ok=True)
            self.path.replace(self.kept)

    def load(self) -> tuple[dict[str, State], dict[str, Any]] | None:
        """What was saved last, or None where there is nothing (or nothing readable)."""
        return ResumeFile(self.kept).load()

    def remove(self) -> None:
        """Forget the run: it has finished."""
        super().remove()
        with suppress(OSError):  # there is none, or no such folder
            self.kept.unlink()
