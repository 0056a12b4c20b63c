"""A training step as a CUDA graph; without a CUDA device, a stand-in shows when it is recorded."""

import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from qnet.data import Batches
from qnet.graphs import GraphedStep
from qnet.runtime import Runtime
from qnet.training import TrainingData
from tests.trainers import model_of, trainer_of

EAGER = 3  # steps before recording


class StandIn:
    """Stand-in for a CUDA graph that counts recordings and replays without running them."""

    recorded = replayed = 0
    recording = False
    ends_badly = False
    debug_mode = 0

    @contextmanager
    def record(self, graph, **options):
        self.recording = True
        try:
            yield
            self.recorded += 1
        finally:
            self.recording = False
            if self.ends_badly:
                raise RuntimeError("capture failed due to a previous error")

    def replay(self):
        self.replayed += 1

    def set_debug_mode(self, mode):
        self.debug_mode = mode


class Steps:
    """Step that notes the images it sees, and may fail while it is recorded, or wait."""

    def __init__(self, cuda, fails=False, waits=False):
        self.cuda, self.fails, self.waits = cuda, fails, waits
        self.seen, self.inputs = [], []

    def __call__(self, images, labels):
        self.inputs.append(images)
        if self.cuda.recording:
            if self.fails:
                raise RuntimeError("operation not permitted when stream is capturing\nat line 1")
            return
        self.seen.append(images[0].item())
        if self.waits and self.cuda.debug_mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def cuda(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: stand_in)
    monkeypatch.setattr(torch.cuda, "graph", stand_in.record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: stand_in.debug_mode)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", stand_in.set_debug_mode)
    return stand_in


def batch(number):
    return torch.full((2,), float(number)), torch.full((2,), number)


def test_it_is_recorded_once_and_then_replayed_on_new_images(cuda):
    step = Steps(cuda)
    graphed = GraphedStep(step)
    for number in range(EAGER + 4):
        graphed(*batch(number))
    assert step.seen == [0, 1, 2]
    assert (cuda.recorded, cuda.replayed) == (1, 4)
    assert all(images is step.inputs[0] for images in step.inputs)  # where a replay reads them
    assert step.inputs[0].tolist() == [EAGER + 3] * 2


def test_a_changed_step_is_recorded_anew(cuda):
    step = Steps(cuda)
    graphed = GraphedStep(step)
    for number in range(EAGER + 1):
        graphed(*batch(number))
    graphed.forget()
    for number in range(EAGER + 1):
        graphed(*batch(number))
    assert step.seen == [0, 1, 2] * 2
    assert (cuda.recorded, cuda.replayed) == (2, 2)


@pytest.mark.parametrize("ends_badly", [False, True])
def test_a_step_that_cannot_be_recorded_is_made_as_it_is(ends_badly, cuda):
    cuda.ends_badly = ends_badly
    step = Steps(cuda, fails=True)
    graphed = GraphedStep(step)
    for number in range(EAGER):
        graphed(*batch(number))
    with pytest.warns(UserWarning, match="could not be recorded as a CUDA graph") as warned:
        graphed(*batch(EAGER))
    assert str(warned[0].message).endswith(
        "RuntimeError: operation not permitted when stream is capturing"
    )
    graphed(*batch(EAGER + 1))
    assert step.seen == [0, 1, 2, 3, 4]
    assert cuda.replayed == 0


def test_a_step_that_waits_for_the_device_is_never_recorded(cuda):
    step = Steps(cuda, waits=True)
    graphed = GraphedStep(step)
    for number in range(EAGER - 1):
        graphed(*batch(number))
    with pytest.warns(UserWarning, match=r"not recorded as a CUDA graph.*test_graphs\.py, line"):
        graphed(*batch(EAGER - 1))
    graphed(*batch(EAGER))
    assert step.seen == [0, 1, 2, 3]
    assert (cuda.recorded, cuda.replayed, cuda.debug_mode) == (0, 0, 0)


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@NEEDS_CUDA
def test_on_a_device_it_trains_as_plain_steps_do():
    def trained(graph: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(8, 4).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(images, labels):
            optimizer.zero_grad(set_to_none=False)
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        run = GraphedStep(step) if graph else step
        for _ in range(8):
            run(torch.randn(16, 8).cuda(), torch.randint(4, (16,)).cuda())
        return model.weight.detach().cpu()

    assert torch.equal(trained(True), trained(False))


class Waiting(nn.Module):
    """Passes its input on, and reads a value of it in training, for which the host must wait."""

    def forward(self, x):
        assert not self.training or x.sum().item() == x.sum().item()
        return x


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def fitted(request, params, tiny_info, tiny_split):
    """Rows and weights of three epochs at 2/2, distilled; there are graphs on CUDA only."""
    device = torch.device(request.param)

    def batches(count, seed, size):
        return Batches(tiny_split(count, seed), tiny_info, batch_size=size, device=device)

    def fit(graphs, end):
        settings = params("activations", epochs=3, frozen_epochs=1, distillation=0.5)
        runtime = Runtime(device, mixed=False, graphs=graphs and device.type == "cuda")
        run = trainer_of(
            nn.Sequential(model_of("activations"), end),
            settings,
            TrainingData(batches(96, 0, 16), batches(30, 1, 30)),
            runtime,
            teacher=model_of("fp").to(device),
        )
        return run.fit().rows, {name: t.cpu() for name, t in run.model.state_dict().items()}

    return fit


def test_a_phase_with_recorded_steps_is_the_same_to_the_last_bit(fitted):
    (rows, state), (expected_rows, expected) = (fitted(g, nn.Identity()) for g in (True, False))
    assert rows == expected_rows
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


@pytest.mark.filterwarnings("ignore:the training step is not recorded")
def test_a_network_that_waits_and_drops_out_trains_as_without_graphs(fitted):
    ends = (nn.Sequential(Waiting(), nn.Dropout(0.1)) for _ in range(2))
    (rows, _), (expected, _) = (fitted(g, end) for g, end in zip((True, False), ends, strict=True))
    assert rows == expected
