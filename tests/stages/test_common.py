"""Exit of a stage or a tool."""

import os
import sys

import pytest

from stages.common import run_tool


def raises(error):
    def tool():
        raise error

    return tool


def test_ctrl_c_is_no_traceback(capsys):
    with pytest.raises(SystemExit) as end:
        run_tool(raises(KeyboardInterrupt()))
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_nobody_reads_what_is_printed(tmp_path, monkeypatch, capsys):
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as end:
            run_tool(raises(BrokenPipeError()))
        assert end.value.code == 1
        os.write(out.fileno(), b"lost")  # to /dev/null: Python's final flush is no error
    assert (tmp_path / "out").read_bytes() == b""
    assert capsys.readouterr().err == ""


def test_an_error_of_the_code_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_tool(raises(ZeroDivisionError()))
