"""Set to train like the original, the library follows it through two hundred steps.

The oracle is the algorithm of Yang et al., "Quantization Networks", CVPR 2019, and its published
code, written from the formulas: save the weight, overwrite it with the quantized one, let autograd
find dL/dQ as in any network, restore the weight, turn dL/dQ into the gradients of w, alpha and beta
by hand, and step three optimizers. It is compared with the library in normal use: quantizers
inserted into a network, and `Trainer.fit` with its schedules, clipping and scoring between epochs.

Where the two differ on purpose, and how that is handled here:

- Clipping at norm 5 is in both and never acts, which the oracle asserts: the original clips dL/dQ,
  the library the gradients of everything trained, including the alpha and beta of weights.
- The original clamps the argument of σ to ±10; the library only where σ has rounded to 0 or 1. The
  oracle omits the clamp, and a separate test shows its effect at these temperatures.
- The original decays everything except the alpha and beta of weights; the library, and so the
  oracle, only matrices and kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnet.insertion import insert_quantizers
from qnet.levels import LevelSet
from qnet.params import TemperatureParams
from qnet.quantizer import Quantizer
from qnet.training import TrainingData
from tests.trainers import trainer_of

EPOCHS, STEPS, BATCH = 10, 20, 16  # steps per epoch, images per batch
HOTTER = 5.0  # increase of T per epoch
LR, MOMENTUM, DECAY, CLIP = 1e-3, 0.9, 1e-4, 5.0  # the paper's; a rate of 0.05 is chaotic here
NORMS, RELUS, QUANTIZED = ("1", "4"), ("2", "5", "7"), ("3", "6")


def network(dtype: torch.dtype) -> nn.Sequential:
    """Network without batch norm after quantized layer 2: before one, alpha has no gradient."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d((4, 1)),
        nn.Flatten(),
        nn.Linear(32, 3),
    ).to(dtype)


class FixedBatches:
    """The same batches in the same order in every epoch; a bright band marks the class."""

    name = "fixed"

    def __init__(self, dtype: torch.dtype) -> None:
        count = BATCH * STEPS
        labels = torch.arange(count) % 3
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64)
        for label in range(3):
            images[labels == label, :, 2 * label + 1] += 2.0
        batches = zip(images.to(dtype).split(BATCH), labels.split(BATCH), strict=True)
        self.batches = list(batches)
        self.batch_size = BATCH

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches[:1])


# --- The formulas, one level at a time ----------------------------------------------------------


@dataclass(frozen=True)
class Staircase:
    """Levels, unevenly spaced thresholds, and the clamp of σ's argument."""

    values: tuple[int, ...]
    thresholds: tuple[float, ...]
    clamp: float = float("inf")

    def parts(self, u: Tensor, temperature: float) -> Iterator[tuple[int, Tensor]]:
        """Each s_i with its σ_i = σ(T (u - b_i))."""
        for i, threshold in enumerate(self.thresholds):
            z = (temperature * (u - threshold)).clamp(-self.clamp, self.clamp)
            yield self.values[i + 1] - self.values[i], 1 / (1 + torch.exp(-z))

    def soft(self, u: Tensor, temperature: float) -> Tensor:
        """Σ s_i σ_i - o, where -o is the lowest level."""
        total = torch.full_like(u, self.values[0])
        for step, sigma in self.parts(u, temperature):
            total = total + step * sigma
        return total

    def hard(self, u: Tensor) -> Tensor:
        """Σ s_i [u > b_i] - o"""
        total = torch.full_like(u, self.values[0])
        for i, threshold in enumerate(self.thresholds):
            total[u > threshold] = self.values[i + 1]
        return total

    def window(self, u: Tensor, temperature: float) -> Tensor:
        """T Σ s_i σ_i (1 - σ_i)"""
        total = torch.zeros_like(u)
        for step, sigma in self.parts(u, temperature):
            total = total + step * sigma * (1 - sigma)
        return temperature * total


BINARY = Staircase((-1, 1), (0.07,))
TERNARY = Staircase((-1, 0, 1), (-0.45, 0.52))
SHIFTS = Staircase((-4, -2, -1, 0, 1, 2, 4), (-2.8, -1.6, -0.5, 0.45, 1.4, 3.1))
TWO_BITS = Staircase((0, 1, 2, 3), (0.45, 1.6, 2.4))


@dataclass(frozen=True)
class Case:
    """What is quantized, and how it is trained.

    `hard_weights` is the original's last phase: the weights are hard and still learn through the
    soft function's gradient; their alpha and beta, and the affine parameters of batch norm, do not.
    """

    weights: Staircase | None = None
    activations: Staircase | None = None
    backward_temperature: float | Literal["exact"] = "exact"  # of activations
    hard_weights: bool = False


