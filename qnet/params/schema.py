"""Schema of params.yaml: sections, parameters, and constraints between them.

There are no defaults: params.yaml is complete, and a name missing there is an error. Units and
meanings are documented beside the values in params.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from qnet.clustering import Scale, Thresholds
from qnet.errors import UserError
from qnet.params.errors import explain
from qnet.params.types import (
    BackwardTemperature,
    Bits,
    Channels,
    Compile,
    Count,
    CountOrZero,
    Device,
    Epochs,
    Folder,
    InnerShare,
    Levels,
    Padding,
    Patterns,
    Positive,
    PositiveOrNone,
    PositiveOrZero,
    Pretrained,
    Processes,
    Seed,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    Size,
    Switch,
    SwitchOrAuto,
    Tail,
    Text,
    Threads,
    Workers,
)


class Section(BaseModel):
    """Group of parameters that is immutable and allows no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataParams(Section):
    """Data set, image format, and the share held out for validation."""

    name: Literal[
        "digits", "cifar10", "cifar100", "mnist", "fashion_mnist", "image_folder", "imagenet"
    ]
    root: Folder
    size: Size
    channels: Channels
    validation: InnerShare
    bad_images: CountOrZero


class AugmentParams(Section):
    """Augmentation of training images."""

    pad: Padding
    flip: SwitchOrAuto


class ModelParams(Section):
    """Network, its initial weights, and which of its layers are quantized."""

    name: Text
    pretrained: Pretrained
    keep: Patterns
    quantize: Patterns


class CommonTrainingParams(Section):
    """Parameters that every training stage has."""

    epochs: CountOrZero
    batch_size: Count
    optimizer: Literal["sgd", "adam"]
    lr: Positive
    momentum: ShareBelowOne
    nesterov: Switch
    weight_decay: PositiveOrZero
    schedule: Literal["cosine", "step", "constant"]
    decay_epochs: Epochs
    decay_factor: ShareAboveZero
    warmup_epochs: CountOrZero
    clip_norm: PositiveOrZero
    label_smoothing: ShareBelowOne
    select_on: Literal["validation", "last", "test"]

    @model_validator(mode="after")
    def _agrees(self) -> CommonTrainingParams:
        """Refuse values that are allowed on their own but not together."""
        if self.epochs == 0:  # the network is only evaluated
            return self
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError(
                "nesterov is true and momentum is 0; set nesterov to false, or momentum above 0"
            )
        if self.epochs <= self.warmup_epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}; it must be below epochs ({self.epochs})"
            )
        if self.schedule == "step":
            self._check_decay_epochs()
        return self

    def _check_decay_epochs(self) -> None:
        if not self.decay_epochs:
            raise ValueError(
                "decay_epochs is []; schedule step needs at least one epoch, such as [100, 150]"
            )
        if self.decay_epochs[0] < self.warmup_epochs:
            raise ValueError(
                f"decay_epochs starts with {self.decay_epochs[0]}; "
                f"it must be at least warmup_epochs ({self.warmup_epochs})"
            )
        if self.decay_epochs[-1] >= self.epochs:
            raise ValueError(
                f"decay_epochs ends with {self.decay_epochs[-1]}; "
                f"it must be below epochs ({self.epochs})"
            )


class FpParams(CommonTrainingParams):
    """Parameters for training the full-precision network.

    Of those of a quantized network it has what changes nothing, as constants: params.yaml may not
    contain them.
    """

    temperature: ClassVar[None] = None
    scale_lr: ClassVar[float] = 0.0
    distillation: ClassVar[float] = 0.0
    distillation_temperature: ClassVar[float] = 1.0
    freeze_bn_stats: ClassVar[bool] = False
    bn_images: ClassVar[int] = 0


class TemperatureParams(Section):
    """Temperature of the soft function over the epochs."""

    per_epoch: Positive
    end: PositiveOrNone
    cap: Positive

    @model_validator(mode="after")
    def _end_is_reached(self) -> TemperatureParams:
        """Refuse an end above the cap, which T would never reach."""
        if self.end != "none" and self.end > self.cap:
            raise ValueError(f"end is {self.end:g}; it must be at most cap ({self.cap:g})")
        return self


class QuantizedTrainingParams(CommonTrainingParams):
    """Further parameters for training a quantized network."""

    forward: Literal["hard", "soft"]
    backward_temperature: BackwardTemperature
    temperature: TemperatureParams
    scale_lr: PositiveOrZero
    distillation: Share
    distillation_temperature: Positive
    freeze_bn_affine: Switch
    freeze_bn_stats: Switch
    bn_images: CountOrZero


TrainingParams = FpParams | QuantizedTrainingParams
"""A section that a phase of training follows."""


class WeightsParams(QuantizedTrainingParams):
    """Parameters for training with quantized weights."""

    levels: Levels


class ActivationsParams(QuantizedTrainingParams):
    """Parameters for training with quantized weights and activations."""

    bits: Bits
    sites: Literal["input", "relu"]
    thresholds_from: Literal["fp", "weights"]
    weights: Literal["frozen", "hard", "soft"]
    frozen_epochs: CountOrZero
    weight_scales: Switch

    @model_validator(mode="after")
    def _frozen_epochs_fit(self) -> ActivationsParams:
        """Refuse more frozen epochs than epochs, or any if all epochs are frozen anyway."""
        if self.epochs == 0 or self.frozen_epochs == 0:
            return self
        if self.weights == "frozen":
            raise ValueError(
                f"frozen_epochs is {self.frozen_epochs} and weights is frozen, in all epochs; set "
                "frozen_epochs to 0, or weights to hard or soft, for the epochs after"
            )
        if self.frozen_epochs > self.epochs:
            raise ValueError(
                f"frozen_epochs is {self.frozen_epochs}; it must be at most epochs ({self.epochs})"
            )
        return self


class ClusteringParams(Section):
    """Initialisation of one kind of quantizer."""

    gamma: Tail
    thresholds: Thresholds
    scale: Scale
    shared: Switch


class ClusterParams(Section):
    """Initialisation of the quantizers of weights and activations."""

    images: Count
    weights: ClusteringParams
    activations: ClusteringParams


class RuntimeParams(Section):
    """Where and how fast to run; affects only the last digits of an experiment's results."""

    device: Device
    precision: Literal["auto", "float32", "bfloat16"]
    processes: Processes
    threads: Threads
    workers: Workers
    compile: Compile
    print_every: Count
    save_every: Count


class Params(Section):
    """The whole of params.yaml."""

    seed: Seed
    data: DataParams
    augment: AugmentParams
    model: ModelParams
    fp: FpParams
    cluster: ClusterParams
    weights: WeightsParams
    activations: ActivationsParams
    runtime: RuntimeParams


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check the parameters in the file `path`.

    Raises:
        UserError: the file cannot be read, or a parameter is unknown, missing or out of range.
    """
    from qnet.params.file import read_yaml  # PyYAML belongs to the pipeline, not to the library

    tree = read_yaml(path)
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Params, tree)}") from None
