"""Location of the state of an unfinished training stage, so that the next try finds it.

`dvc exp run --queue` and `--temp` run an experiment in its own folder, below .dvc/tmp/exps of the
project, and delete it when the run ends, even if it was killed. So the state to resume from goes to
the project's own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qnet.resume import ResumeFile
from qnet.states import State

RESUME = Path(".resume")
EXPERIMENTS = (".dvc", "tmp", "exps")


def resume_file(name: str) -> ResumeFile:
    """Resume file of the run identified by `name`."""
    path = RESUME / f"{name}.safetensors"
    for folder in Path.cwd().parents:
        if folder.parts[-len(EXPERIMENTS) :] == EXPERIMENTS:
            return KeptFile(path, folder.parents[len(EXPERIMENTS) - 1] / path)
    return ResumeFile(path)


class KeptFile(ResumeFile):
    """Resume file that is written to one folder and moved to another that is kept.

    Several experiments may do the same run at once, with the same state after each epoch: each
    finds a complete file, whichever wrote it, and carries on if another has removed it. They never
    write to the same file, and none removes the folder that another moves its file to.
    """

    def __init__(self, path: Path, kept: Path) -> None:
        super().__init__(path)
        self.kept = kept

    def save(self, groups: Mapping[str, State], numbers: Mapping[str, Any]) -> None:
        """Replace the file with these named groups of tensors and JSON-able numbers."""
        super().save(groups, numbers)
        with suppress(OSError):  # training continues, and saves again later
            self.kept.parent.mkdir(exist_ok=True)
            self.path.replace(self.kept)

    def load(self) -> tuple[dict[str, State], dict[str, Any]] | None:
        """The state saved last, or None if there is none or it is unreadable."""
        return ResumeFile(self.kept).load()

    def remove(self) -> None:
        """Forget the run: it has finished."""
        super().remove()
        with suppress(OSError):  # no such file or folder
            self.kept.unlink()
