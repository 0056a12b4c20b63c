"""With the original's semantics chosen, two hundred steps of training follow the original algorithm.

The oracle is the algorithm of Yang et al., "Quantization Networks", CVPR 2019, and of its published
code, written from the formulas: save the weight, overwrite it by the quantized one, let autograd
find dL/dQ as in any network, restore the weight, turn dL/dQ into the gradients of w, alpha and beta
by hand, and step three optimizers. Against it stands the library as it is used: quantizers inserted
into a network, and `Trainer.fit` with its schedules, its clipping and its scoring between epochs.

Where the two differ on purpose, and what is done about it here:

- Clipping at norm 5 is in both, and never acts: the original clips dL/dQ and what does not belong
  to a weight's quantizer, the library the gradients of everything that is trained.
- The original clamps the argument of σ to ±10, which the library does not. The oracle leaves the
  clamp out; a test of its own puts it in and shows how much it matters at these temperatures.
- The original decays every parameter but the alpha and beta of weights, the library only matrices
  and kernels; the oracle decays those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnet.layers import insert_quantizers
from qnet.levels import LevelSet
from qnet.quantizer import Quantizer
from qnet.runtime import Runtime
from qnet.training import Trainer, TrainingData
from tests.tiny import network

EPOCHS, STEPS = 10, 20  # of each epoch
HOTTER, LR, MOMENTUM, DECAY, CLIP = 5.0, 0.05, 0.9, 1e-4, 5.0
NORMS = []
LAYERS = ("3", "6")  # neither first nor last
RELUS = ("2", "5", "8")


# --- The formulas, one level at a time ----------------------------------------------------------


@dataclass(frozen=True)
class Stairs:
    """Levels, thresholds that no arithmetic progression gives, and the clamp of σ's argument."""

    values: Sequence[int]
    thresholds: Sequence[float]
    clamp: float = float("inf")

    def sigmoids(self, u: Tensor, temperature: float) -> Iterator[tuple[int, Tensor]]:
        """Each s_i with its σ_i = σ(T (u - b_i))."""
        for i, threshold in enumerate(self.thresholds):
            z = (temperature * (u - threshold)).clamp(-self.clamp, self.clamp)
            yield self.values[i + 1] - self.values[i], 1 / (1 + torch.exp(-z))

    def soft(self, u: Tensor, temperature: float) -> Tensor:
        """Σ s_i σ_i - o"""
        return sum(s * sigma for s, sigma in self.sigmoids(u, temperature)) + self.values[0]

    def hard(self, u: Tensor) -> Tensor:
        """Σ s_i [u > b_i] - o"""
        total = torch.full_like(u, self.values[0])
        for i, threshold in enumerate(self.thresholds):
            total[u > threshold] = self.values[i + 1]
        return total

    def window(self, u: Tensor, temperature: float) -> Tensor:
        """T Σ s_i σ_i (1 - σ_i)"""
        return temperature * sum(
            s * sigma * (1 - sigma) for s, sigma in self.sigmoids(u, temperature)
        )


BINARY = Stairs((-1, 1), (0.07,))
TERNARY = Stairs((-1, 0, 1), (-0.45, 0.52))
SHIFTS = Stairs((-4, -2, -1, 0, 1, 2, 4), (-2.8, -1.6, -0.5, 0.45, 1.4, 3.1))
TWO_BITS = Stairs((0, 1, 2, 3), (0.45, 1.6, 2.4))


