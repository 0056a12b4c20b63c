"""Two processes that share each batch train like a single one."""

import multiprocessing
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnet.batch_norm import synchronise_batch_norm
from qnet.data import Augment, Batches, Shard
from qnet.distributed import (
    backward,
    broadcast_state,
    join,
    leave,
    rank,
    sum_over_processes,
    world_size,
)
from qnet.errors import UserError
from qnet.levels import activation_levels
from qnet.params import FpParams, load_params
from qnet.quantizer import Quantizer
from qnet.resume import ResumeFile
from qnet.training import TrainingData
from tests import trainers
from tests.conftest import ROOT
from tests.tiny import INFO, network, split

WORLD = 2
BATCH, STEPS = 15, 2  # of 15 images, one process takes 7 and the other 8


# --- Training, alone or in one of two processes --------------------------------------------------


class Exact(Batches):
    """The same in float64, in which the order of sums does not matter."""

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images.double(), labels) for images, labels in super().epoch(generator))

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images.double(), labels) for images, labels in super().ordered())


def model_of(kind: str) -> nn.Module:
    model = trainers.model_of("fp" if kind == "plain" else kind)
    model[9] = nn.AdaptiveAvgPool2d((4, 1))  # for equal sums, rounding would choose the max
    if kind == "plain":
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                setattr(model, name, nn.Identity())
    return model.double()


