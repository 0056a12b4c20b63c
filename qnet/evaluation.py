"""How good a network is: loss, top-1 and top-5, and which classes it confuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnet.data import BatchSource
from qnet.distributed import sum_over_processes
from qnet.errors import UserError
from qnet.runtime import Runtime

BatchProgress = Callable[[Iterable[Any]], Iterable[Any]]


class Scores:
    """Running sums of loss, top-1 and top-5, kept on the device until they are read."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        exact = torch.float32 if torch.device(device).type == "mps" else torch.float64
        # Loss, top-1, top-5, and the number of images.
        self.sums = torch.zeros(4, dtype=exact, device=device)

    def clear(self) -> None:
        """Begin again."""
        self.sums.zero_()

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count one batch: `logits` [B, classes], `labels` [B], mean `loss` of the batch []."""
        # Stable: of equal logits the first counts, as in argmax.
        order = logits.argsort(dim=1, descending=True, stable=True)
        best = order[:, :5] == labels[:, None]
        count = torch.full_like(self.sums[0], len(labels))
        batch = loss.detach() * count, best[:, 0].sum(), best.sum(), count
        self.sums += torch.stack([number.to(self.sums) for number in batch])

    def read(self, name: str = "training") -> dict[str, float]:
        """Mean `loss` in nats, `top1` and `top5` in percent, over the images of all processes.

        Args:
            name: of the split, for a message.

        Raises:
            UserError: there were none, as no image of the split could be read.
        """
        loss, top1, top5, count = sum_over_processes(self.sums.tolist())
        if count == 0:
            raise UserError(
                f"data.bad_images: no {name} image could be read, and there are no more than it "
                "allows; put back the files that the warnings name, or set it to 0 to stop at the "
                "first"
            )
        return {"loss": loss / count, "top1": 100 * (top1 / count), "top5": 100 * (top5 / count)}


def evaluate(model: nn.Module, batches: BatchSource, runtime: Runtime) -> dict[str, float]:
    """`loss`, `top1` and `top5` of `model` in eval mode on all of `batches`.

    Raises:
        UserError: none of their images could be read.
    """
    return evaluate_classes(model, batches, runtime)[0]


@torch.no_grad()
def evaluate_classes(
    model: nn.Module,
    batches: BatchSource,
    runtime: Runtime,
    progress: BatchProgress = lambda batches: batches,
) -> tuple[dict[str, float], Tensor, Tensor]:
    """What `evaluate` gives, and the class that `model` gives each image.

    Args:
        model: the network; left in eval mode.
        batches: the images.
        runtime: the device and its arithmetic.
        progress: wraps the batches, to draw a progress bar.

    Returns:
        The scores, and two int64 [N] on the CPU: the class of each image, and the one that the
        network gives it; with several processes, those of this process's images.

    Raises:
        UserError: none of the images could be read.
    """
    model.eval()
    scores = Scores(runtime.device)
    actual, predicted = [], []
    for images, labels in progress(batches.ordered()):
        with runtime.autocast():
            logits = model(images).float()
        scores.add(logits, labels, F.cross_entropy(logits, labels))
        actual.append(labels)
        predicted.append(logits.argmax(dim=1))
    return scores.read(batches.name), _joined(actual), _joined(predicted)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).cpu() if parts else torch.empty(0, dtype=torch.int64)
