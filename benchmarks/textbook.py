"""Baseline to compare with: a plain version of the published code's training step.

Every level of a staircase takes a few operations of its own, whose results autograd keeps. A
quantized weight is saved, overwritten with its quantized values, used, and restored; its gradient,
and those of its alpha and beta, are then computed by hand. Activations are quantized after every
ReLU. Images are decoded, cropped and mirrored one by one by worker processes. All of it is in
float32 and in PyTorch's default memory format.

While activations are trained, the weights are hard and learn through the soft function's gradient;
before that, they are soft (Yang et al., CVPR 2019, and its code). Their alpha and beta learn in
both phases; in this project they are fixed while activations are trained
(activations.weight_scales).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from qnet import Clusters
from qnet.data import Batch

TEMPERATURE = 5.0  # of the first epoch
LR, MOMENTUM, DECAY, CLIP = 0.01, 0.9, 1e-4, 5.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Staircase:
    """Thresholds b_i, step heights s_i and the offset o."""

    thresholds: tuple[float, ...]
    steps: tuple[int, ...]
    offset: float

    @classmethod
    def of(cls, clusters: Clusters) -> Staircase:
        """Staircase of a clustering."""
        levels = clusters.levels
        return cls(tuple(clusters.thresholds), tuple(levels.steps), levels.offset)

    def soft(self, u: Tensor, temperature: float) -> Tensor:
        """Σ s_i σ(T (u - b_i)) - o"""
        total = torch.zeros_like(u)
        for step, threshold in zip(self.steps, self.thresholds, strict=True):
            total = total + step * torch.sigmoid(temperature * (u - threshold))
        return total - self.offset

    def hard(self, u: Tensor) -> Tensor:
        """Σ s_i [u > b_i] - o"""
        total = torch.zeros_like(u)
        for step, threshold in zip(self.steps, self.thresholds, strict=True):
            total = total + step * (u > threshold).float()
        return total - self.offset

    def window(self, u: Tensor, temperature: float) -> Tensor:
        """T Σ s_i σ_i (1 - σ_i)"""
        total = torch.zeros_like(u)
        for step, threshold in zip(self.steps, self.thresholds, strict=True):
            sigma = torch.sigmoid(temperature * (u - threshold))
            total = total + step * sigma * (1 - sigma)
        return temperature * total


class SoftQuantizer(nn.Module):
    """alpha (Σ s_i σ(T (beta x - b_i)) - o), differentiated by autograd."""

    def __init__(self, clusters: Clusters) -> None:
        super().__init__()
        self.staircase = Staircase.of(clusters)
        self.alpha = nn.Parameter(torch.tensor(clusters.alpha))
        self.beta = nn.Parameter(torch.tensor(clusters.beta))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize x, of any shape; the output has the same shape."""
        total = torch.zeros_like(x)
        stairs = self.staircase
        for step, threshold in zip(stairs.steps, stairs.thresholds, strict=True):
            total = total + step * torch.sigmoid(TEMPERATURE * (self.beta * x - threshold))
        return self.alpha * (total - stairs.offset)


class QuantizedWeights:
    """Weights that are quantized in place for a step, and their alpha and beta.

    Args:
        weights: each with the initial state of its quantizer.
        hard: whether they are quantized by the hard function.
    """

    def __init__(self, weights: Iterable[tuple[nn.Parameter, Clusters]], hard: bool) -> None:
        self.hard = hard
        self.weights, self.stairs, self.alphas, self.betas = [], [], [], []
        for weight, clusters in weights:
            self.weights.append(weight)
            self.stairs.append(Staircase.of(clusters))
            self.alphas.append(torch.tensor(clusters.alpha))
            self.betas.append(torch.tensor(clusters.beta))
        self.saved: list[Tensor] = []

    @torch.no_grad()
    def save_and_quantize(self) -> None:
        """Save and quantize the weights, before the forward pass."""
        self.saved = [weight.clone() for weight in self.weights]
        for weight, stairs, alpha, beta in zip(
            self.weights, self.stairs, self.alphas, self.betas, strict=True
        ):
            u = beta * weight
            weight.copy_(alpha * (stairs.hard(u) if self.hard else stairs.soft(u, TEMPERATURE)))

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the weights and compute their gradients, after the backward pass."""
        for weight, saved, stairs, alpha, beta in zip(
            self.weights, self.saved, self.stairs, self.alphas, self.betas, strict=True
        ):
            weight.copy_(saved)
            u, grad = beta * saved, weight.grad
            assert grad is not None
            window = stairs.window(u, TEMPERATURE)
            alpha.grad = (grad * stairs.soft(u, TEMPERATURE)).sum()
            beta.grad = (grad * alpha * saved * window).sum()
            weight.grad = grad * alpha * beta * window


class Training:
    """Network that is trained as in the published code.

    Args:
        model: in full precision; changed in place.
        weights: initial state of each weight quantizer, by layer.
        activations: initial state of each output quantizer, by ReLU.
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[str, Clusters], activations: Mapping[str, Clusters]
    ) -> None:
        self.model = model
        for name, clusters in activations.items():
            model.set_submodule(name, nn.Sequential(nn.ReLU(), SoftQuantizer(clusters)))
        self.weights = QuantizedWeights(
            [(model.get_parameter(f"{name}.weight"), found) for name, found in weights.items()],
            hard=bool(activations),
        )
        self.optimizers = [
            torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
        ]
        for scales in (self.weights.alphas, self.weights.betas):
            if scales:
                self.optimizers.append(torch.optim.SGD(scales, lr=LR, momentum=MOMENTUM))

    def train(self, batches: Iterable[Batch]) -> None:
        """Take one step for each batch."""
        self.model.train()
        loss_sum, correct = 0.0, 0
        for images, labels in batches:
            self.weights.save_and_quantize()
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
            loss_sum += loss.item()
            correct += int((logits.argmax(dim=1) == labels).sum())
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.weights.restore()
            for optimizer in self.optimizers:
                optimizer.step()


class Pictures(Dataset[Any]):
    """Images in memory, converted to PIL, cropped, mirrored and normalised on access.

    Args:
        images: uint8 [N, C, S, S], C = 3.
        labels: int64 [N].
        length: of the data set, which repeats the images.
    """

    def __init__(self, images: Tensor, labels: Tensor, length: int) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.length = length
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[2], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index %= len(self.labels)
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def loader(
    images: Tensor, labels: Tensor, batch: int, length: int, workers: int = 2
) -> DataLoader[Any]:
    """Loader of shuffled batches of `Pictures`, with workers that persist between epochs."""
    return DataLoader(
        Pictures(images, labels, length),
        batch,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