class SoftActivation(torch.autograd.Function):
    """alpha (Σ s_i σ(T (beta x - b_i)) - o) with its gradients written by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor, site: TextbookReLU) -> Tensor:
        ctx.site, ctx.temperature = site, site.temperature
        ctx.save_for_backward(x, alpha, beta)
        return alpha * site.stairs.soft(beta * x, site.temperature)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, beta = ctx.saved_tensors
        stairs, temperature = ctx.site.stairs, ctx.temperature
        window = stairs.window(beta * x, ctx.site.backward_temperature or temperature)
        grad_alpha = (grad * stairs.soft(beta * x, temperature)).sum()
        return grad * alpha * beta * window, grad_alpha, (grad * alpha * x * window).sum(), None


class TextbookReLU(nn.Module):
    """ReLU, then the soft function; one alpha and beta for each site."""

    temperature: float

    def __init__(self, stairs: Stairs, start: float, backward_temperature: float | None) -> None:
        super().__init__()
        self.stairs, self.backward_temperature = stairs, backward_temperature
        self.alpha = nn.Parameter(torch.tensor(1 / start, dtype=torch.float64))
        self.beta = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return SoftActivation.apply(x.relu(), self.alpha, self.beta, self)


# --- The cases ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is quantized, and how it is trained.

    `frozen` is the original's last phase: hard weights whose window still follows the temperature,
    their alpha and beta and the affine parameters of batch norm as they are.
    """

    weights: Stairs | None = None
    activations: Stairs | None = None
    backward_temperature: float | None = None  # of activations; None: T
    frozen: bool = False


CASES = {
    "1/32": Case(BINARY),
    "2/32": Case(TERNARY),
    "3pm4/32": Case(SHIFTS),
    "32/2": Case(activations=TWO_BITS),
    "32/2 as coded": Case(activations=TWO_BITS, backward_temperature=1.0),
    "1/2": Case(BINARY, TWO_BITS, backward_temperature=1.0, frozen=True),
}


@dataclass
class Trajectory:
    """What a run went through and where it ended."""

    logits: Tensor  # [EPOCHS · STEPS, 16, 3]
    losses: Tensor  # [EPOCHS · STEPS]
    state: dict[str, Tensor]  # the network's parameters and buffers, and each alpha and beta


