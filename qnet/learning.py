"""Which parts of a network learn and which are frozen in a phase, epoch by epoch.

Yang et al., *Quantization Networks*, CVPR 2019, quantize activations with frozen weights
(phase 2) before both learn (phase 3); others freeze batch norm or the scales of quantizers.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qnet.errors import UserError
from qnet.layers import is_quantizable, quantized_weights
from qnet.params import ActivationsParams, QuantizedTrainingParams, TrainingParams
from qnet.quantizer import Quantizer, quantizers


class Learning:
    """Freeze and unfreeze the parts of `model` as `params` ask.

    Args:
        model: with its quantizers; what never learns requires no gradient until `end`. While
            activations are trained, its quantized weights take the forward of `params.weights`.
        params: the section of params.yaml that the phase follows.

    Attributes:
        annealed: the quantizers whose T follows the schedule: all, except those of weights whose
            training beside activations does not use T. `validation_soft_top1` is with these soft.
        norms_learn: whether batch norm uses the statistics of the batches while training.
    """

    def __init__(self, model: nn.Module, params: TrainingParams) -> None:
        self.model = model
        self.before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self.batch_norms = _batch_norms(model)
        self.norms_learn = bool(self.batch_norms) and not params.freeze_bn_stats
        self.annealed: list[Quantizer] = []
        self.frozen_epochs = 0
        self.frozen_at_first: list[Tensor] = []  # weights and their scales
        self.hard_at_first: list[Quantizer] = []  # those of the weights
        # In full precision batch norm learns if the network's own code lets it.
        if isinstance(params, QuantizedTrainingParams):
            for norm in self.batch_norms:
                norm.requires_grad_(not params.freeze_bn_affine)
            self.annealed = [quantizer for _, quantizer in quantizers(model)]
            for quantizer in self.annealed:
                quantizer.requires_grad_(params.scale_lr > 0)
        if isinstance(params, ActivationsParams):
            self._treat_weights(params)

    def _treat_weights(self, params: ActivationsParams) -> None:
        """Freeze the weights, or let them learn beside the activations: the quantized ones or, if
        there are none, those of all convolutions and linear layers."""
        learn = params.weights != "frozen"
        quantized = list(quantized_weights(self.model))
        weights, of_weights = [w for _, w, _ in quantized], [q for *_, q in quantized]
        if not quantized:
            layers = filter(is_quantizable, self.model.modules())
            weights = [layer.get_parameter("weight") for layer in layers]
        for weight in weights:
            if quantized or not learn:  # else as the network's own code has it
                weight.requires_grad_(learn)
        for quantizer in of_weights:
            quantizer.forward_mode = "soft" if params.weights == "soft" else "hard"
            quantizer.requires_grad_(learn and params.weight_scales and params.scale_lr > 0)
            exact = learn and quantizer.backward_temperature == "exact"
            if not (exact or params.weights == "soft"):
                self.annealed.remove(quantizer)
        if params.frozen_epochs > 0:
            scales = [p for quantizer in of_weights for p in quantizer.parameters()]
            self.frozen_epochs = params.frozen_epochs
            self.frozen_at_first = [p for p in (*weights, *scales) if p.requires_grad]
            self.hard_at_first = of_weights

    def learns_at_first(self) -> bool:
        """Whether any parameter learns in the first epoch."""
        frozen = set(self.frozen_at_first)
        return any(p.requires_grad and p not in frozen for p in self.model.parameters())

    def begin(self, epoch: int) -> bool:
        """Put the model in train mode and freeze or unfreeze its parts as `epoch`, from 0, asks.

        Returns:
            Whether the set of parameters that learn has changed.
        """
        self.model.train()
        learn = epoch >= self.frozen_epochs
        for quantizer in self.hard_at_first:
            quantizer.train(learn)  # in eval mode its forward is hard
        for parameter in self.frozen_at_first:
            parameter.requires_grad_(learn)  # no gradient: the optimizer skips it
        if not self.norms_learn:
            for norm in self.batch_norms:
                norm.eval()
        return epoch > 0 and epoch == self.frozen_epochs

    def end(self) -> None:
        """Let each parameter learn or not, as it did before this phase."""
        for parameter, learns in self.before:
            parameter.requires_grad_(learns)


def check_batch_norm(model: nn.Module, params: TrainingParams, phase: str) -> None:
    """Raise a `UserError` if batch norm would see one image per batch."""
    if params.batch_size == 1 and not params.freeze_bn_stats and _batch_norms(model):
        raise UserError(
            f"{phase}.batch_size is 1; batch norm needs the statistics of more than one image: "
            "use at least 2"
        )


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
