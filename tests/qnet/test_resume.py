"""Name by which an unfinished run is found again."""

from pathlib import Path

import torch
from torch import nn

from qnet.resume import load_optimizer_tensors, optimizer_tensors, run_key


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


def test_state_that_a_run_on_another_device_lacks_stays() -> None:
    """On CUDA, parameters that are frozen at first have a momentum of zero from the start."""

    def optimizer_of(*layers: nn.Linear) -> torch.optim.SGD:
        return torch.optim.SGD([layer.weight for layer in layers], lr=0.1, momentum=0.9)

    learning, frozen = nn.Linear(2, 2), nn.Linear(2, 2)
    before = optimizer_of(learning, frozen)
    learning(torch.ones(1, 2)).sum().backward()
    before.step()
    after = optimizer_of(learning, frozen)
    for layer in (learning, frozen):
        after.state[layer.weight]["momentum_buffer"] = torch.zeros(2, 2)
    load_optimizer_tensors(after, optimizer_tensors(before))
    assert after.state[learning.weight]["momentum_buffer"].tolist() == [[1, 1]] * 2
    assert after.state[frozen.weight]["momentum_buffer"].tolist() == [[0, 0]] * 2


def test_a_renamed_file_is_another_run(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("code")
    before = run_key({}, [tmp_path])
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert run_key({}, [tmp_path]) != before
