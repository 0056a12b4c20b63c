"""SimpleNet, the smallest network of haoyz/quantization-networks-cifar10.

Three 5×5 convolutions of 32, 64 and 128 channels without padding, each with batch norm and ReLU,
the mean over all positions, and two linear layers with a sigmoid between them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SimpleNet(nn.Module):
    """SimpleNet: [N, channels, H, W] -> logits [N, classes], with H and W at least 13 pixels."""

    def __init__(self, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 5)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 64, 5)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(64, 128, 5)
        self.bn3 = nn.BatchNorm2d(128)
        self.relu3 = nn.ReLU(inplace=True)
        self.fc1 = nn.Linear(128, 1024)
        self.sigmoid = nn.Sigmoid()
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images x [N, channels, H, W]."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc2(self.sigmoid(self.fc1(x)))
