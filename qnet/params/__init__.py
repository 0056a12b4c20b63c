"""The parameters of an experiment: what params.yaml may say, and what is said where it may not.

`schema` has the sections, `types` what a value may be, `file` reads YAML so that each value is what
it looks like, and `errors` turns a mistake into one line.
"""

from __future__ import annotations

from qnet.params.schema import (
    ActivationsParams,
    ClusteringParams,
    FpParams,
    Params,
    QuantizedTrainingParams,
    RuntimeParams,
    TemperatureParams,
    TrainingParams,
    load_params,
)

__all__ = [
    "ActivationsParams",
    "ClusteringParams",
    "FpParams",
    "Params",
    "QuantizedTrainingParams",
    "RuntimeParams",
    "TemperatureParams",
    "TrainingParams",
    "load_params",
]