@dataclass(frozen=True)
class Trajectory:
    """Losses and final state of a run."""

    losses: Tensor  # [EPOCHS · STEPS]
    state: dict[str, Tensor]  # the whole network, with alpha and beta under the library's names


def start_of_beta(weight: Tensor, staircase: Staircase) -> float:
    """Initial beta, 5p / 4q; alpha starts at its inverse."""
    return 5 * staircase.values[-1] / (4 * weight.abs().max().item())


START_OF_ACTIVATION_BETA = 1.2


# --- The original -------------------------------------------------------------------------------


class SoftActivation(torch.autograd.Function):
    """alpha (Σ s_i σ(T (beta x - b_i)) - o) with its gradients written by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor, site: TextbookReLU) -> Tensor:
        ctx.site = site
        ctx.save_for_backward(x, alpha, beta)
        return alpha * site.staircase.soft(beta * x, site.temperature)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, beta = ctx.saved_tensors
        staircase, temperature = ctx.site.staircase, ctx.site.temperature
        own = ctx.site.backward_temperature
        window = staircase.window(beta * x, temperature if own == "exact" else own)
        grad_alpha = (grad * staircase.soft(beta * x, temperature)).sum()
        return grad * alpha * beta * window, grad_alpha, (grad * alpha * x * window).sum(), None


class TextbookReLU(nn.Module):
    """ReLU, then the soft function."""

    temperature: float

    def __init__(
        self, staircase: Staircase, backward_temperature: float | Literal["exact"]
    ) -> None:
        super().__init__()
        self.staircase, self.backward_temperature = staircase, backward_temperature
        beta = torch.tensor(START_OF_ACTIVATION_BETA, dtype=torch.float64)
        self.alpha, self.beta = nn.Parameter(1 / beta), nn.Parameter(beta)

    def forward(self, x: Tensor) -> Tensor:
        return SoftActivation.apply(x.relu(), self.alpha, self.beta, self)


@lru_cache
def original(case: Case, dtype: torch.dtype) -> Trajectory:
    model = network(dtype)
    sites = {}
    if case.activations is not None:
        for name in RELUS:
            sites[name] = TextbookReLU(case.activations, case.backward_temperature).to(dtype)
            model[int(name)] = sites[name]
    weights, alphas, betas = {}, {}, {}
    if case.weights is not None:
        for name in QUANTIZED:
            weights[name] = w = model[int(name)].weight
            betas[name] = torch.tensor(start_of_beta(w, case.weights), dtype=dtype)
            alphas[name] = 1 / betas[name]
    if case.hard_weights:
        for name in NORMS:
            model[int(name)].requires_grad_(False)

    own = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in own if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in own if p.ndim <= 1]},
    ]
    optimizers = [torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)]
    if weights and not case.hard_weights:
        for scales in (alphas, betas):
            optimizers.append(torch.optim.SGD(scales.values(), lr=LR, momentum=MOMENTUM))

    losses = []
    for epoch in range(EPOCHS):
        T = HOTTER * (epoch + 1)
        for site in sites.values():
            site.temperature = T
        for images, labels in FixedBatches(dtype).batches:
            saved = {name: w.data.clone() for name, w in weights.items()}
            for name, w in weights.items():
                u = betas[name] * saved[name]
                level = case.weights.hard(u) if case.hard_weights else case.weights.soft(u, T)
                w.data.copy_(alphas[name] * level)

            loss = F.cross_entropy(model(images), labels)
            losses.append(loss.detach())
            optimizers[0].zero_grad()
            loss.backward()
            assert nn.utils.clip_grad_norm_(model.parameters(), CLIP) < CLIP, "clipping acts"

            for name, w in weights.items():
                w.data.copy_(saved[name])
                alpha, beta, dl_dq = alphas[name], betas[name], w.grad
                u = beta * saved[name]
                window = case.weights.window(u, T)
                w.grad = dl_dq * alpha * beta * window
                alpha.grad = (dl_dq * case.weights.soft(u, T)).sum()
                beta.grad = (dl_dq * alpha * saved[name] * window).sum()
            for optimizer in optimizers:
                optimizer.step()

    state = {k: v for k, v in model.state_dict().items() if k.split(".")[0] not in sites}
    for name in weights:
        state[f"{name}.weight_quantizer.alpha"] = alphas[name]
        state[f"{name}.weight_quantizer.beta"] = betas[name]
    for name, site in sites.items():
        state[f"{name}.output_quantizer.alpha"] = site.alpha.detach()
        state[f"{name}.output_quantizer.beta"] = site.beta.detach()
    return Trajectory(torch.stack(losses), state)


# --- The library --------------------------------------------------------------------------------


def quantizer(staircase: Staircase, beta: float, dtype: torch.dtype, **options: Any) -> Quantizer:
    """Quantizer with another temperature than the schedule's, which must set it."""
    scale = torch.tensor(beta, dtype=dtype)
    return Quantizer(
        LevelSet("tested", staircase.values),
        thresholds=torch.tensor(staircase.thresholds, dtype=dtype),
        alpha=1 / scale,
        beta=scale,
        temperature=77.0,
        **options,
    )


