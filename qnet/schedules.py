"""What changes while a network is trained: the learning rate and the temperature.

Both are functions of the time alone, so a resumed run needs no state for them.
"""

from __future__ import annotations

import math

from qnet.params import TrainingParams


def learning_rate(params: TrainingParams, time: float) -> float:
    """Learning rate at `time`, in epochs from the start (2.5: in the middle of the third).

    Linear warm-up to `lr`, then `constant`, `step` (times `decay_factor` at each of
    `decay_epochs`) or `cosine` (to zero at the end; Loshchilov & Hutter, ICLR 2017).
    """
    if time < params.warmup_epochs:
        return params.lr * time / params.warmup_epochs
    match params.schedule:
        case "constant":
            return params.lr
        case "step":
            passed = sum(time >= epoch for epoch in params.decay_epochs)
            return params.lr * params.decay_factor**passed
        case "cosine":
            share = (time - params.warmup_epochs) / (params.epochs - params.warmup_epochs)
            return params.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def temperature_at(params: TrainingParams, epoch: int) -> float | None:
    """Temperature T of the soft function in `epoch`, counted from 0; None if nothing is quantized.

    `T = per_epoch · (epoch + 1)`, as published; with `end`, equal steps that reach it in the last
    epoch, whatever the number of epochs. Never above `cap`.
    """
    section = params.temperature
    if section is None:
        return None
    per_epoch = section.per_epoch if section.end == "none" else float(section.end) / params.epochs
    return min(per_epoch * (epoch + 1), section.cap)
