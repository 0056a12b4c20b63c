"""Resources that a process uses, alone and among others."""

import os

import pytest
import torch

from qnet import devices, runtime
from qnet.errors import UserError
from qnet.params import RuntimeParams, load_params
from tests.conftest import ROOT


@pytest.fixture
def params() -> RuntimeParams:
    found = load_params(ROOT / "params.yaml").runtime
    return found.model_copy(update={"device": "cpu", "precision": "float32"})


@pytest.fixture
def among_three(monkeypatch) -> None:
    """Process number 1 of 3 on this machine, of 6 in all, with two CUDA devices."""
    for module in (devices, runtime):
        monkeypatch.setattr(module, "world_size", lambda: 6)
        monkeypatch.setattr(module, "local_world_size", lambda: 3)
    monkeypatch.setattr(devices, "local_rank", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.fixture
def threads(monkeypatch) -> list[int]:
    """Collect the numbers of threads that are set, without setting them."""
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda mode: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # restored afterwards
    yield found
    torch.use_deterministic_algorithms(False)


def test_alone_all_is_as_it_says(params, threads):
    assert runtime.start(params.model_copy(update={"workers": 4})).workers == 4
    assert threads == []
    runtime.start(params.model_copy(update={"threads": 7}))
    assert threads == [7]


@pytest.mark.parametrize("name", ["processes", "workers"])
def test_more_processes_than_the_cpu_has_room_for(name, params, threads, monkeypatch):
    monkeypatch.setattr(runtime, "usable_cpus", lambda: 3)
    begin = {"processes": runtime.processes, "workers": runtime.start}[name]
    begin(params.model_copy(update={name: 12}))
    message = f"runtime.{name}: 13 is more than 4 for each CPU core .*: choose at most 12, or auto"
    with pytest.raises(UserError, match=message):
        begin(params.model_copy(update={name: 13}))


def test_cublas_is_told_to_be_deterministic(params, threads, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    runtime.start(params)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the other deterministic setting
    runtime.start(params)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_several_processes_do_not_compile_the_network(params, threads, among_three):
    with pytest.raises(UserError, match="which one process can and 6 cannot"):
        runtime.start(params.model_copy(update={"compile": "network"}))


@pytest.mark.parametrize(("workers", "share"), [(0, 0), (1, 1), (4, 2)])
def test_processes_share_threads_and_workers(workers, share, params, threads, among_three):
    found = runtime.start(params.model_copy(update={"threads": 7, "workers": workers}))
    assert found.workers == share
    runtime.start(params)
    assert threads == [2, 1]


def test_each_process_has_a_cuda_device_of_its_own(among_three, monkeypatch):
    assert devices.device_of_process("cuda") == torch.device("cuda", 1)
    with pytest.raises(UserError, match=r"runtime\.device is cuda:1, and 6 processes train"):
        devices.device_of_process("cuda:1")
    monkeypatch.setattr(devices, "local_rank", lambda: 2)
    with pytest.raises(UserError, match=r"runtime\.processes is 3, and this machine has 2 CUDA"):
        devices.device_of_process("cuda")
    assert devices.device_of_process("cpu") == torch.device("cpu")


def test_a_cuda_device_that_is_named_becomes_the_current_one(params, threads, monkeypatch):
    current = [0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(device.index))
    found = runtime.start(params.model_copy(update={"device": "cuda:1"}))
    assert (found.device.index, current[-1]) == (1, 1)
    assert runtime.start(params.model_copy(update={"device": "cuda"})).device.index is None
    assert len(current) == 2


def test_each_of_several_processes_has_its_device_as_the_current_one(
    params, threads, among_three, monkeypatch
):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    runtime.start(params.model_copy(update={"device": "cuda"}))
    assert current == [torch.device("cuda", 1)]


INTEL, AMD = {"cpu_name": "Intel(R) Xeon(R) Platinum"}, {"cpu_name": "AMD EPYC 9554"}


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (INTEL | {"avx512_bf16": True, "amx_bf16": True}, True),
        (AMD | {"avx512_bf16": True, "amx_bf16": False}, True),
        (INTEL | {"avx512_bf16": True, "amx_bf16": False}, False),
        (INTEL | {"avx512_bf16": False, "amx_bf16": False}, False),
        (AMD | {"avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({}, False),
    ],
)
def test_auto_is_bfloat16_where_the_processor_is_faster_with_it(
    capabilities, expected, params, threads, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert runtime.start(params.model_copy(update={"precision": "auto"})).mixed is expected
    assert not runtime.start(params.model_copy(update={"precision": "float32"})).mixed
    assert runtime.start(params.model_copy(update={"precision": "bfloat16"})).mixed
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not devices.has_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True)])
def test_auto_is_bfloat16_on_cuda_from_ampere_on(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.has_bfloat16(torch.device("cuda", 0)) is expected
    assert not devices.has_bfloat16(torch.device("mps"))
