"""Files are written completely or not at all; pipes and the like are written to directly."""

import os
import threading
from pathlib import Path

import pytest

from qnet.errors import UserError
from qnet.files import write_bytes, write_text


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in (b"one", b"two"):
        write_bytes(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("before")
    link.symlink_to(target)
    write_text(link, "after")
    assert link.is_symlink()
    assert target.read_text() == "after"


def test_a_link_to_what_may_only_be_read_is_replaced(tmp_path: Path) -> None:
    kept, link = tmp_path / "cache" / "object", tmp_path / "link"
    kept.parent.mkdir()
    kept.write_text("before")
    kept.chmod(0o444)
    link.symlink_to(kept)
    write_text(link, "after")
    assert not link.is_symlink()
    assert (link.read_text(), kept.read_text()) == ("after", "before")


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_bytes(pipe, b"content")
    reader.join(10)
    assert read == [b"content"]
    assert pipe.is_fifo()


def test_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; give the name of a file"):
        write_bytes(tmp_path, b"")
