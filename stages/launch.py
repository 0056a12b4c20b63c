"""Run a training stage in several processes, as torchrun does, with one line if one fails."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from qnet.distributed import join
from qnet.errors import UserError
from qnet.params import Params
from qnet.runtime import processes
from stages import common

# torch's launcher is imported where several processes run: it takes time, and warns on macOS.
if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

Stage = Callable[[Params], None]
RUN = "stages.launch"  # tells a process that it was started here
RESUMES = "`dvc repro` resumes after the last saved epoch"
USER_ERROR = f"{UserError.__name__}: "  # its prefix in torch's file on a failure


def run(stage: Stage, about: str) -> None:
    """Run a training stage in `runtime.processes` processes.

    A process started by torchrun (on one machine or several), or by this function in another
    process, joins the others instead.

    Args:
        stage: the stage, which takes no arguments.
        about: what `--help` prints.
    """
    alone = not _started_among_others() or int(os.environ["WORLD_SIZE"]) == 1
    common.run(partial(_launch if alone else _work, stage), about)


def _started_among_others() -> bool:
    """Whether torchrun or a launcher that sets the same variables started this process."""
    set_by_torchrun = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return set_by_torchrun <= os.environ.keys()  # some clusters export only some of them


def _work(stage: Stage, params: Params) -> None:
    """Run the stage as one of several processes."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    first = os.environ["RANK"] == "0"
    try:
        join(params.runtime.device)
        with (
            common.explained(),
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(sys.stdout if first else nowhere),
        ):
            stage(params)  # only the first process prints
    except Exception as error:
        if os.environ.get("TORCHELASTIC_RUN_ID") != RUN:
            raise
        # The launcher below reports it once: all may fail in the same way, or because one does.
        get_error_handler().record_exception(error)
        sys.stdout.flush()
        os._exit(2 if isinstance(error, UserError) else 1)


def _end_with(parent: int) -> None:
    """End this process when the one that started it is killed, rather than train on unnoticed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _launch(stage: Stage, params: Params) -> None:
    """Start this same command several times; with one process, just run the stage."""
    if _started_among_others() or (count := processes(params.runtime)) == 1:
        try:
            stage(params)
        except KeyboardInterrupt:
            _interrupted(signal.SIGINT)
        return
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # silence torch about processes that it ends
    with TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=RUN,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port
            local_addr="localhost",  # a machine's own name may not resolve
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
        except ChildFailedError as error:
            _explain(error.failures, count)
        except SignalException as error:
            _interrupted(error.sigval)


def _interrupted(signal_number: int) -> NoReturn:
    """Say that nothing is lost, and exit as programs do that a signal ends."""
    print(f"interrupted; {RESUMES}", file=sys.stderr)
    sys.exit(128 + signal_number)


def _explain(failures: Mapping[int, ProcessFailure], count: int) -> None:
    """Report what ended the processes, and exit.

    Raises:
        UserError: a user mistake ended them.
    """
    told = {rank: found for rank, failure in failures.items() if (found := _told(failure))}
    for message in told.values():
        if message["message"].startswith(USER_ERROR):
            raise UserError(message["message"].removeprefix(USER_ERROR))
    silent = {rank: f.exitcode for rank, f in failures.items() if rank not in told}
    # At the first failure the launcher ends the remaining processes with SIGTERM. So SIGTERM is no
    # cause, unless the others report only that they lost a process.
    killed = {rank: code for rank, code in silent.items() if code != -signal.SIGTERM}
    if all(_lost(message) for message in told.values()):
        killed = killed or silent
    if killed:
        rank, code = next(iter(killed.items()))
        how = f"by signal {-code}" if code < 0 else f"with status {code}"
        print(
            f"error: process {rank + 1} of {count} ended {how}; if memory ran out, use fewer "
            f"(runtime.processes) or a smaller batch_size; {RESUMES}",
            file=sys.stderr,
        )
        sys.exit(1)
    sys.exit(min(told.values(), key=_lost)["extraInfo"]["py_callstack"])  # an error in the code


def _told(failure: ProcessFailure) -> dict[str, Any] | None:
    """The exception that a process recorded, if it recorded one."""
    message = failure.error_file_data["message"]
    return message if isinstance(message, dict) else None


def _lost(message: dict[str, Any]) -> bool:
    """Whether a process failed only because another was gone."""
    return "gloo" in message["message"] or "NCCL" in message["message"]
