"""Files that are either whole or absent (written beside the target, then renamed), or readable."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from qnet.errors import UserError


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all, making its folder where needed.

    A crash at any moment leaves the old file or the new one, never half of one. A link stays, and
    its target is written; if that is read-only, as in DVC's cache, a file replaces the link. A pipe
    or a device is written to directly.

    Raises:
        UserError: the disk is full, the folder cannot be written to, or `path` is a folder.
    """
    path = Path(path)
    try:
        if path.is_dir():  # "" is the current folder too
            raise UserError(f"{path} is a folder; give the name of a file")
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            _replace(path if _is_read_only(path) else path.resolve(), content)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "free space, or change its permissions"
        if isinstance(error, FileExistsError | NotADirectoryError):
            remedy = "remove the file that is in the place of its folder"
        raise UserError(
            f"{path} could not be written ({reason}); {remedy}, and run again"
        ) from error


def _is_read_only(path: Path) -> bool:
    """Whether nobody may write to the file at `path`."""
    return path.exists() and not path.stat().st_mode & 0o222


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")  # that of a killed run is overwritten
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with suppress(OSError):  # there is none, or no such folder
            part.unlink()


def check_writable(path: Path) -> None:
    """Make the folder of `path` and check that a file can be written there, before a long run.

    Raises:
        UserError: the folder cannot be made or written to, or `path` is itself a folder.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    make_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, if it does not exist.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(path, os.W_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise UserError(
            f"{path} is not a writable folder ({reason}); remove the file of that name, or change "
            "its permissions"
        )


def check_readable(path: Path) -> None:
    """Raise the system's own OSError if `path` cannot be read: safetensors calls it missing."""
    with path.open("rb"):
        pass


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode())
