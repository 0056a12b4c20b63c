"""What training minimises: cross entropy, mixed with the divergence from a teacher.

Hinton et al., *Distilling the Knowledge in a Neural Network* (2015), section 2, equations 1 to 4:
with logits z of the network and v of the teacher, a share s and a temperature θ

    (1 - s) CE(z, labels) + s θ² KL(softmax(v / θ) || softmax(z / θ))

means over the batch. θ² keeps the gradient of the second term at the size of the first's.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from qnet.params import TrainingParams


def distils(params: TrainingParams) -> bool:
    """Whether `training_loss` needs a teacher."""
    return params.distillation > 0


def training_loss(
    logits: Tensor, labels: Tensor, params: TrainingParams, teacher_logits: Tensor | None
) -> Tensor:
    """The loss, 0-dim, in the type of the logits.

    Args:
        logits: [N, classes], float32.
        labels: [N], int64.
        params: `label_smoothing` of the cross entropy, `distillation` and its temperature.
        teacher_logits: as `logits`; None: cross entropy alone.
    """
    loss = F.cross_entropy(logits, labels, label_smoothing=params.label_smoothing)
    if teacher_logits is None:
        return loss
    share, softness = params.distillation, params.distillation_temperature
    divergence = F.kl_div(
        F.log_softmax(logits / softness, dim=1),
        F.log_softmax(teacher_logits / softness, dim=1),
        log_target=True,
        reduction="batchmean",
    )
    return (1 - share) * loss + share * softness**2 * divergence
