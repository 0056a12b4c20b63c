"""Quantizers built from the clusters found by stage cluster, as set in params.yaml."""

from __future__ import annotations

from collections.abc import Mapping

from qnet.params import QuantizedTrainingParams
from qnet.quantizer import Quantizer
from stages.cluster_files import Clustered


def quantizers_from(
    found: Mapping[str, Clustered], params: QuantizedTrainingParams
) -> dict[str, Quantizer]:
    """Quantizers that start from the clusters of layers or sites, trained as `params` say."""
    return {
        name: Quantizer.from_clusters(
            clustered.clusters,
            forward_mode=params.forward,
            backward_temperature=params.backward_temperature,
        )
        for name, clustered in found.items()
    }
