"""Where a computation runs, and what makes it run the same way twice."""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from qnet.data.workers import processors
from qnet.distributed import local_rank, local_world, world
from qnet.errors import UserError
from qnet.fused import use_compiled
from qnet.params import RuntimeParams


@dataclass(frozen=True)
class Runtime:
    """A device and the arithmetic on it."""

    device: torch.device
    mixed: bool  # bfloat16 for convolutions and linear layers, float32 for what sums up
    workers: int = 0  # processes that decode pictures beside this one
    compile_network: bool = False  # compile the training step as a whole
    graphs: bool = False  # record the training step as a CUDA graph

    def autocast(self) -> AbstractContextManager[None]:
        """The context for a forward pass in this runtime's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed)


def start(params: RuntimeParams) -> Runtime:
    """Set up the process as `params` say.

    To be called before anything is computed: threads that are there already go on with denormal
    numbers.

    Raises:
        UserError: `runtime.device` names a device that this machine does not have, or does not
            have for each of the processes; or several are to compile the network.
    """
    if params.compile == "network" and world() > 1:
        raise UserError(
            f"runtime.compile is network, which one process can and {world()} cannot; set it to "
            "quantizers or none, or runtime.processes to 1"
        )
    # Deterministic sums in cuBLAS need a workspace of fixed size, which it looks up when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if params.threads != "auto" or local_world() > 1:
        threads = torch.get_num_threads() if params.threads == "auto" else params.threads
        torch.set_num_threads(max(1, threads // local_world()))
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory finds uses of uninitialised values, and makes a step a third slower.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 in convolutions too
    use_compiled(params.compile != "none")
    torch.set_flush_denormal(True)  # gradients far from a threshold are tiny, and slow otherwise
    device = _device(params.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams and graphs are those of the current device
    workers = processors() if params.workers == "auto" else params.workers
    workers = -(-workers // local_world())
    auto = params.precision == "auto"
    mixed = _has_bfloat16(device) if auto else params.precision == "bfloat16"
    return Runtime(
        device,
        mixed,
        workers,
        compile_network=params.compile == "network",
        # Several processes exchange gradients by way of the host, which a graph cannot.
        graphs=device.type == "cuda" and world() == 1 and params.compile != "none",
    )


def processes(params: RuntimeParams) -> int:
    """How many processes of this machine train together."""
    if params.processes != "auto":
        return params.processes
    return max(1, torch.cuda.device_count()) if params.device in ("auto", "cuda") else 1


def seed_for(seed: int, *names: str | int) -> int:
    """A seed of 63 bits for one purpose, such as `seed_for(0, "train_fp", epoch)`.

    Each epoch has a seed of its own, so that a resumed run needs no generator state.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def device_named(name: str | torch.device, parameter: str = "device") -> torch.device:
    """The device of this name.

    Raises:
        UserError: there is no such device here; the message names `parameter`.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{parameter} is {name}; it must be cpu, mps, cuda, or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"{parameter} is {name}, and this machine has {torch.cuda.device_count()} CUDA "
            "devices; use cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{parameter} is mps, and this machine has none; use cpu")
    return device


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if accelerator is None else str(accelerator)
    if world() > 1 and torch.device(name).type != "cpu":
        return _own_device(name, torch.device(name))
    return device_named(name, "runtime.device")


def _own_device(name: str, device: torch.device) -> torch.device:
    """The CUDA device of this process, one of several."""
    if device.type != "cuda" or device.index is not None:
        raise UserError(
            f"runtime.device is {name}, and {world()} processes train: each needs a CUDA device of "
            "its own; set runtime.device to cuda or cpu, or runtime.processes to 1"
        )
    if local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"runtime.processes is {local_world()}, and this machine has "
            f"{torch.cuda.device_count()} CUDA devices; use auto, or set runtime.device to cpu"
        )
    return torch.device("cuda", local_rank())


def _has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here, and not merely emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and _processor_has_bfloat16()
    return False


def _processor_has_bfloat16() -> bool:
    """AMX has. Instructions of AVX-512 alone are fast on AMD; on an Intel Xeon they made a step of
    ResNet-20 1.4 times as long as float32."""
    found = torch.cpu.get_capabilities()
    intel = "intel" in str(found.get("cpu_name", "")).lower()
    return bool(found.get("amx_bf16") or (found.get("avx512_bf16") and not intel))
