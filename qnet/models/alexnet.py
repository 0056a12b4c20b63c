"""AlexNet for large and for small images.

Krizhevsky, *One weird trick for parallelizing convolutional neural networks*, 2014 (arXiv
1404.5997), as torchvision builds it: names and logits are torchvision's, so its pretrained weights
load. The small form is that of haoyz/quantization-networks-cifar10: 3×3 kernels, 2×2 pooling, less
dropout, and a classifier that sees 2×2 instead of 6×6 positions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, fx, nn


class AlexNet(nn.Module):
    """AlexNet for 224 pixels, or small for 32: [N, channels, H, W] -> logits [N, classes]."""

    def __init__(self, *, classes: int, channels: int = 3, small: bool = False) -> None:
        super().__init__()
        if small:
            conv1 = nn.Conv2d(channels, 64, 3, stride=2, padding=1)
            conv2 = nn.Conv2d(64, 192, 3, padding=1)
            pool, self.positions, dropout = 2, 2, 0.1
        else:
            conv1 = nn.Conv2d(channels, 64, 11, stride=4, padding=2)
            conv2 = nn.Conv2d(64, 192, 5, padding=2)
            pool, self.positions, dropout = 3, 6, 0.5
        self.features = nn.Sequential(
            conv1,
            nn.ReLU(inplace=True),
            nn.MaxPool2d(pool, stride=2),
            conv2,
            nn.ReLU(inplace=True),
            nn.MaxPool2d(pool, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(pool, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * self.positions**2, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images x [N, channels, H, W]."""
        x = _pooled(self.features(x), self.positions)
        return self.classifier(x.flatten(1))


@fx.wrap  # one operation when the network is traced
def _pooled(x: Tensor, positions: int) -> Tensor:
    """[N, C, H, W] -> [N, C, positions, positions]."""
    # At the intended image size there is nothing to pool, and the gradient of this pooling is one
    # of the few operations that are not deterministic on CUDA.
    if x.shape[-2:] == (positions, positions):
        return x
    return F.adaptive_avg_pool2d(x, positions)
