"""Name by which an unfinished run is found again."""

from pathlib import Path

from qnet.resume import run_key


def test_whatever_a_run_depends_on_changes_its_name(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("content")
    folder.mkdir()
    names = [run_key({"lr": 0.1}, [file, folder]), run_key({"lr": 0.2}, [file, folder])]
    (folder / "new.py").write_text("code")
    names.append(run_key({"lr": 0.1}, [file, folder]))
    file.write_text("changed")
    names.append(run_key({"lr": 0.1}, [file, folder]))
    assert len(set(names)) == 4
    assert run_key({"lr": 0.1}, [file, folder]) == names[-1]
