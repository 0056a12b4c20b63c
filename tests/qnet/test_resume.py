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


def test_what_editors_leave_beside_code_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("code")
    before = run_key({}, [tmp_path])
    (tmp_path / "__pycache__").mkdir()
    for name in (".code.py.swp", ".DS_Store", "code.py~", "__pycache__/code.pyc.123"):
        (tmp_path / name).write_text("anything")
    assert run_key({}, [tmp_path]) == before
