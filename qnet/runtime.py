"""Where a computation runs, and what makes it run the same way twice."""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from qnet.data.workers import usable_cpus
from qnet.devices import device_of_process, has_bfloat16
from qnet.distributed import local_world_size, world_size
from qnet.errors import UserError
from qnet.fused import use_compiled
from qnet.params import RuntimeParams

PER_CPU = 4  # more processes than this for each CPU core would only fill the memory


@dataclass(frozen=True)
class Runtime:
    """A device and the arithmetic on it."""

    device: torch.device
    mixed: bool  # bfloat16 for convolutions and linear layers, float32 for what sums up
    workers: int = 0  # processes that decode images beside this one
    compile_network: bool = False  # compile the training step as a whole
    graphs: bool = False  # record the training step as a CUDA graph

    def autocast(self) -> AbstractContextManager[None]:
        """The context for a forward pass in this runtime's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed)


def start(params: RuntimeParams) -> Runtime:
    """Set up the process as `params` say.

    Call it before anything is computed: threads that exist already go on computing with denormal
    numbers.

    Raises:
        UserError: `runtime.device` names a device that this machine does not have, or does not
            have for each of the processes; there are too many `runtime.workers` for it; or several
            processes are to compile the network.
    """
    if params.compile == "network" and world_size() > 1:
        raise UserError(
            f"runtime.compile is network, which one process can and {world_size()} cannot; set it "
            "to quantizers or none, or runtime.processes to 1"
        )
    # Deterministic sums in cuBLAS need a workspace of fixed size, which it reads when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if params.threads != "auto" or local_world_size() > 1:
        threads = torch.get_num_threads() if params.threads == "auto" else params.threads
        torch.set_num_threads(max(1, threads // local_world_size()))
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory finds uses of uninitialised values, and makes a step a third slower.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Float32 is float32, and bfloat16 is summed in it (qnet.layers).
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    use_compiled(params.compile != "none")
    torch.set_flush_denormal(True)  # gradients far from a threshold are tiny, and slow otherwise
    device = device_of_process(params.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams and graphs are those of the current device
    workers = usable_cpus() if params.workers == "auto" else _bounded("workers", params.workers)
    workers = -(-workers // local_world_size())
    auto = params.precision == "auto"
    mixed = has_bfloat16(device) if auto else params.precision == "bfloat16"
    return Runtime(
        device,
        mixed,
        workers,
        compile_network=params.compile == "network",
        # Not tried with several processes, whose exchange of gradients would have to be recorded.
        graphs=device.type == "cuda" and world_size() == 1 and params.compile != "none",
    )


def processes(params: RuntimeParams) -> int:
    """How many processes of this machine train together.

    Raises:
        UserError: there are too many `runtime.processes` for this machine.
    """
    if params.processes != "auto":
        return _bounded("processes", params.processes)
    return max(1, torch.cuda.device_count()) if params.device in ("auto", "cuda") else 1


def _bounded(name: str, count: int) -> int:
    """The number, if this machine has CPU cores for so many processes."""
    most = PER_CPU * usable_cpus()
    if count > most:
        raise UserError(
            f"runtime.{name}: {count} is more than {PER_CPU} for each CPU core of this machine: "
            f"choose at most {most}, or auto"
        )
    return count


def seed_for(seed: int, *names: str | int) -> int:
    """A seed of 63 bits for one purpose, such as `seed_for(0, "train_fp", epoch)`.

    Each epoch has a seed of its own, so that a resumed run needs no generator state.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