def trained(
    kind: str, resume: ResumeFile | None = None
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Network after a few steps on this process's part of the batches, and its figures."""
    params = load_params(ROOT / "params.yaml")
    section: FpParams = params.fp if kind == "plain" else getattr(params, kind)
    shard = Shard(rank(), world_size())
    options = {"batch_size": BATCH, "device": "cpu", "shard": shard}
    data = TrainingData(
        Exact(split(BATCH * STEPS, 0), INFO, augment=Augment(pad=1, flip=True), **options),
        Exact(split(16, 1), INFO, **options),
    )
    model = model_of(kind)
    changes = {"epochs": 2, "warmup_epochs": 0, "lr": 0.05, "clip_norm": 0.5}
    settings = section.model_copy(update=changes)
    run = trainers.trainer_of(model, settings, data, teacher=model_of("fp").eval())
    rows = run.fit(resume).rows
    return model.state_dict(), rows


def gradients(kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gradients of the mean over a batch, and running statistics."""
    model = model_of(kind).to(dtype).train()
    synchronise_batch_norm(model)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(BATCH, 1, 8, 8, generator=generator, dtype=dtype)
    labels = torch.arange(BATCH) % 3
    model[0].weight.requires_grad_(False)  # one without a gradient
    mine = Shard(rank(), world_size()).slice_of(0, BATCH)
    loss = F.cross_entropy(model(batch[mine]), labels[mine])
    backward(loss, len(labels[mine]) / BATCH, model.parameters())
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | {n: b for n, b in model.named_buffers() if n.endswith(("mean", "var"))}


CLOSE = {torch.float32: (1e-4, 1e-6), torch.float64: (1e-10, 1e-12)}  # relative and absolute
KINDS = ("plain", "fp", "weights", "activations")


def worker(number: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(number), "WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    join("cpu")
    found = {
        "trained": {kind: trained(kind) for kind in KINDS},
        "gradients": {(kind, dtype): gradients(kind, dtype) for kind in KINDS for dtype in CLOSE},
        "totals": sum_over_processes([1, number]),
        "few": few(),
        "alike": alike(),
        "shared": shared(),
        "quantizer": shared_quantizer(),
        "disagree": disagreement(folder),
    }
    torch.save(found, folder / f"{number}.pt")
    assert leave() == (number == 0)
    assert world_size() == 1


def few() -> list[int]:
    """Numbers of images that this process scores, of one in total."""
    shard = Shard(rank(), world_size())
    batches = Batches(split(1, 0), INFO, batch_size=4, device="cpu", shard=shard)
    return [len(labels) for _, labels in batches.ordered()]


def alike() -> list[Tensor]:
    """Batch norm and its gradient in bfloat16, for a constant and a varying channel."""
    norm = nn.Sequential(nn.BatchNorm2d(2))
    synchronise_batch_norm(norm)
    part = Shard(rank(), world_size()).slice_of(0, 4)
    values = torch.linspace(-1, 3, 4 * 2 * 3).view(4, 2, 3, 1)
    values[:, 0] = 5.0
    x = values[part].bfloat16().requires_grad_()
    y = norm(x)
    y.pow(3).sum().backward()  # the gradient of the sum of squares is zero
    assert x.grad is not None
    return [y.detach(), x.grad]


def shared() -> dict[str, Tensor]:
    torch.manual_seed(rank())
    model = network(3, 1, 8).to(memory_format=torch.channels_last)
    broadcast_state(model)
    return model.state_dict()


def shared_quantizer() -> Tensor:
    """Output of a quantizer at the thresholds of the first process."""
    first = torch.tensor([0.5, 1.5, 2.5])
    quantizer = Quantizer(activation_levels(2), thresholds=first - 0.1 * rank())
    broadcast_state(quantizer)
    return quantizer(first - 0.05).detach()


def disagreement(folder: Path) -> str:
    """Message if only the first process finds the file to resume from."""
    resume = ResumeFile(folder / f"resume-{rank()}")
    if rank() == 0:
        state = {"model": model_of("plain").state_dict()}
        resume.save({**state, "best": state["model"]}, {"rows": [{"epoch": 1}]})
    with pytest.raises(UserError) as error:
        trained("plain", resume=resume)
    return str(error.value)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict]:
    """Results of the two processes."""
    folder = tmp_path_factory.mktemp("workers")
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        workers = [
            context.Process(target=worker, args=(n, port, folder), daemon=True)
            for n in range(WORLD)
        ]
        for process in workers:
            process.start()
    for process in workers:
        process.join(240)  # those that remain end with this process
        assert process.exitcode == 0
    return [torch.load(folder / f"{number}.pt") for number in range(WORLD)]


# --- The tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_one_process(kind, dtype, both):
    expected = gradients(kind, dtype)
    rtol, atol = CLOSE[dtype]
    for found in (found["gradients"][kind, dtype] for found in both):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_end_as_in_one_process(kind, both):
    state, rows = trained(kind)
    for found in both:
        found_state, found_rows = found["trained"][kind]
        assert found_state.keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(found_state[name], value, rtol=1e-5, atol=1e-6, msg=name)
        for found_row, row in zip(found_rows, rows, strict=True):
            assert found_row == pytest.approx(row, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_processes_agree_to_the_last_bit(kind, both):
    (first, first_rows), (second, second_rows) = (found["trained"][kind] for found in both)
    assert first_rows == second_rows
    for name, value in first.items():
        assert torch.equal(second[name], value), name
    for name, value in both[0]["shared"].items():
        assert torch.equal(both[1]["shared"][name], value), name
    assert all(found["quantizer"].tolist() == [0, 1, 2] for found in both)


def test_numbers_are_summed_and_a_single_image_goes_to_one_process(both):
    assert [found["totals"] for found in both] == [[2, 1], [2, 1]]
    assert [found["few"] for found in both] == [[], [1]]


def test_batch_norm_of_equal_values_and_in_half_precision(both):
    for whole, *parts in zip(alike(), *(found["alike"] for found in both), strict=True):
        assert whole.isfinite().all()
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0.02, atol=0.02)


def test_machines_that_do_not_share_a_folder_are_told_so(both):
    assert "process 2 resumes after epoch 0 and others do not" in both[1]["disagree"]


def test_parts_make_up_the_whole():
    for count in (0, 1, 7, 8):
        parts = [Shard(number, 3).slice_of(10, 10 + count) for number in range(3)]
        places = [place for part in parts for place in range(part.start, part.stop)]
        assert places == list(range(10, 10 + count))


def test_alone_nothing_of_it_is_there():
    assert (rank(), world_size(), sum_over_processes([3, 4])) == (0, 1, [3, 4])
    assert leave()
    assert not torch.distributed.is_initialized()
