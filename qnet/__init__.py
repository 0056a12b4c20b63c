"""Quantization Networks (Yang et al., CVPR 2019): low-bit networks for PyTorch."""

from qnet.calibration import activation_histograms
from qnet.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from qnet.clustering import Clusters, cluster
from qnet.data import DatasetInfo
from qnet.data.pixels import to_pixels
from qnet.errors import UserError
from qnet.histogram import Histogram
from qnet.insertion import insert_quantizers
from qnet.int8 import to_int8
from qnet.levels import LevelSet, activation_levels, weight_levels
from qnet.optimizer import parameter_groups
from qnet.quantization import quantize_model
from qnet.quantizer import Quantizer, quantizers, soft_forward
from qnet.scales import ScaleFloor
from qnet.sites import activation_sites, quantizable_layers
from qnet.size import full_precision_bytes, model_bytes
from qnet.steps import hard_steps, soft_steps

__all__ = [
    "Checkpoint",
    "Clusters",
    "DatasetInfo",
    "Histogram",
    "LevelSet",
    "Quantizer",
    "ScaleFloor",
    "UserError",
    "activation_histograms",
    "activation_levels",
    "activation_sites",
    "cluster",
    "full_precision_bytes",
    "hard_steps",
    "insert_quantizers",
    "load_checkpoint",
    "load_model",
    "model_bytes",
    "parameter_groups",
    "quantizable_layers",
    "quantize_model",
    "quantizers",
    "save_checkpoint",
    "soft_forward",
    "soft_steps",
    "to_int8",
    "to_pixels",
    "weight_levels",
]
