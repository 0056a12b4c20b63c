"""Code common to all stages: reading params.yaml, file names, and reporting user mistakes."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from qnet.data.workers import FEWER_WORKERS, why_lost
from qnet.errors import UserError, one_line
from qnet.files import write_text
from qnet.machine_errors import is_out_of_memory
from qnet.params import Params, load_params

PREPARED = Path("data/prepared")
CHECKPOINTS = Path("checkpoints")
FP = CHECKPOINTS / "fp.safetensors"
WEIGHT_CLUSTERS = CHECKPOINTS / "weight_clusters.json"
ACTIVATION_CLUSTERS = CHECKPOINTS / "activation_clusters.json"
WEIGHTS = CHECKPOINTS / "weights.safetensors"
ACTIVATIONS = CHECKPOINTS / "activations.safetensors"
METRICS = Path("metrics")


class Parser(argparse.ArgumentParser):
    """Command-line parser that reports a mistake as a `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` that says what is wrong with the command line."""
        raise UserError(f"{message}; see {self.prog} --help")


def output_file(suffix: str) -> Callable[[str], Path]:
    """The type of an argument that names a file to write; so no file of another kind is lost."""

    def parse(name: str) -> Path:
        path = Path(name)
        if path.suffix.lower() not in ("", suffix):
            raise argparse.ArgumentTypeError(f"{name} does not end in {suffix}; give one that does")
        return path

    return parse


def run(stage: Callable[[Params], None], about: str) -> None:
    """Run a stage as `run_tool` does, accepting no arguments except `--help`.

    Args:
        stage: the stage.
        about: what `--help` prints.
    """

    def work() -> None:
        _refuse_arguments(about)
        stage(load_params())

    run_tool(work)


def run_tool(tool: Callable[[], None]) -> None:
    """Run a program; a `UserError` becomes one line on standard error and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be valid UTF-8
    try:
        with explained():
            tool()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        print(f"error: {on_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def on_one_line(text: object) -> str:
    """Escape line breaks in `text`, which file names may contain, as Python does."""
    return str(text).replace("\r", "\\r").replace("\n", "\\n")


@contextmanager
def explained() -> Iterator[None]:
    """Context in which machine failures are reported as user mistakes are.

    Raises:
        UserError: a file cannot be used, memory ran out, or a decoding worker died, and no inner
            code has already reported it.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (MemoryError, OSError, RuntimeError) as error:
        explanation = _explanation(error)
        if explanation is None:
            raise
        raise explanation from error


def _explanation(error: Exception) -> UserError | None:
    """The error to report; None if the code may be at fault."""
    if is_out_of_memory(error):
        return UserError(
            "memory ran out; use smaller images (data.size), fewer processes (runtime.workers, "
            "runtime.processes), or a machine with more memory"
        )
    if (reason := why_lost(error)) is not None:
        return UserError(f"runtime.workers: one of them died ({reason}): {FEWER_WORKERS}")
    if isinstance(error, OSError):
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        where = "" if name is None else f"{name}: "
        reason = error.strerror or one_line(error)
        return UserError(f"{where}{reason}; fix the path, its permissions or the disk")
    return None


def _refuse_arguments(about: str) -> None:
    """Print `about` if help is asked for, and refuse any other argument.

    Raises:
        UserError: the command line has another argument.
    """
    parser = Parser(
        prog=f"python -m stages.{Path(sys.argv[0]).stem}",
        description=about,
        epilog="Takes no arguments; parameters are in params.yaml.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # keeps line breaks
    )
    parser.parse_args()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context for reading and parsing what an earlier stage wrote to `path`.

    Raises:
        UserError: the file is missing or has other content.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; run the stage that writes it, with `dvc repro`"
        ) from None
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `dvc repro`") from error
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged; delete it and run `dvc repro`") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as indented JSON, with floats rounded to 6 significant digits."""
    write_text(path, json.dumps(_rounded(content), indent=2) + "\n")


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table with column `names`, with floats rounded to 6 significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(
        [f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows
    )
    write_text(path, text.getvalue())


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