@pytest.fixture
def sections(weights_params: Any, activations_params: Any) -> tuple[Any, Any]:
    """Two functions that make a section of params.yaml with given values changed."""
    return weights_params, activations_params


def library(case: Case, dtype: torch.dtype, sections: tuple[Any, Any]) -> Trajectory:
    """Network and losses after training by the library."""
    model = network(dtype)
    weights, activations = {}, {}
    if case.weights is not None:
        for name in QUANTIZED:
            beta = start_of_beta(model[int(name)].weight, case.weights)
            mode = "hard" if case.hard_weights else "soft"
            weights[name] = quantizer(
                case.weights, beta, dtype, forward_mode=mode, backward_temperature="exact"
            )
    if case.activations is not None:
        for name in RELUS:
            activations[name] = quantizer(
                case.activations,
                START_OF_ACTIVATION_BETA,
                dtype,
                forward_mode="soft",
                backward_temperature=case.backward_temperature,
            )
    insert_quantizers(model, weights=weights, activations=activations)

    batches = FixedBatches(dtype)
    losses: list[Tensor] = []

    def record(module: nn.Module, _: Any, logits: Tensor) -> None:
        if module.training:
            labels = batches.batches[len(losses) % STEPS][1]
            losses.append(F.cross_entropy(logits.detach(), labels))

    model.register_forward_hook(record)
    params = sections[case.hard_weights](
        epochs=EPOCHS, optimizer="sgd", lr=LR, momentum=MOMENTUM, nesterov=False,
        weight_decay=DECAY, schedule="constant", warmup_epochs=0, clip_norm=CLIP,
        temperature=TemperatureParams(per_epoch=HOTTER, end="none", cap=2000.0),
        scale_lr=1.0, distillation=0.0, label_smoothing=0.0, select_on="last",
        freeze_bn_affine=case.hard_weights, freeze_bn_stats=False, bn_images=0,
    )  # fmt: skip
    trainer_of(model, params, TrainingData(batches, batches)).fit()
    return Trajectory(torch.stack(losses), model.state_dict())


# --- Comparison ---------------------------------------------------------------------------------

CASES = {
    "1/32": Case(BINARY),
    "2/32": Case(TERNARY),
    "3pm4/32": Case(SHIFTS),
    "32/2": Case(activations=TWO_BITS),
    "1/2": Case(BINARY, TWO_BITS, backward_temperature=1.0, hard_weights=True),
}


def assert_same(actual: Trajectory, expected: Trajectory, losses: float, state: float) -> None:
    """Assert equality within these absolute and relative tolerances, whatever the type."""
    torch.testing.assert_close(
        actual.losses, expected.losses, rtol=losses, atol=losses, check_dtype=False
    )
    for name, tensor in expected.state.items():
        torch.testing.assert_close(
            actual.state[name], tensor, rtol=state, atol=state, check_dtype=False,
            msg=lambda message, name=name: f"{name}: {message}",
        )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_in_float64_the_library_is_the_original(name, sections, monkeypatch):
    expected = original(CASES[name], torch.float64)
    assert expected.losses[-STEPS:].mean() < expected.losses[:STEPS].mean() / 2  # it learns
    # The trainer rounds the logits to float32, whatever the network's type; it must not do so here.
    monkeypatch.setattr(Tensor, "float", lambda tensor: tensor)
    actual = library(CASES[name], torch.float64, sections)
    assert_same(actual, expected, losses=1e-9, state=1e-9)


@pytest.mark.parametrize("name", ["1/32", "2/32", "3pm4/32", "32/2"])
def test_in_float32_the_library_is_the_original_but_for_rounding(name, sections):
    expected = original(CASES[name], torch.float64)
    # The oracle in float32 is as far from itself in float64 as the library is: for 32/2 at the end,
    # where each step magnifies the last one's rounding, 6e-5 in the loss and 4e-4 in a weight.
    actual = library(CASES[name], torch.float32, sections)
    assert_same(actual, expected, losses=1e-3, state=1e-2)


@pytest.mark.parametrize("name", ["2/32", "32/2"])
def test_the_clamp_of_the_original_matters_little_here(name):
    case = CASES[name]
    clamped = replace(
        case,
        weights=case.weights and replace(case.weights, clamp=10.0),
        activations=case.activations and replace(case.activations, clamp=10.0),
    )
    without, with_clamp = original(case, torch.float64), original(clamped, torch.float64)
    difference = (without.losses - with_clamp.losses).abs().max()
    assert 1e-6 < difference < 0.01
