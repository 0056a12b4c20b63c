"""Run every speed benchmark and write their tables and the machine to docs/performance.md.

python -m benchmarks.all
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from importlib import import_module

from benchmarks.common import ROOT, machine
from qnet.files import write_text

BENCHMARKS = {
    "training_step": "A training step",
    "step_function": "The step function",
    "clustering_speed": "Clustering",
    "data_pipeline": "Loading images",
    "processes": "Several processes",
    "pipeline": "The whole pipeline",
}
OUT = ROOT / "docs" / "performance.md"
NOTES = ROOT / "benchmarks" / "notes.md"  # measurements made by hand, and once
HEAD = """# Performance

First come the tables that `{command}` writes, on this machine; then, from
[against what was aimed at](#against-what-was-aimed-at) on, results from several machines, kept by
hand in `benchmarks/notes.md`. Figures are medians of repeated runs, and ratios compare runs that
took turns within one benchmark; they differ on other machines.

{machine}
"""


def main() -> None:
    """Run all benchmarks one after another; if one fails, nothing is written."""
    parser = argparse.ArgumentParser(description="Run all benchmarks and write their tables.")
    parser.add_argument(
        "--quick", action="store_true", help="print rough figures without writing them"
    )
    quick = ["--quick"] if parser.parse_args().quick else []

    command = " ".join(["python -m benchmarks.all", *quick]) if quick else "make bench"
    parts = [HEAD.format(command=command, machine="\n".join(f"- {x}" for x in machine()))]
    failed = []
    for name, title in BENCHMARKS.items():
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *quick],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        output = done.stdout.strip()
        if done.returncode != 0:
            failed.append(name)
            output = f"It failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
            print(done.stderr, file=sys.stderr)
        print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
        parts.append(section(name, title, quick, output))
    parts.append(NOTES.read_text(encoding="utf-8"))
    document = "\n".join(parts)
    if quick or failed:
        print(document)
    else:
        write_text(OUT, document)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; {OUT.name} stays as it was")


def section(name: str, title: str, options: list[str], output: str) -> str:
    """Section of the document on a benchmark: description, command and output."""
    about = import_module(f"benchmarks.{name}").__doc__ or ""
    text = about.rsplit("\n\n", 1)[0]  # the last paragraph is the command
    command = " ".join([f"python -m benchmarks.{name}", *options])
    return f"## {title}\n\n{text}\n\n```sh\n{command}\n```\n\n{output}\n"


if __name__ == "__main__":
    main()
