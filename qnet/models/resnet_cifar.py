"""Residual networks for small images: ResNet-20, 32, 44, 56, 110 and 1202.

He et al., *Deep Residual Learning for Image Recognition*, 2015 (arXiv 1512.03385), section 4.2:
three stages of 16, 32 and 64 channels, 6n + 2 layers, shortcuts without parameters ("option A").
Modules are named as in akamaster/pytorch_resnet_cifar10, so its published weights load.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
STAGE_CHANNELS = (16, 32, 64)


class PadShortcut(nn.Module):
    """Shortcut into a wider stage: every second pixel, and `padding` zero channels on each side.

    [N, C, H, W] -> [N, C + 2 * padding, ceil(H / 2), ceil(W / 2)]
    """

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad x [N, C, H, W]."""
        # Same as x[:, :, ::2, ::2], whose gradient would be NCHW and slow down earlier layers.
        half = F.avg_pool2d(x, kernel_size=1, stride=2)
        return F.pad(half, (0, 0, 0, 0, self.padding, self.padding))

    def extra_repr(self) -> str:
        """Show the padding in the printed model."""
        return f"padding={self.padding}"


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut around them; stride 2 begins a stage."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = PadShortcut((outputs - inputs) // 2) if stride == 2 else nn.Identity()
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of `depth` = 6n + 2 layers: [N, channels, H, W] -> logits [N, classes].

    Raises:
        ValueError: the depth is not 6n + 2.
    """

    def __init__(self, depth: int, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth: {depth} is not 6n + 2")
        width1, width2, width3 = STAGE_CHANNELS
        self.conv1 = nn.Conv2d(channels, width1, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width1)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width1, width1, blocks, stride=1)
        self.layer2 = _stage(width1, width2, blocks, stride=2)
        self.layer3 = _stage(width2, width3, blocks, stride=2)
        self.linear = nn.Linear(width3, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images x [N, channels, H, W]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.linear(x)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