class FixedBatches:
    """The same batches in the same order in every epoch; a bright band tells the class."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(1)
        labels = torch.arange(16 * STEPS) % 3
        images = torch.randn(16 * STEPS, 1, 8, 8, generator=generator, dtype=torch.float64)
        for label in range(3):
            images[labels == label, :, 2 * label + 1] += 1.0
        self.batches = list(zip(images.to(dtype).split(16), labels.split(16), strict=True))

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches[:1])


def plain_network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    model = network(3, 1, 8).to(dtype)
    assert isinstance(model, nn.Sequential)
    model[7] = nn.Identity()  # before a batch norm no alpha has a gradient
    model[9] = nn.AdaptiveAvgPool2d((4, 1))  # the maximum of equal levels is a matter of rounding
    return model


def start_of(weight: Tensor, stairs: Stairs) -> float:
    """beta = 5p / 4q; alpha is its inverse."""
    return 5 * stairs.values[-1] / (4 * weight.abs().max().item())


# --- The original -------------------------------------------------------------------------------


def original(case: Case, dtype: torch.dtype) -> Trajectory:
    model = plain_network(dtype)
    modules = dict(model.named_modules())
    sites: dict[str, TextbookReLU] = {}
    if case.activations is not None:
        for name in RELUS:
            site = TextbookReLU(case.activations, 1.2, case.backward_temperature).to(dtype)
            model[int(name)] = sites[name] = site
    stairs = case.weights
    weights = {n: modules[n].weight for n in LAYERS} if stairs is not None else {}
    alphas, betas = {}, {}
    for name, w in weights.items():
        betas[name] = torch.tensor(start_of(w, stairs), dtype=dtype, requires_grad=True)
        alphas[name] = (1 / betas[name]).detach().requires_grad_()
    if case.frozen:
        for name in ("1", "4"):
            modules[name].requires_grad_(False)

    own = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in own if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in own if p.ndim <= 1]},
    ]
    optimizers = [torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)]
    if weights and not case.frozen:
        optimizers += [
            torch.optim.SGD(scales.values(), lr=LR, momentum=MOMENTUM) for scales in (alphas, betas)
        ]

    logits, losses = [], []
    model.train()
    for epoch in range(EPOCHS):
        T = HOTTER * (epoch + 1)
        for site in sites.values():
            site.temperature = T
        for images, labels in FixedBatches(dtype).batches:
            saved = {name: w.detach().clone() for name, w in weights.items()}
            for name, w in weights.items():
                alpha, beta = alphas[name].detach(), betas[name].detach()
                u = beta * saved[name]
                w.data = alpha * (stairs.hard(u) if case.frozen else stairs.soft(u, T))

            output = model(images)
            loss = F.cross_entropy(output, labels)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            NORMS.append(norm.item())

            for name, w in weights.items():
                w.data = saved[name]
                alpha, beta = alphas[name].detach(), betas[name].detach()
                u, dl_dq = beta * w.data, w.grad
                window = stairs.window(u, T)
                w.grad = dl_dq * alpha * beta * window
                alphas[name].grad = (dl_dq * stairs.soft(u, T)).sum()
                betas[name].grad = (dl_dq * alpha * w.data * window).sum()
            for optimizer in optimizers:
                optimizer.step()
            logits.append(output.detach())
            losses.append(loss.detach())

    state = {k: v for k, v in model.state_dict().items() if k.split(".")[0] not in sites}
    for name in weights:
        state[f"{name}.weight_quantizer.alpha"] = alphas[name].detach()
        state[f"{name}.weight_quantizer.beta"] = betas[name].detach()
    for name, site in sites.items():
        state[f"{name}.output_quantizer.alpha"] = site.alpha.detach()
        state[f"{name}.output_quantizer.beta"] = site.beta.detach()
    return Trajectory(torch.stack(logits), torch.stack(losses), state)


# --- The library --------------------------------------------------------------------------------


def quantizer(stairs: Stairs, start: float, dtype: torch.dtype, **options: Any) -> Quantizer:
    """Its first temperature is wrong: the schedule has to set it."""
    beta = torch.tensor(start, dtype=dtype)
    thresholds = torch.tensor(stairs.thresholds, dtype=dtype)
    levels = LevelSet("of the test", tuple(stairs.values))
    return Quantizer(
        levels, thresholds=thresholds, alpha=1 / beta, beta=beta, temperature=77.0, **options
    )


def library(case: Case, dtype: torch.dtype, params: Any) -> Trajectory:
    model = plain_network(dtype)
    weights, activations = {}, {}
    if case.weights is not None:
        for name in LAYERS:
            weight_start = start_of(model[int(name)].weight, case.weights)
            weights[name] = quantizer(
                case.weights,
                weight_start,
                dtype,
                forward_mode="hard" if case.frozen else "soft",
                backward_temperature=None,
            )
            if case.frozen:
                weights[name].requires_grad_(False)
    if case.activations is not None:
        for name in RELUS:
            activations[name] = quantizer(
                case.activations,
                1.2,
                dtype,
                forward_mode="soft",
                backward_temperature=case.backward_temperature,
            )
    insert_quantizers(model, weights=weights, activations=activations)

    logits: list[Tensor] = []
    model.register_forward_hook(
        lambda module, _, output: logits.append(output.detach()) if module.training else None
    )
    batches = FixedBatches(dtype)
    trainer = Trainer(
        model,
        params(
            epochs=EPOCHS, optimizer="sgd", lr=LR, momentum=MOMENTUM, nesterov=False,
            weight_decay=DECAY, schedule="constant", warmup_epochs=0, clip_norm=CLIP,
            scale_lr=1.0, distillation=0.0, label_smoothing=0.0, select_on="last",
            freeze_bn_affine=case.frozen, freeze_bn_stats=False,
        ),
        TrainingData(batches, batches),
        Runtime(torch.device("cpu"), mixed=False),
        phase="x", seed=0, annealed=[*weights.values(), *activations.values()],
    )  # fmt: skip
    history = trainer.fit()

    labels = [labels for _ in range(EPOCHS) for _, labels in batches.batches]
    losses = torch.stack([F.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True)])
    reported = torch.tensor([row["train_loss"] for row in history.rows], dtype=dtype)
    torch.testing.assert_close(reported, losses.view(EPOCHS, STEPS).mean(1))
    return Trajectory(torch.stack(logits), losses, model.state_dict())
