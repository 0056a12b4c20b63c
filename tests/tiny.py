"""A network small enough to train in a test; `model.name: tests.tiny:network`."""

from torch import nn


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
