"""Parameters of an experiment: what params.yaml may contain, and messages for what it may not.

`schema` has the sections, `types` the allowed values, `file` reads YAML so that each value is what
it looks like, and `errors` describes a mistake in one line.
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
