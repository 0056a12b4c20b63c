"""Quantizers built from the clusters found by stage cluster, as set in params.yaml."""

from __future__ import annotations

from typing import Any

from qnet.clustering import Clusters
from qnet.params import QuantizedTrainingParams
from qnet.quantizer import Quantizer


def quantizer_from(clusters: dict[str, Any], params: QuantizedTrainingParams) -> Quantizer:
    """Quantizer that starts from these `clusters` and is trained as `params` say."""
    return Quantizer.from_clusters(
        Clusters.from_dict(clusters),
        forward_mode=params.forward,
        backward_temperature=params.backward_temperature,
    )
