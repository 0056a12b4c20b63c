"""A network small enough to train in a test, and data for it; `model.name: tests.tiny:network`."""

import torch
from torch import nn

from qnet.data import DatasetInfo, Split

INFO = DatasetInfo(
    name="tiny",
    classes=("a", "b", "c"),
    size=8,
    channels=1,
    mean=(0.5,),
    std=(0.25,),
    counts={"train": 60, "validation": 30, "test": 30},
    flip=False,
)


def split(count: int, seed: int) -> Split:
    """`count` noise images on which a bright band marks the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 100, (count, 1, 8, 8), generator=generator)
    for label in range(3):
        images[labels == label, :, 2 * label + 1] += 120
    return Split(images.to(torch.uint8), labels)


def network(classes: int, channels: int, size: int) -> nn.Module:
    """Three convolutions and a linear layer, so that two layers are neither first nor last."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d((4, 1)),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
